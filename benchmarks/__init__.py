"""Benchmarks of the fused loss and of the training around it: ``python -m benchmarks``."""
