"""Configurations; `common.py` declares every key."""
