"""Opens a run's training batches."""

import jax

from mtmamba_jax.config import Config
from mtmamba_jax.data_pipelines.pipeline import Batches, Source, train_batches


def open_batches(config: Config, source: Source, start_step: int = 0) -> Batches:
    """Returns this process's share of the training batches after `start_step`."""
    return train_batches(
        source,
        config.tasks.selected,
        crop_size=config.data.size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=config.augment,
        label_scale=config.data.label_scale,
        start_step=start_step,
        num_workers=config.data.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
