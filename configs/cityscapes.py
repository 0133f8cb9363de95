"""MTMamba on Cityscapes: two tasks, 512x1024 images with 1024x2048 labels.

python launch.py prepare --dataset=cityscapes --source=FOLDER_OF_ARCHIVES
python launch.py train --config=cityscapes --config.model.dtype=bfloat16
python launch.py train --config=cityscapes:plus --config.model.dtype=bfloat16     MTMamba++

This recipe has not been trained or timed here because the dataset is not available.

The paper reports no scores on Cityscapes; the optimizer settings are those of the official code.
The depth task predicts disparity in pixels; zooming an image by s multiplies it by s.
"""

from ml_collections import ConfigDict

from mtmamba_jax.configs import common

VARIANTS = ("", "plus")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration for one of `VARIANTS`."""
    config = common.get_config()
    config.tasks.set = "cityscapes"
    config.data.name = "cityscapes"
    config.data.size = (512, 1024)
    config.data.label_scale = 2
    config.data.num_workers = 8
    if variant == "plus":
        common.to_plus(config)
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 1e-6
    config.train.steps = 40_000
    return config
