"""Checkpoints and the work directory of a run."""
