"""MTMamba on NYUDv2, the paper's recipe (section 4.1): four tasks, 50,000 steps of batch 8.

python launch.py prepare --dataset=nyudv2 --source=ARCHIVE_OR_FOLDER
python launch.py train --config=nyudv2 --config.model.dtype=bfloat16

On one H200 a step takes 0.28 s, all of them 3.8 hours, and 42 GiB. Not trained to the end here, as
the data is not at hand. Without the encoder's ImageNet weights the scores will be lower.

The paper's scores (Table 1): semseg mIoU 55.82, depth RMSE 0.5066 m, normals mErr 18.63 degrees,
edge odsF 78.70.
"""

from ml_collections import ConfigDict

from mtmamba_jax.configs import common


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = common.get_config()
    config.tasks.set = "nyudv2"
    config.data.name = "nyudv2"
    config.data.size = (448, 576)
    config.data.num_workers = 8
    return config
