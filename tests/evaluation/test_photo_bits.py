"""Photos with more than 8 bits are read with their brightness, and what was assumed is printed."""

import types

import cv2
import numpy as np
import pytest
from PIL import Image

from mtmamba_jax.cli import main as cli
from mtmamba_jax.cli import predict
from mtmamba_jax.evaluation.photo_files import Failure, Note, read_photo
from mtmamba_jax.tasks.table import DEPTH
from tests.evaluation.fake_predictor import FakePredictor
from tests.image_files import netpbm, tiff

SIZE = (20, 30)


def write(path, bits, channels):
    """Writes a ramp from 0 to the largest value of `bits`, in a 16-bit file; returns it."""
    ramp = np.linspace(0, 2**bits - 1, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    cv2.imwrite(str(path), ramp if channels == 1 else np.repeat(ramp[..., None], channels, -1))
    return ramp


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_data_of_few_bits_in_a_16_bit_file_keep_their_brightness(tmp_path, suffix, bits, channels):
    path = tmp_path / f"photo{suffix}"
    ramp = write(path, bits, channels)
    photo = read_photo(path)
    shown = np.repeat((ramp >> bits - 8)[..., None], 3, -1)
    # OpenCV's grey of three equal channels may round by one.
    np.testing.assert_allclose(photo.pixels, shown, atol=1)
    text = f"a 16-bit file whose values fit in {bits} bits, read as {bits}-bit data; --bits=N reads"
    text += " it as N-bit data, N from 8 to 16 (dark)"
    assert photo.note == (Note(path, text) if bits < 16 else None)


@pytest.mark.parametrize("given", [None, 12])
def test_hot_pixels_do_not_darken_12_bit_data(tmp_path, given):
    path = tmp_path / "photo.png"
    levels = np.full((40, 50, 3), 2048, np.uint16)
    levels[0, 0], levels[0, 1, 0] = 65535, 4096
    cv2.imwrite(str(path), levels)
    photo = read_photo(path, given)
    assert np.unique(photo.pixels[1:]).tolist() == [128]
    assert photo.pixels[0, :2].tolist() == [[255, 255, 255], [128, 128, 255]]
    if given is None:
        assert "fit in 12 bits but for 4 larger ones, which are clipped" in photo.note.text


def test_a_full_range_with_dark_parts_is_read_as_16_bits(tmp_path):
    path = tmp_path / "photo.png"
    levels = np.full((40, 50, 3), 100, np.uint16)
    levels[0, :3] = 65535  # more than 0.1 %
    cv2.imwrite(str(path), levels)
    photo = read_photo(path)
    assert photo.note is None
    assert photo.pixels[0, 0].tolist() == [255, 255, 255]


def test_what_was_assumed_is_printed_on_one_line_by_the_command_alone(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "a\nb.png"
    write(path, 12, 3)
    config = types.SimpleNamespace(data=types.SimpleNamespace(size=(16, 32)))
    run = types.SimpleNamespace(graph=0, parameters=0, tasks=(DEPTH,), config=config, step=1)
    monkeypatch.setattr(predict, "load_run", lambda *_, **__: run)
    monkeypatch.setattr(predict.nnx, "merge", lambda *_: None)
    monkeypatch.setattr(predict, "Predictor", lambda *_: FakePredictor((DEPTH,)))
    arguments = ["predict", "--workdir=run", f"--output={tmp_path / 'out'}", str(path)]
    assert cli.main(arguments) == 0
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "16-bit file" in each]
    assert line.startswith(ascii(str(path)))


def test_the_bits_that_were_given_are_used_and_checked(tmp_path):
    path = tmp_path / "photo.png"
    for held, given in ((9, 9), (11, 11), (13, 13), (12, 12), (12, 13), (12, 16)):
        ramp = write(path, held, 3)
        photo = read_photo(path, given)
        np.testing.assert_array_equal(photo.pixels[..., 0], ramp >> given - 8)
        assert photo.note is None
    assert read_photo(path, 11) == Failure(path, "holds 4095, too large for --bits=11")


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_of_32_bits_are_refused_not_clipped(tmp_path, mode):
    path = tmp_path / "photo.tif"
    Image.fromarray(np.full(SIZE, 1, {"F": np.float32, "I": np.int32}[mode])).save(path)
    failure = read_photo(path)
    held = {"F": "float32", "I": "int32"}[mode]
    assert failure == Failure(path, f"holds {held} values; save it as JPEG or PNG")
    cv2.imwrite(str(path), np.ones((*SIZE, 3), np.float32))
    assert read_photo(path) == Failure(path, "holds float32 values; save it as JPEG or PNG")


def test_photos_of_8_bits_are_read_as_before(tmp_path):
    levels = np.random.default_rng(0).integers(0, 9, (*SIZE, 3)).astype(np.uint8)
    for suffix in (".png", ".bmp", ".tif"):
        path = tmp_path / f"photo{suffix}"
        cv2.imwrite(str(path), levels[..., ::-1])
        photo = read_photo(path)
        np.testing.assert_array_equal(photo.pixels, levels)
        assert photo.note is None


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("largest", [1, 100, 255, 256, 511, 1000, 4095, 65535])
def test_netpbm_files_are_as_bright_as_their_header_says(tmp_path, kind, largest):
    share = np.linspace(0, 1, 60).reshape(4, 15)  # the last pixel is white
    stored = np.rint(share * largest).astype(int)
    shown = stored if kind in ("P2", "P5") else np.repeat(stored[..., None], 3, -1)
    path = tmp_path / "photo.pnm"
    path.write_bytes(netpbm(shown, largest, kind))
    photo = read_photo(path)
    wanted = np.repeat((stored * 255 / largest)[..., None], 3, -1)
    np.testing.assert_allclose(photo.pixels, wanted, atol=1)
    assert photo.note is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "float64"])
def test_tiffs_of_other_values_are_refused_in_one_line(tmp_path, dtype, channels, capfd):
    path = tmp_path / "photo.tif"
    path.write_bytes(tiff(np.ones((*SIZE, channels), dtype)))
    reason = read_photo(path).reason
    assert reason.endswith("; save it as JPEG or PNG")
    assert "\n" not in reason
    if dtype in ("int8", "int16"):
        assert reason == f"holds {dtype} values; save it as JPEG or PNG"
    assert capfd.readouterr().err == ""
