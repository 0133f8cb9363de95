"""Pallas Triton kernels of SS2D."""
