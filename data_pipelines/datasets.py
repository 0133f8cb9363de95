"""The published datasets that have a TFDS builder (`builders/NAME`), and where they are kept."""

import os

from mtmamba_jax.messages import command

LICENSES = {
    "nyudv2": "No license is stated; the authors ask to cite the paper.",
    "pascal_context": "Images: Flickr's terms of use. Annotations: no license is stated.",
    "cityscapes": "https://www.cityscapes-dataset.com/license/ (non-commercial use)",
}
"""License of each dataset, as its publishers state it."""

DATASETS = tuple(LICENSES)
"""Names of the datasets."""


def prepare_command(name: str) -> str:
    """Returns the command that prepares a dataset."""
    return command("prepare", f"--dataset={name}", "--source=PUBLISHED_FILES")


def default_data_dir() -> str:
    """Returns the folder where TFDS keeps datasets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
