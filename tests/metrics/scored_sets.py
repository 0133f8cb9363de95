"""Test sets for metrics, and their scores through any split into batches."""

import functools

import jax
import numpy as np

from mtmamba_jax import metrics
from mtmamba_jax.tasks import table as tasks

KINDS = {task.metric: task for task in (*tasks.PASCAL_CONTEXT, tasks.DEPTH)}
SPLITS = [((4, 3), 4), ((4, 3), 3), ((1, 2, 4), 4), ((3, 0, 4), 4)]
ONE = np.ones(1, bool)


@functools.cache
def compiled(task):
    metric = metrics.create_metric(task)
    return metric, jax.jit(metric.measure)


def score(task, batches):
    """Returns all scores of batches (logits, label, mask)."""
    metric, measure = compiled(task)
    counts = metric.empty()
    for batch in batches:
        counts = metric.merge(counts, measure(*batch))
    return metric.compute(counts)


def random_set(task, number=7, h=9, w=8, seed=0):
    """Returns logits near the ground truth, and labels with one pixel in ten ignored."""
    rng = np.random.default_rng(seed)
    shape = (number, h, w)
    if task.metric == "normals":
        label = rng.normal(loc=(0, 0, 1.5), size=(*shape, 3))
        label /= np.linalg.norm(label, axis=-1, keepdims=True)
    elif task.metric == "depth":
        label = rng.uniform(1, 9, size=(*shape, 1))
    else:
        label = rng.integers(0, max(task.channels, 2), size=(*shape, 1))
    if task.label_dtype == "int32" and task.channels > 1:
        truth = np.eye(task.channels)[label[..., 0]]
    else:
        truth = label
    logits = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    label[rng.random(shape) < 0.1] = task.ignore
    return logits, label.astype(task.label_dtype)


def cut(logits, label, sizes, padded_to):
    """Yields batches of these sizes, padded to `padded_to` examples with invalid values."""
    start = 0
    for size in sizes:
        padding = ((0, max(padded_to - size, 0)), (0, 0), (0, 0), (0, 0))
        rows = slice(start, start + size)
        yield (
            np.pad(logits[rows], padding, constant_values=np.nan),
            np.pad(label[rows], padding, constant_values=1),
            np.arange(max(size, padded_to)) < size,
        )
        start += size


def column(values, dtype=np.float32):
    """Returns pixels [n] or [n channels] as one image [1 1 n channels]."""
    values = np.asarray(values, dtype)
    return values.reshape(1, 1, len(values), -1)
