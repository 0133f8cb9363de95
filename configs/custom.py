"""Your own data: a folder of images and labels, as described in data_pipelines/folder/source.py.

python launch.py train --config=custom --config.data.dir=my_data \
    --config.tasks.names=semseg,depth --config.tasks.classes=background,crack

`tasks.names` are the tasks that you have labels for, among semseg, human_parts, saliency, depth,
edge and normals. `tasks.classes` are the names of semseg's classes in the order of their IDs; the
other tasks need none. The recipe uses the paper's optimizer and augmentation with the smaller
Swin-Tiny. `data.size` is the size of training crops. Evaluation uses whole images, so every image
in val.txt must fit into `data.size`: shrink photos of many megapixels and their labels first.

On a GPU, add --config.model.dtype=bfloat16. To try everything on a small machine (set the size to
that of your images; at 240x320 a step takes two to three seconds on 2 cores, after minutes of
compilation), add:

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
