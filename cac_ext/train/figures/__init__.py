"""Pictures of predictions, of crop pairs and of what features mean."""
