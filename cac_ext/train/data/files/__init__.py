"""Images and masks on disk: the lists that name them, and how they are read."""
