"""Figures of predictions, crop pairs and features."""
