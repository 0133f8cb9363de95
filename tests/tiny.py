"""The smallest configuration that still has every part, for tests that train."""

from mtmamba_jax import config as configuration
from mtmamba_jax.config import Config
from mtmamba_jax.models.swin import SWIN_SIZES, SwinSize

SWIN_SIZES["swin_test"] = SwinSize(8, (1, 2, 1, 1), (1, 1, 1, 1), 4)
TINY = {
    "model.encoder": "swin_test",
    "model.state_size": "2",
    "model.decoder_drop_path_rate": "0.2",
    "data.size": "(32, 64)",
    "data.train_examples": "16",
    "data.test_examples": "5",
    "tasks.names": "('semseg', 'depth')",
    "train.steps": "20",
    "train.batch_size": "2",
    "train.log_every": "1",
    "train.eval_every": "8",
    "train.checkpoint_every": "2",
    "eval.batch_size": "3",
    "eval.panels": "2",
}


def tiny_config(**overrides: str) -> Config:
    """Returns a configuration that trains in seconds; dots in keys are written as `__`.

    The training step compiles for longer than it runs. Tests that change nothing it depends on
    (the number of steps is in its learning rate) find it in the compilation cache.
    """
    settings = TINY | {key.replace("__", "."): value for key, value in overrides.items()}
    return configuration.load("synthetic", settings)
