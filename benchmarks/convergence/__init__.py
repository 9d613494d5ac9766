"""Does a training with our loss follow the same curve as with the reference?"""
