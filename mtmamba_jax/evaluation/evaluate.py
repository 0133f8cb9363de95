"""Evaluates a model on the test set, and compares it with the best constant predictions."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mtmamba_jax.data_pipelines.batch import remove_padding
from mtmamba_jax.data_pipelines.pipeline import eval_batches
from mtmamba_jax.data_pipelines.sources import DataSettings, open_source
from mtmamba_jax.devices.sharding import batch_sharding, jit_on, put_batch, replicated
from mtmamba_jax.metrics import compute_scores, create_constant, create_metric
from mtmamba_jax.metrics.base import Accumulator, Sums
from mtmamba_jax.metrics.multitask import headline
from mtmamba_jax.tasks.labels import resize_logits
from mtmamba_jax.tasks.readout import to_value
from mtmamba_jax.tasks.table import IGNORE, Task


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for a test image and its labels, at the labels' size, without padding.

    Attributes:
      id: The example's ID.
      values: {task name: map}, as `readout.to_value` returns them.
      labels: {task name: label, [h w label_channels]}.
    """

    id: str
    values: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]

    def check_finite(self, name: str, flag: str) -> None:
        """Raises a RuntimeError if a task's map is NaN or infinite, which `flag` cannot use."""
        value = self.values[name]
        unknown = value == IGNORE if value.dtype == np.uint8 else ~np.isfinite(value)
        if nonfinite := np.count_nonzero(unknown):
            raise RuntimeError(
                f"The predicted {name} of image {self.id} is NaN or infinite at {nonfinite:,} "
                f"pixels, which {flag} cannot use. Omit it to see the other scores."
            )


