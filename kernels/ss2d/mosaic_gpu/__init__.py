"""Kernels of SS2D for NVIDIA GPUs."""
