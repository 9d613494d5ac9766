"""The data sets shipped: a module each; `file_splits` is what those with files on disk share."""
