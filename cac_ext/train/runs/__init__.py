"""Files of a run: folder, checkpoint, log, environment, predictions.

And the guard against steps that are not finite.
"""
