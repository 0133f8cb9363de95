"""Decoder features as pictures: where what a task's head is given is strong (the paper's Fig. 3).

A feature has many channels. What is drawn is their mean absolute value at each place: it has no
sign to choose, as a principal component has, and is the same of a batch and of a single image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mtmamba_jax.array_types import Array
from mtmamba_jax.data_pipelines.batch import remove_padding
from mtmamba_jax.devices.sharding import jit_on, replicated, split_batch
from mtmamba_jax.tasks import Task
from mtmamba_jax.visualization.render import apply_colormap, image_grid

STRIDE = 4  # of the final decoder feature, in pixels
_SHOWN = (2, 98)  # percentiles of a map that are its darkest and brightest colours


def create_feature_step(graph: nnx.GraphDef, tasks: Sequence[Task], mesh: Mesh) -> Callable:
    """Returns `step(parameters, images [b h w 3]) -> ({task: logits}, {task: activation})`.

    The logits are those of `evaluate.create_predict_step`; activations are of `activation`.

    Args:
      graph: the model's structure.
      tasks: that the model was made with, in its order.
      mesh: devices that the images are split over.
    """

    def step(parameters: Mapping, images: jax.Array):
        model = nnx.merge(graph, parameters)
        features = model.features(images)
        activations = {task.name: activation(features[i]) for i, task in enumerate(tasks)}
        return model.logits(features, images.shape[1:3]), activations

    split = split_batch(mesh)
    return jit_on(mesh, step, in_shardings=(replicated(mesh), split), out_shardings=split)


def activation(feature: Array) -> jax.Array:
    """Returns the mean absolute value over the channels of [... c]: float32 [...]."""
    return jnp.abs(feature.astype(jnp.float32)).mean(-1)


def draw_features(
    photo: np.ndarray, activations: Mapping[str, np.ndarray], size: Sequence[int]
) -> np.ndarray:
    """Draws a photo and, beside it, each task's activation: uint8 RGB.

    Each map has colours of its own, from black (weak) to yellow (strong).

    Args:
      photo: uint8 RGB [h w 3], as the model was given it, with its padding.
      activations: {task: [h/4 w/4]}.
      size: height and width of the photo without the padding.
    """
    pictures = {"photo": remove_padding(photo, size)}
    for name, values in activations.items():
        fine = np.kron(np.asarray(values), np.ones((STRIDE, STRIDE), np.float32))
        # The encoder pads to whole steps; what it added is not in the photo.
        values = remove_padding(fine[: len(photo), : photo.shape[1]], size)
        low, high = np.percentile(values, _SHOWN)
        share = (values - low) / max(high - low, 1e-12)
        pictures[f"{name}: final decoder feature"] = apply_colormap(share, cv2.COLORMAP_INFERNO)
    return image_grid([pictures])
