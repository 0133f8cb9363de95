"""Trains a model: start with `train.py`, which assembles a run, and `loop.py`."""
