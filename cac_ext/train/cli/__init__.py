"""The command ``cac-ext``: a thin file for each group of commands."""
