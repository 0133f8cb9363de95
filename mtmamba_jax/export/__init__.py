"""Exports trained models, to run with JAX alone or in PyTorch."""
