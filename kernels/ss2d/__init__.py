"""SS2D, the four-direction selective scan of an image, and its one-dimensional form."""

from mtmamba_jax.kernels.ss2d.api import (
    DIRECTIONS,
    IMPLEMENTATIONS,
    selective_scan,
    selective_ss2d,
    ss2d,
)

__all__ = ["DIRECTIONS", "IMPLEMENTATIONS", "selective_scan", "selective_ss2d", "ss2d"]
