"""Files of a run: folder, checkpoint, log, predictions; and the guard against non-finite steps."""
