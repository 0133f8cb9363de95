"""Kernels; they import nothing else of this package."""
