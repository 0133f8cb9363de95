"""Trained models for use elsewhere: with jax alone, or in PyTorch."""
