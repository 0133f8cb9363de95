"""Data of your own, in the layout that data_pipelines/folder.py describes.

python launch.py train --config=custom --config.data.dir=my_data \
    --config.tasks.names=semseg,depth --config.tasks.classes=background,crack

The tasks are those that you have labels for: some of semseg, human_parts, saliency, depth, edge and
normals. The classes are semseg's, in the order of its numbers; other tasks need none. The paper's
optimizer and augmentation, with the smaller Swin-Tiny. `data.size` is that of training crops, and
must hold every image of val.txt, which are scored whole: shrink photos of many megapixels, and
their labels, before.

On a GPU add --config.model.dtype=bfloat16. On a small machine, to see that all works (the size is
that of your images; 240x320 take two to three seconds a step on 2 cores, after minutes of
compiling):

    --config.model.encoder=swin_nano --config.model.expansion=1 --config.model.state_size=2 \
    --config.data.num_workers=0 --config.data.size=240,320 --config.train.batch_size=2 \
    --config.train.steps=100 --config.train.log_every=10 --config.train.eval_every=50 \
    --config.optimizer.learning_rate=3e-3
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
