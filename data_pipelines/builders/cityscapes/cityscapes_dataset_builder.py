"""Cityscapes as a TFDS dataset."""

from etils import epath

from mtmamba_jax.data_pipelines.builders.base import DenseBuilder
from mtmamba_jax.data_pipelines.builders.cityscapes.layout import Cityscapes


class Builder(DenseBuilder):
    """Cityscapes with semantics and disparity."""

    pkg_dir_path = epath.Path(__file__).parent
    LAYOUT = Cityscapes
    HOMEPAGE = "https://www.cityscapes-dataset.com/"
    LICENSE = "https://www.cityscapes-dataset.com/license/ (non-commercial use)"
