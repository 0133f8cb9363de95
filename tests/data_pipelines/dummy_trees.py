"""The small dummy datasets in the builders' folders, and helpers that prepare and pack them."""

import io
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

from mtmamba_jax.data_pipelines import builders
from mtmamba_jax.data_pipelines.records import create_builder

FILL_UP = """
import resource, signal, sys
from tests.data_pipelines.dummy_trees import prepare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, *arguments = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
prepare("nyudv2", *arguments)
"""

REPOSITORY = pathlib.Path(__file__).parents[2]
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
    """Returns the files in a data_dir except those of unfinished work."""
    paths = (path.relative_to(data_dir) for path in pathlib.Path(data_dir).rglob("*"))
    return sorted(
        str(path)
        for path in paths
        if (pathlib.Path(data_dir) / path).is_file()
        and not any(part.startswith(".") for part in path.parts)
    )


def records_of(data_dir):
    return {
        path.name: path.read_bytes() for path in pathlib.Path(data_dir).rglob("*.array_record*")
    }


def fill_up(limit, source, data_dir):
    """Returns the error output of preparing NYUDv2 when files are limited to `limit` bytes.

    This simulates a full disk, because a small disk cannot be mounted everywhere.
    """
    command = [sys.executable, "-c", FILL_UP, *map(str, (limit, source, data_dir))]
    found = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert visible(data_dir) == []
    assert not list(data_dir.rglob("*.partial"))
    return found.stderr


def add(opened, name, content):
    if isinstance(opened, zipfile.ZipFile):
        opened.writestr(name, content)
    else:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        opened.addfile(member, io.BytesIO(content))


def pack(archive, tree=None, extra=()):
    """Packs a tree, in a folder of its own name, and further (name, content) pairs."""
    is_zip = archive.suffix == ".zip"
    mode = "w:gz" if archive.suffix == ".gz" else "w"
    with zipfile.ZipFile(archive, "w") if is_zip else tarfile.open(archive, mode) as opened:
        for path in sorted(tree.rglob("*")) if tree else ():
            if path.is_file():
                add(opened, str(path.relative_to(tree.parent)), path.read_bytes())
        for name, content in extra:
            add(opened, name, content)
    return archive
