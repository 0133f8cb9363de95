"""Measurements of the command `benchmark`."""
