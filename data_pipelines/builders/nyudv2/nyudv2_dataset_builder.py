"""NYUDv2 as a TFDS dataset."""

from etils import epath

from mtmamba_jax.data_pipelines.builders.base import DenseBuilder
from mtmamba_jax.data_pipelines.builders.nyudv2.files import NYUDv2
from mtmamba_jax.data_pipelines.datasets import LICENSES


class Builder(DenseBuilder):
    """NYUDv2 with semantics, depth, boundaries and surface normals."""

    pkg_dir_path = epath.Path(__file__).parent
    FILES = NYUDv2
    UNPACK_PHOTOS = True  # adds 0.4 GB; 2.5 GB in total
    HOMEPAGE = "https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html"
    LICENSE = LICENSES["nyudv2"]
