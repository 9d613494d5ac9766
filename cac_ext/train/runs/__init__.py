"""What a run keeps on disk, and what it does when a step is not finite."""