class Evaluator:
    """Runs a model over the test set, every example once.

    Args:
      data: The section `config.data`, which names the test set.
      batch_size: Global batch size.
      graph: The model's structure.
      tasks: Tasks to evaluate.
      mesh: Devices that a batch is split over.
      layout: Shardings of the parameters; None replicates them.
    """

    def __init__(
        self,
        data: DataSettings,
        batch_size: int,
        graph: nnx.GraphDef,
        tasks: Sequence[Task],
        mesh: Mesh,
        layout: dict | None = None,
    ):
        self._data, self._tasks, self._mesh = data, tasks, mesh
        self._batch_size = batch_size
        self._source = open_source(data, tasks, "test")
        self._predict = create_predict_step(graph, mesh, layout)
        self._measure = create_measure_step(tasks, mesh)
        self._measure_constant = _create_constant_step(tasks, mesh)
        self._read = _create_value_step(tasks, mesh)

    def scores(self, parameters: dict) -> dict[str, dict[str, float]]:
        """Returns every score of every task."""
        return compute_scores(self._tasks, self.totals(parameters))

    def totals(self, parameters: dict) -> dict[str, Sums]:
        """Returns the sums of each task's metric over the test set, for `compute_scores`."""

        def measure(batch):
            return self._measure(self._predict(parameters, batch["images"]), batch)

        return self._accumulate(measure, {t.name: create_metric(t) for t in self._tasks})

    def constants(self) -> dict[str, float]:
        """Returns the score of the best constant prediction, which training must beat, by task."""
        accumulators = {task.name: create_constant(task) for task in self._tasks}
        totals = self._accumulate(self._measure_constant, accumulators)
        scores = {name: a.compute(totals[name]) for name, a in accumulators.items()}
        return headline(self._tasks, scores)

    def examples_with_logits(
        self, parameters: dict, count: int
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Yields (example, logits) for this process's first `count` test examples.

        Both are as in a batch, without its leading axis.
        """
        for batch in self._batches():
            logits = self._predict(parameters, put_batch(batch, self._mesh)["images"])
            logits = {name: _local(value) for name, value in logits.items()}
            for i in range(len(batch["images"])):
                if count == 0 or not batch["mask"][i]:
                    return
                count -= 1
                yield {k: v[i] for k, v in batch.items()}, {k: v[i] for k, v in logits.items()}

    def predictions(self, parameters: dict) -> Iterator[Prediction]:
        """Yields the prediction for each of this process's test examples."""
        scale = self._data.label_scale
        for batch in self._batches():
            on_devices = put_batch(batch, self._mesh)
            values = self._read(self._predict(parameters, on_devices["images"]), on_devices)
            values = {name: _local(value) for name, value in values.items()}
            for i in np.flatnonzero(batch["mask"]):
                size = batch["size"][i]
                value, label = (
                    {name: remove_padding(maps[name][i], size, scale) for name in values}
                    for maps in (values, batch)
                )
                yield Prediction(str(batch["id"][i]), value, label)

    def __len__(self) -> int:
        """Returns the number of test examples."""
        return len(self._source)

    @property
    def own_examples(self) -> int:
        """The number of test examples that this process evaluates."""
        share = self._batch_size // jax.process_count()
        starts = range(jax.process_index() * share, len(self), self._batch_size)
        return sum(min(share, len(self) - start) for start in starts)

    def _batches(self):
        return eval_batches(
            self._source,
            self._tasks,
            size=self._data.size,
            label_scale=self._data.label_scale,
            batch_size=self._batch_size,
            num_workers=self._data.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _accumulate(
        self, measure: Callable, accumulators: Mapping[str, Accumulator]
    ) -> dict[str, Sums]:
        total: dict[str, Sums] = {name: each.empty() for name, each in accumulators.items()}
        for batch in self._batches():
            sums = measure(put_batch(batch, self._mesh))
            for name, accumulator in accumulators.items():
                total[name] = accumulator.merge(total[name], sums[name])
        return total


def _resize_to_label(name: str, logits, batch) -> jax.Array:
    return resize_logits(logits[name], batch[name].shape[1:3])


def create_measure_step(tasks: Sequence[Task], mesh: Mesh) -> Callable:
    """Returns `step(logits, batch) -> {task: sums}`, the sums of each metric at label size."""
    metrics = {task.name: create_metric(task) for task in tasks}

    def step(logits, batch):
        return {
            name: each.measure(_resize_to_label(name, logits, batch), batch[name], batch["mask"])
            for name, each in metrics.items()
        }

    split = batch_sharding(mesh)
    return jax.jit(step, in_shardings=(split, split), out_shardings=replicated(mesh))


def _create_value_step(tasks: Sequence[Task], mesh: Mesh) -> Callable:
    """Returns `step(logits, batch) -> {task: map}`, which reads logits out at label size."""

    def step(logits, batch):
        return {t.name: to_value(t, _resize_to_label(t.name, logits, batch), jnp) for t in tasks}

    split = batch_sharding(mesh)
    return jax.jit(step, in_shardings=(split, split), out_shardings=split)


def _create_constant_step(tasks: Sequence[Task], mesh: Mesh) -> Callable:
    """Returns `step(batch) -> {task: sums}` for each task's best constant prediction."""
    constants = {task.name: create_constant(task) for task in tasks}

    def step(batch):
        return {name: c.measure(batch[name], batch["mask"]) for name, c in constants.items()}

    return jax.jit(step, in_shardings=batch_sharding(mesh), out_shardings=replicated(mesh))


def create_predict_step(graph: nnx.GraphDef, mesh: Mesh, layout: dict | None = None) -> Callable:
    """Returns `step(parameters, images [b h w 3]) -> {task: logits}`; the mesh splits the batch.

    `layout` has the shardings of the parameters; None replicates them.
    """

    def step(parameters: Mapping, images: jax.Array) -> dict[str, jax.Array]:
        return nnx.merge(graph, parameters)(images)

    split = batch_sharding(mesh)
    shardings = (layout or replicated(mesh), split)
    return jit_on(mesh, step, in_shardings=shardings, out_shardings=split)


def create_feature_step(graph: nnx.GraphDef, tasks: Sequence[Task], mesh: Mesh) -> Callable:
    """Returns `step(parameters, images [b h w 3]) -> (logits, activations)`.

    Both results are dicts by task name: logits as from `create_predict_step`, activations
    as from `mean_activation`. The tasks are those that the model was created with, in its order;
    the mesh splits the batch.
    """

    def step(parameters: Mapping, images: jax.Array):
        model = nnx.merge(graph, parameters)
        features = model.features(images)
        activations = {task.name: mean_activation(features[i]) for i, task in enumerate(tasks)}
        return model.logits(features, images.shape[1:3]), activations

    split = batch_sharding(mesh)
    return jit_on(mesh, step, in_shardings=(replicated(mesh), split), out_shardings=split)


def mean_activation(feature: Float[Array, "*axes c"]) -> Float[Array, "*axes"]:
    """Returns the mean absolute value over the channels, in float32."""
    return jnp.abs(feature.astype(jnp.float32)).mean(-1)


def _local(array: jax.Array) -> np.ndarray:
    """Returns this process's part of an array whose leading axis is split over devices."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])
