"""MTMamba on Cityscapes: two tasks, images of 512x1024 with labels of 1024x2048.

python launch.py prepare --dataset=cityscapes --source=FOLDER_OF_ARCHIVES
python launch.py train --config=cityscapes --config.model.dtype=bfloat16

Not trained or timed here, as the data is not at hand.

The paper has no scores on Cityscapes; model and optimizer are those of its other sets. The target
of the depth task is the disparity in pixels. Zooming an image by s multiplies it by s.
"""

from ml_collections import ConfigDict

from mtmamba_jax.configs import common


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = common.get_config()
    config.tasks.set = "cityscapes"
    config.data.name = "cityscapes"
    config.data.size = (512, 1024)
    config.data.label_scale = 2
    config.data.num_workers = 8
    return config
