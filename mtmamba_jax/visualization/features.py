"""Draws decoder features: where the input of each task's head is strong (the paper's Fig. 3).

A feature has many channels; what is drawn is their mean absolute value at each pixel. Unlike a
principal component it has no arbitrary sign, and it does not depend on the other images of a batch.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mtmamba_jax.data_pipelines.batch import remove_padding
from mtmamba_jax.visualization.render import apply_colormap, image_grid

STRIDE = 4  # pixels of the image per pixel of the final decoder feature
_PERCENTILES = (2, 98)  # of a map, drawn in its darkest and brightest colours


def draw_features(
    photo: UInt8[np.ndarray, "h w 3"],
    activations: Mapping[str, Float[np.ndarray, "h/4 w/4"]],
    size: Sequence[int],
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Draws a photo and, beside it, each task's activation.

    Each map has its own colour range, from black (weak) to yellow (strong).

    Args:
      photo: RGB image that the model was given, with its padding.
      activations: Mean activations by task name, from `evaluate.create_feature_step`.
      size: Height and width of the photo without the padding.
    """
    images = {"photo": remove_padding(photo, size)}
    for name, values in activations.items():
        fine = np.kron(np.asarray(values), np.ones((STRIDE, STRIDE), np.float32))
        # The encoder pads the photo to a multiple of its stride; crop that as well.
        values = remove_padding(fine[: len(photo), : photo.shape[1]], size)
        low, high = np.percentile(values, _PERCENTILES)
        share = (values - low) / max(high - low, 1e-12)
        images[f"{name}: final decoder feature"] = apply_colormap(share, cv2.COLORMAP_INFERNO)
    return image_grid([images])
