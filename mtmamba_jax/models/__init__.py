"""The model; start with `mtmamba.py`."""
