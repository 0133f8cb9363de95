"""Checks batches against the contract of `data_pipelines/batch.py`."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtmamba_jax.tasks.table import Task


def check_batch(
    batch: Mapping[str, np.ndarray], tasks: Sequence[Task], label_scale: int = 1
) -> None:
    """Asserts the keys, shapes and dtypes of a host batch."""
    count, height, width, _ = batch["images"].shape
    wanted = {
        "images": ((count, height, width, 3), "float32"),
        "size": ((count, 2), "int32"),
        "mask": ((count,), "bool"),
    }
    label_pixels = (count, height * label_scale, width * label_scale)
    wanted |= {t.name: ((*label_pixels, t.label_channels), t.label_dtype) for t in tasks}
    assert {key: (batch[key].shape, str(batch[key].dtype)) for key in wanted} == wanted
    assert batch["id"].shape == (count,)
    assert batch["id"].dtype.kind == "U"
