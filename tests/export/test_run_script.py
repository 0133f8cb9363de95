"""An artifact's script says in one line what is wrong with its files, its images and its output."""

import json
import os
import pathlib
import re
import runpy
import struct
import subprocess
import sys

import numpy as np
import pytest

from mtmamba_jax.export import program as export
from tests.export.artifacts import call_export, run_script

NESTED = b"\x93NUMPY\x01\0\x05\0((((("
FILES = (export.PROGRAM, export.WEIGHTS, export.CARD)


def test_the_script_reports_what_is_wrong_with_its_images(pixel_run, tmp_path):
    output = tmp_path / "artifact"
    assert call_export(pixel_run, output, "--size=8x12") == 0
    image = np.zeros((8, 12, 3), np.uint8)
    for images, message in (
        ([image[:7]], "expected uint8 [8, 12, 3], got uint8 [7, 12, 3]"),
        ([image / 255], "got float64 [8, 12, 3]"),
        ([image, image], "Expected 1 images, got 2"),
        ([np.array([{}])], "was not saved by numpy.save"),
        ([], "writes TASK.npy files"),
    ):
        ran = run_script(output, tmp_path, *images)
        assert ran.returncode == 1
        assert message in ran.stderr
        assert "Traceback" not in ran.stderr
    ran = run_script(output, tmp_path, image)
    assert ran.returncode == 0
    assert ran.stdout.startswith("Wrote ")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def spoil(path):
    contents = path.read_bytes()
    middle = len(contents) // 2
    path.write_bytes(contents[:middle] + bytes(64) + contents[middle + 64 :])


def lose_needs(path):
    card = json.loads(path.read_text())
    del card["program"]["needs"]
    path.write_text(json.dumps(card))


def become_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def lose_an_array(path):
    arrays = dict(np.load(path))
    arrays.popitem()
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        *((name, cut, f"{name} cannot be read by jax") for name in FILES),
        *((name, empty, f"{name} cannot be read by jax") for name in FILES),
        *((name, pathlib.Path.unlink, f"{name} cannot be read by jax") for name in FILES),
        *((name, become_a_pipe, f"{name} cannot be read by jax .*a pipe") for name in FILES),
        (export.CARD, lose_needs, r"model_card.json cannot be read by jax .*KeyError: 'needs'"),
        (export.PROGRAM, spoil, "does not run on cpu|cannot be read by jax"),  # where it notices
        (export.WEIGHTS, spoil, "weights.npz cannot be read by jax"),
        (export.WEIGHTS, lose_an_array, "weights.npz is not of the program beside it: 1 arrays"),
    ],
)
def test_the_script_names_a_damaged_file_in_one_line(
    name, damage, message, pixel_run, tmp_path, monkeypatch
):
    output = tmp_path / "artifact"
    assert call_export(pixel_run, output, "--size=8x12") == 0
    damage(output / name)
    assert re.search(message, failure(output, tmp_path, monkeypatch))


def failure(folder, cwd, monkeypatch, write=None):
    """Runs an artifact's script in this process and returns the one line that it ends with.

    `write` writes the image, by default a valid one.
    """
    if write:
        write(cwd / "image.npy")
    else:
        np.save(cwd / "image.npy", np.zeros((8, 12, 3), np.uint8))
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["run.py", "image.npy"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / export.SCRIPT), run_name="__main__")
    assert "\n" not in str(ended.value)
    return str(ended.value)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_script_names_the_platform_that_is_not_here(platform, pixel_run, tmp_path, monkeypatch):
    output = tmp_path / "artifact"
    flags = ["--size=8x12", "--scan=xla"]
    assert call_export(pixel_run, output, *flags, platform=platform) == 0
    message = failure(output, tmp_path, monkeypatch)
    assert f"{output} is for {platform}, which JAX does not find here" in message


def test_the_script_names_a_map_that_it_cannot_write_and_leaves_no_part_of_it(
    pixel_run, tmp_path, monkeypatch
):
    output, cwd = tmp_path / "artifact", tmp_path / "cwd"
    (cwd / "depth.npy").mkdir(parents=True)
    assert call_export(pixel_run, output, "--size=8x12") == 0
    message = failure(output, cwd, monkeypatch)
    assert f"{cwd / 'depth.npy'} could not be written (Is a directory)" in message
    assert {path.name for path in cwd.iterdir()} == {"depth.npy", "image.npy"}


def claim(shape, descr="|u1"):
    """Returns a function that writes a .npy file with this shape and no values."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    contents = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header
    return lambda path: path.write_bytes(contents)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (claim((10**9, 10**9)), "was not saved by numpy.save"),
        (claim((10**30,)), "was not saved by numpy.save"),
        (claim((8, 12, 3), "|O"), "was not saved by numpy.save"),
        (lambda path: path.write_bytes(NESTED), "was not saved by numpy.save"),
        (os.mkfifo, "does not exist or is not a file"),
        (pathlib.Path.mkdir, "does not exist or is not a file"),
        (lambda path: None, "does not exist or is not a file"),
    ],
)
def test_the_script_names_an_image_it_cannot_read_in_one_line(
    write, message, pixel_run, tmp_path, monkeypatch
):
    output = tmp_path / "artifact"
    assert call_export(pixel_run, output, "--size=8x12") == 0
    assert f"image.npy {message}" in failure(output, tmp_path, monkeypatch, write)


@pytest.mark.parametrize(
    ("stdout", "code", "errors"),
    [
        ("| sleep 0", 0, ""),
        (">&-", 0, ""),
        (">/dev/full", 1, "Wrote .*, but standard output could not be written .No space left.*\n"),
    ],
)
def test_the_script_writes_its_maps_whatever_becomes_of_its_output(
    stdout, code, errors, pixel_run, tmp_path
):
    output = tmp_path / "artifact"
    assert call_export(pixel_run, output, "--size=8x12") == 0
    np.save(tmp_path / "image.npy", np.zeros((8, 12, 3), np.uint8))
    command = f"set -o pipefail; {sys.executable} {output / export.SCRIPT} image.npy {stdout}"
    ran = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    assert re.fullmatch(errors, ran.stderr)
    assert (tmp_path / "depth.npy").exists()
