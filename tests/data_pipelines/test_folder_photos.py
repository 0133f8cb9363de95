"""Photos of phones and large images in a folder of one's own data."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mtmamba_jax.data_pipelines.folder.source import Folder
from mtmamba_jax.data_pipelines.pipeline import ExampleError, eval_batches
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.tasks.table import SALIENCY
from tests.image_files import claiming_png


def write_folder(root, photo, orientation=6):
    """Writes an image that is stored turned, and the label of it as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for folder in ("images", "saliency"):
        (root / folder / "a b").mkdir(parents=True)
    for name in ("a b/x", "a b/y"):
        image, upright = (photo, {}) if name.endswith("y") else (np.rot90(photo), {"exif": exif})
        Image.fromarray(image).save(root / "images" / f"{name}.jpg", quality=95, **upright)
        label = (photo[..., 0] > 127).astype(np.uint8)
        Image.fromarray(label).save(root / "saliency" / f"{name}.png")
    (root / "train.txt").write_text("a b/x\n")
    (root / "val.txt").write_text("a b/y\n")


def test_images_stored_turned_are_refused_with_a_command_that_turns_them(tmp_path):
    photo = np.zeros((32, 48, 3), np.uint8)
    photo[:16] = 200
    write_folder(tmp_path, photo)
    upright = (tmp_path / "images" / "a b" / "y.jpg").read_bytes()
    with pytest.raises(DataError, match=r"a b/x\.jpg is stored turned \(EXIF") as error:
        Folder(tmp_path, "train", (SALIENCY,))[0]
    (command,) = [line for line in str(error.value).splitlines() if line.startswith("  cd ")]
    command = command.replace("python -c", f"{sys.executable} -c")
    subprocess.run(command, shell=True, check=True)
    example = Folder(tmp_path, "train", (SALIENCY,))[0]
    assert abs(example["image"].astype(int) - photo).max() < 30
    np.testing.assert_array_equal(example["saliency"][..., 0], photo[..., 0] > 127)
    assert (tmp_path / "images" / "a b" / "y.jpg").read_bytes() == upright


@pytest.mark.parametrize("folder", ["images", "saliency"])
def test_a_file_of_182_megapixels_is_named_in_training(tmp_path, folder):
    photo = np.full((32, 48, 3), 200, np.uint8)
    write_folder(tmp_path, photo, orientation=1)
    (tmp_path / folder / "a b" / "y.png").write_bytes(claiming_png(13000, 14000))
    if folder == "images":
        (tmp_path / "images" / "a b" / "y.jpg").unlink()
    with pytest.raises((DataError, ExampleError), match=r"a b/y\.png is too large.*Shrink it"):
        source = Folder(tmp_path, "val", (SALIENCY,))
        list(eval_batches(source, (SALIENCY,), size=(48, 48), batch_size=1))
