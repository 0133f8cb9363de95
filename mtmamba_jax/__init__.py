"""MTMamba: several dense maps from one image, in JAX."""

__version__ = "0.1.0"
