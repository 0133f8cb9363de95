"""The small trees in the published layouts that lie beside the builders."""

import pathlib
import shutil

from mtmamba_jax.data_pipelines import builders
from mtmamba_jax.data_pipelines.records import create_builder

ROOT = pathlib.Path(builders.__file__).parent


def copy_tree(name, folder):
    """Copies the dummy tree of a dataset to `folder` and returns it."""
    shutil.copytree(ROOT / name / "dummy_data", folder)
    return folder


def prepare(name, source, data_dir, **options):
    """Prepares a dataset in this process and returns its builder."""
    builder = create_builder(name, data_dir, **{"source": source, "allow_partial": True, **options})
    builder.download_and_prepare(download_dir=builder.staging_folder() / "downloads")
    return builder


def visible(data_dir):
    """Returns the files that were put in place, outside the folder of unfinished work."""
    paths = (path.relative_to(data_dir) for path in pathlib.Path(data_dir).rglob("*"))
    return sorted(
        str(path)
        for path in paths
        if (pathlib.Path(data_dir) / path).is_file()
        and not any(part.startswith(".") for part in path.parts)
    )
