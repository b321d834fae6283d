"""Pictures survive the disk, the colour curve and the sheet."""

import subprocess

import imageio.v3 as iio
import jax.numpy as jnp
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from jax3d import image


def _gradient(height=12, width=10):
    y, x = np.mgrid[:height, :width]
    return np.stack([x / (width - 1), y / (height - 1), 0 * x + 0.5], axis=-1).astype(np.float32)


def test_png_round_trip_is_exact_to_8_bits(tmp_path):
    rgb = _gradient()
    image.write_png(tmp_path / "a.png", rgb)
    back = image.read_image(tmp_path / "a.png")
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, rgb, atol=0.5 / 255 + 1e-6)
    image.write_png(tmp_path / "b.png", back)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, :, 3] = 255
    iio.imwrite(tmp_path / "a.png", rgba)
    back = image.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(back[0], 0.0)
    np.testing.assert_array_equal(back[1], 1.0)


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"bad\.png is not an image"):
        image.read_image(tmp_path / "bad.png")
    with pytest.raises(FileNotFoundError):
        image.read_image(tmp_path / "missing.png")


def test_to_uint8_rounds_and_clips():
    values = jnp.array([-1.0, 0.0, 0.5, 1.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(image.to_uint8(values), [0, 0, 128, 255, 255, 0])


def test_srgb_known_values_and_inverse():
    np.testing.assert_allclose(
        image.srgb_to_linear(np.array([0.0, 0.5, 1.0])), [0, 0.214041, 1], atol=1e-6
    )
    x = np.linspace(0, 1, 101)
    np.testing.assert_allclose(image.linear_to_srgb(image.srgb_to_linear(x)), x, atol=1e-7)


def test_resize_keeps_constants_and_linear_ramps():
    np.testing.assert_allclose(image.resize(np.full((9, 7, 3), 0.3), (4, 5)), 0.3, atol=1e-6)
    ramp = np.broadcast_to((np.arange(16) + 0.5)[:, None, None] / 16, (16, 2, 3))
    half = image.resize(ramp, (8, 2))
    np.testing.assert_allclose(half[2:-2, 0, 0], ((np.arange(8) + 0.5) / 8)[2:-2], atol=1e-3)


def test_contact_sheet_places_images_in_reading_order():
    images = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((3, 2, 4, 3), np.float32)
    sheet = image.contact_sheet(images, columns=2, gap=1, background=9.0)
    assert sheet.shape == (5, 9, 3)
    assert (sheet[:2, :4] == 0).all()
    assert (sheet[:2, 5:] == 1).all()
    assert (sheet[3:, :4] == 2).all()
    assert (sheet[3:, 4:] == 9).all()
    assert (sheet[2] == 9).all()
    np.testing.assert_array_equal(image.row(images), np.concatenate(images, axis=1))


SHADES = np.array([0.2, 0.5, 0.8])
FRAMES = SHADES[:, None, None, None] * np.ones((3, 33, 31, 3))


def test_gif_round_trip(tmp_path):
    image.write_video(tmp_path / "a.gif", FRAMES, fps=10)
    back = iio.imread(tmp_path / "a.gif", plugin="pillow")
    assert back.shape == FRAMES.shape
    np.testing.assert_allclose(back.mean(axis=(1, 2, 3)) / 255, SHADES, atol=0.01)


def test_mp4_holds_the_frames_with_even_sides(tmp_path):
    image.write_video(tmp_path / "a.mp4", FRAMES, fps=10)
    decode = f"-i {tmp_path / 'a.mp4'} -f rawvideo -pix_fmt rgb24 -"
    raw = subprocess.run([get_ffmpeg_exe(), *decode.split()], capture_output=True, check=True)
    back = np.frombuffer(raw.stdout, np.uint8).reshape(3, 34, 32, 3)
    np.testing.assert_allclose(back.mean(axis=(1, 2, 3)) / 255, SHADES, atol=0.02)


def test_mp4_into_a_missing_folder_says_so(tmp_path):
    with pytest.raises(OSError, match=r"a\.mp4 could not be written"):
        image.write_video(tmp_path / "none" / "a.mp4", FRAMES)


def test_unknown_video_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"use \.mp4 or \.gif"):
        image.write_video(tmp_path / "a.avi", np.zeros((1, 2, 2, 3)))
