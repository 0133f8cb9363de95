"""Predicts the maps of a photo of any size."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import UInt8

from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.checkpoints.run_directory import CheckpointKind
from mtmamba_jax.data_pipelines.batch import denormalise, remove_padding
from mtmamba_jax.data_pipelines.transforms import eval_transforms
from mtmamba_jax.devices.sharding import replicated, single_device_mesh
from mtmamba_jax.evaluation.evaluate import create_feature_step, create_predict_step
from mtmamba_jax.evaluation.resizing import enlarge, fit
from mtmamba_jax.models.weights import split_model
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.visualization.features import draw_features


class Predictor:
    """Maps a photo to one map per task, in physical units.

    Photos are resized to fit into `size`, keeping their aspect ratio, and padded, as in evaluation;
    the maps have the photo's size. The model is compiled once, for the padded size.

    Example:
      >>> predictor = Predictor.load("runs/nyudv2")
      >>> maps = predictor(photo)  # uint8 RGB, [h w 3]
      >>> maps["depth"].shape  # metres
      (480, 640)

    Args:
      model: A model such as `create_model` returns; its weights are copied to the first device.
      tasks: Tasks that the model predicts, in its order.
      size: Height and width that photos are fitted into, in pixels; the training size works best.
    """

    def __init__(self, model: nnx.Module, tasks: Sequence[Task], size: tuple[int, int]):
        graph, parameters = split_model(model)
        self.tasks, self.size = tuple(tasks), (int(size[0]), int(size[1]))
        mesh = single_device_mesh()
        self._parameters = jax.device_put(parameters, replicated(mesh))
        self._transforms = eval_transforms((), self.size)
        self._predict = create_predict_step(graph, mesh)
        self._predict_with_features = create_feature_step(graph, self.tasks, mesh)

    @classmethod
    def load(
        cls,
        path: epath.PathLike,
        checkpoint: CheckpointKind = "best",
        *,
        size: tuple[int, int] | None = None,
    ) -> Predictor:
        """Loads the model of a work directory.

        Args:
          path: The work directory of a training run, or one that the command `convert` wrote.
          checkpoint: "best" or "latest".
          size: See `Predictor`; None takes that of training.

        Raises:
          ValueError: If there is no run or no such checkpoint, or if it is damaged.
          OSError: If reading failed for a reason that may be transient.
        """
        run = load_run(path, checkpoint, one_device=True)
        model = nnx.merge(run.graph, run.parameters)
        return cls(model, run.tasks, size or run.config.data.size)

    def __call__(self, photo: UInt8[np.ndarray, "h w 3"]) -> dict[str, np.ndarray]:
        """Predicts the maps of an RGB photo.

        Returns:
          {task name: map of the photo's size}. Classes are uint8 class IDs [h w], 255 where the
          prediction is NaN or infinite; depth is float32 metres [h w]; normals are float32 unit
          vectors [h w 3] (x right, y up, z towards the camera); boundaries and saliency are float32
          probabilities [h w].

        Raises:
          ValueError: If the photo has another dtype or shape.
        """
        logits, _ = self.logits(photo)
        size = photo.shape[:2]
        return {task.name: enlarge(task, logits[task.name], size) for task in self.tasks}

    def logits(
        self, photo: UInt8[np.ndarray, "h w 3"], *, with_features: bool = False
    ) -> tuple[dict[str, np.ndarray], UInt8[np.ndarray, "height width 3"] | None]:
        """Returns the logits of each task at the size that the photo was fitted into.

        Also returns an image of how strong each task's final decoder feature is, if asked for.
        """
        example, image = self._fit(photo), None
        batch = example["image"][None]
        if with_features:
            logits, activations = self._predict_with_features(self._parameters, batch)
            activations = {task.name: np.asarray(activations[task.name][0]) for task in self.tasks}
            image = draw_features(denormalise(example["image"]), activations, example["size"])
        else:
            logits = self._predict(self._parameters, batch)
        inside = {
            task.name: remove_padding(np.asarray(logits[task.name][0]), example["size"])
            for task in self.tasks
        }
        return inside, image

    def _fit(self, photo: np.ndarray) -> dict:
        photo = np.asarray(photo)
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[-1] != 3 or not photo.size:
            raise ValueError(
                f"A photo must be a uint8 RGB array [h w 3], got {photo.dtype} {list(photo.shape)}."
            )
        example = {"image": fit(photo, self.size), "id": "photo"}
        for transform in self._transforms:
            example = transform(example, np.random.default_rng(0))  # nothing is random
        return example
