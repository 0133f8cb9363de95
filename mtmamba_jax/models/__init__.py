"""Defines the models; start with `mtmamba.py`."""
