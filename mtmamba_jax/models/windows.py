"""Attention windows of Swin: cutting maps into them, and which pixels of one belong together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int


def to_windows(x: Float[Array, "b h w c"], window: int) -> Float[Array, "m l c"]:
    """Cuts maps into m windows of l = window**2 pixels; `window` divides h and w."""
    return rearrange(x, "b (i p) (j q) c -> (b i j) (p q) c", p=window, q=window)


def from_windows(
    x: Float[Array, "m l c"], window: int, height: int, width: int
) -> Float[Array, "b h w c"]:
    """Puts windows back together: the inverse of `to_windows`."""
    rows, columns = height // window, width // window
    pattern = "(b i j) (p q) c -> b (i p) (j q) c"
    return rearrange(x, pattern, i=rows, j=columns, p=window, q=window)


def relative_position_index(window: int) -> Int[np.ndarray, "l l"]:
    """Returns the row of the position-bias table that each pair of query and key reads."""
    y, x = np.divmod(np.arange(window**2), window)
    rows = y[:, None] - y[None, :] + window - 1
    columns = x[:, None] - x[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def shift_regions(height: int, width: int, window: int) -> Int[Array, "m l"]:
    """Returns a number for each pixel of shifted windows; equal ones may attend to each other.

    After the cyclic shift a window can hold pixels from opposite edges of the map, which must not
    see each other (Fig. 4 of the Swin paper).
    """

    # Regions of an axis: before the last window, its kept part, the part rolled in from the edge.
    def regions(axis) -> Any:
        shape = (1, height, width, 1)
        position = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        edges = (shape[axis] - window, shape[axis] - window // 2)
        return sum((position >= edge).astype(jnp.int32) for edge in edges)

    return to_windows(3 * regions(1) + regions(2), window)[..., 0]


def shift_mask(height: int, width: int, window: int) -> Bool[Array, "m l l"]:
    """Returns which pairs of pixels may attend to each other in shifted windows.

    Computed on the device: as a constant it would be 10 MB of the program at the first stage of a
    448x576 image.
    """
    region = shift_regions(height, width, window)
    return region[:, :, None] == region[:, None, :]
