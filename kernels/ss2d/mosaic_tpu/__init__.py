"""Pallas kernels of SS2D for TPUs."""
