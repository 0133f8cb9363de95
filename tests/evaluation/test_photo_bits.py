"""Photos with more than 8 bits are read with their brightness, and what was assumed is printed."""

import cv2
import numpy as np
import pytest
from PIL import Image

from mtmamba_jax.evaluation.photo_files import Failure, read_photo

SIZE = (20, 30)


def write(path, bits, channels):
    """Writes a ramp from 0 to the largest value of `bits`, in a 16-bit file; returns it."""
    ramp = np.linspace(0, 2**bits - 1, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    cv2.imwrite(str(path), ramp if channels == 1 else np.repeat(ramp[..., None], channels, -1))
    return ramp


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_data_of_few_bits_in_a_16_bit_file_keep_their_brightness(
    tmp_path, capsys, suffix, bits, channels
):
    path = tmp_path / f"photo{suffix}"
    ramp = write(path, bits, channels)
    photo = read_photo(path)
    # OpenCV's grey of three equal channels may round by one.
    np.testing.assert_allclose(photo, np.repeat((ramp >> bits - 8)[..., None], 3, -1), atol=1)
    told = capsys.readouterr().err
    assert (f"{path}: a 16-bit file whose values fit in {bits} bits" in told) == (bits < 16)
    assert ("--bits=16" in told) == (bits < 16)


def test_the_bits_that_were_given_are_used_and_checked(tmp_path, capsys):
    path = tmp_path / "photo.png"
    ramp = write(path, 12, 3)
    for bits in (12, 13, 16):
        np.testing.assert_array_equal(read_photo(path, bits)[..., 0], ramp >> bits - 8)
    assert read_photo(path, 11) == Failure(path, "holds 4095, too large for --bits=11")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_of_32_bits_are_refused_not_clipped(tmp_path, mode):
    path = tmp_path / "photo.tif"
    Image.fromarray(np.full(SIZE, 1, {"F": np.float32, "I": np.int32}[mode])).save(path)
    failure = read_photo(path)
    assert isinstance(failure, Failure)
    assert failure.reason.endswith("save it as JPEG or PNG")
    cv2.imwrite(str(path), np.ones((*SIZE, 3), np.float32))
    assert read_photo(path) == Failure(path, "holds float32 values; save it as JPEG or PNG")


def test_photos_of_8_bits_are_read_as_before(tmp_path, capsys):
    levels = np.random.default_rng(0).integers(0, 9, (*SIZE, 3)).astype(np.uint8)
    for suffix in (".png", ".bmp", ".tif"):
        path = tmp_path / f"photo{suffix}"
        cv2.imwrite(str(path), levels[..., ::-1])
        np.testing.assert_array_equal(read_photo(path), levels)
    assert not capsys.readouterr().err
