"""Scores on the test set and predictions for photos."""
