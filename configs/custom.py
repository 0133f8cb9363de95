"""Data of your own, in the layout that data_pipelines/folder.py describes.

python launch.py train --config=custom --config.data.dir=my_data \
    --config.tasks.names=semseg,depth --config.tasks.classes=background,crack

The tasks are those that you have labels for: some of semseg, human_parts, saliency, depth, edge and
normals. The classes are semseg's, in the order of its numbers; other tasks need none. The paper's
optimizer and augmentation, with the smaller Swin-Tiny. `data.size` is that of training crops, and
must hold every image of val.txt, which are scored whole.

On a GPU add --config.model.dtype=bfloat16. On a small machine, to see that all works:

    --config.model.encoder=swin_nano --config.model.expansion=1 --config.model.state_size=2 \
    --config.data.num_workers=0 --config.train.batch_size=2 --config.train.steps=200 \
    --config.train.eval_every=100 --config.optimizer.learning_rate=3e-3
"""

from ml_collections import ConfigDict

from mtmamba_jax.configs import common


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = common.get_config()
    config.tasks.set = "custom"
    config.model.encoder = "swin_tiny"
    config.data.name = "folder"
    config.data.num_workers = 8
    config.train.steps = 20_000
    return config
