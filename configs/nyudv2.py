"""MTMamba on NYUDv2, the paper's recipe (section 4.1): four tasks, 50,000 steps of batch 8.

python launch.py prepare --dataset=nyudv2 --source=ARCHIVE_OR_FOLDER
python launch.py train --config=nyudv2 --config.model.dtype=bfloat16
python launch.py train --config=nyudv2:plus --config.model.dtype=bfloat16     MTMamba++

On one H200, a step of MTMamba takes 0.28 s and 42 GiB, and training takes 3.8 hours. MTMamba++
trains for 40,000 steps on a weighted sum of the losses. Neither has been trained to the end here
because the dataset is not available. The paper initializes the encoder with ImageNet weights:
--config.init.encoder=hf:microsoft/swin-large-patch4-window12-384

The paper's scores (Table 1): semseg mIoU 55.82, depth RMSE 0.5066 m, normals mErr 18.63 degrees,
edge odsF 78.70.
"""

from ml_collections import ConfigDict

from mtmamba_jax.configs import common

VARIANTS = ("", "plus")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration for one of `VARIANTS`."""
    config = common.get_config()
    config.tasks.set = "nyudv2"
    config.data.name = "nyudv2"
    config.data.size = (448, 576)
    config.data.num_workers = 8
    if variant == "plus":
        common.to_plus(config)
        config.optimizer.learning_rate = 2e-5
        config.loss.scheme = "sum"
        config.loss.weights.normals = 10.0
        config.loss.weights.edge = 50.0
    return config
