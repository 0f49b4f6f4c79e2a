"""A run's folder: its owner, its state, its records and predictions, and where they are sent."""
