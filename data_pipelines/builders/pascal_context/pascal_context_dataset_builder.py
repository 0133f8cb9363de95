"""PASCAL-Context as a TFDS dataset."""

from etils import epath

from mtmamba_jax.data_pipelines.builders.base import DenseBuilder
from mtmamba_jax.data_pipelines.builders.pascal_context.files import PASCALContext
from mtmamba_jax.data_pipelines.datasets import LICENSES


class Builder(DenseBuilder):
    """PASCAL-Context with semantics, human parts, saliency, boundaries and surface normals."""

    pkg_dir_path = epath.Path(__file__).parent
    FILES = PASCALContext
    HOMEPAGE = "https://cs.stanford.edu/~roozbeh/pascal-context/"
    LICENSE = LICENSES["pascal_context"]
