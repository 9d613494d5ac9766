"""How fast images are read and augmented, against the pipelines that people use today."""
