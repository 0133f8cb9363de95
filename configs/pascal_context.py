"""MTMamba on PASCAL-Context, the paper's recipe (section 4.1): five tasks, 50,000 steps of batch 8.

python launch.py prepare --dataset=pascal_context --source=ARCHIVE_OR_FOLDER
python launch.py train --config=pascal_context --config.model.dtype=bfloat16
python launch.py train --config=pascal_context:plus --config.model.dtype=bfloat16     MTMamba++

This recipe has not been trained or timed here because the dataset is not available. The paper
initializes the encoder with ImageNet weights:
--config.init.encoder=hf:microsoft/swin-large-patch4-window12-384

The paper's scores (Table 1): semseg mIoU 81.11, human_parts mIoU 72.62, saliency maxF 84.14,
normals mErr 14.14 degrees, edge odsF 78.80.
"""

from ml_collections import ConfigDict

from mtmamba_jax.configs import common

VARIANTS = ("", "plus")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration for one of `VARIANTS`."""
    config = common.get_config()
    config.tasks.set = "pascal_context"
    config.data.name = "pascal_context"
    config.data.size = (512, 512)
    config.data.num_workers = 8
    if variant == "plus":
        common.to_plus(config)
    return config
