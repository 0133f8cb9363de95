"""Accelerated operations. Each is defined by plain JAX and imports nothing of the rest."""
