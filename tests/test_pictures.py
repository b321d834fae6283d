"""Pictures as people have them: read, turned, reduced, cut out, or refused in a line."""

import numpy as np
import pytest
from PIL import Image

from jax3d import image

SIZE = (40, 60)  # height, width


def half_red() -> Image.Image:
    """Red above, blue below."""
    rgb = np.zeros((*SIZE, 3), np.uint8)
    rgb[:20], rgb[20:] = (255, 0, 0), (0, 0, 255)
    return Image.fromarray(rgb)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGB", "a.png"), ("RGBA", "a.png"), ("P", "a.png"), ("P", "a.gif"), ("RGB", "a.jpg"),
     ("CMYK", "a.jpg"), ("RGB", "a.webp"), ("RGB", "a.bmp"), ("RGB", "a.tiff"),
     ("RGB", "wrong.txt")],
)  # fmt: skip
def test_every_kind_is_srgb_with_coverage(tmp_path, mode, name):
    path = tmp_path / name
    half_red().convert(mode).save(path, **({} if name != "wrong.txt" else {"format": "PNG"}))
    rgba = image.read_picture(path)
    assert rgba.shape == (*SIZE, 4)
    assert rgba.dtype == np.float32
    np.testing.assert_allclose(rgba[5, 30], [1, 0, 0, 1], atol=0.06)
    np.testing.assert_allclose(rgba[35, 30], [0, 0, 1, 1], atol=0.06)


def test_transparency_of_a_palette_is_kept(tmp_path):
    picture = half_red().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    blue = picture.getpixel((30, 35))
    picture.save(tmp_path / "a.png", transparency=blue)
    alpha = image.read_picture(tmp_path / "a.png")[..., 3]
    assert alpha[5, 30] == 1
    assert alpha[35, 30] == 0


@pytest.mark.parametrize("mode", ["I;16", "I", "L"])
def test_deep_and_grey_pictures_keep_their_levels(tmp_path, mode):
    top = 255 if mode == "L" else 65535
    kind = {"I;16": np.uint16, "I": np.int32, "L": np.uint8}[mode]
    levels = np.linspace(0, top, 60).astype(kind)[None].repeat(40, 0)
    Image.fromarray(levels).save(tmp_path / "a.tiff")
    rgba = image.read_picture(tmp_path / "a.tiff")
    np.testing.assert_allclose(rgba[10, :, 1], np.linspace(0, 1, 60), atol=0.01)


def test_it_is_turned_as_its_camera_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    half_red().save(tmp_path / "a.jpg", exif=exif)
    rgba = image.read_picture(tmp_path / "a.jpg")
    assert rgba.shape == (60, 40, 4)
    assert rgba[30, 35, 0] > 0.9
    assert rgba[30, 5, 2] > 0.9


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(
        image.read_picture(tmp_path / "a.gif")[4, 4, :3], [1, 0, 0], atol=0.02
    )


def test_a_large_picture_is_reduced(tmp_path):
    Image.new("RGB", (20_000, 50), "red").save(tmp_path / "wide.png")
    rgba = image.read_picture(tmp_path / "wide.png")
    assert rgba.shape[1] == image.MOST_SEEN
    np.testing.assert_allclose(rgba[0, 500, :3], [1, 0, 0], atol=0.02)


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "not a picture"), (b"hello", "not a picture"), (b"\x89PNG\r\n\x1a\n", "a.png is")],
)
def test_what_is_no_picture_is_told(tmp_path, data, says):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=says):
        image.read_picture(tmp_path / "a.png")


def test_a_truncated_picture_is_told(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png is damaged"):
        image.read_picture(tmp_path / "a.png")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (11_000, 11_000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="11000 x 11000 pixels"):
        image.read_picture(tmp_path / "a.png")


def test_a_missing_picture_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        image.read_picture(tmp_path / "none.png")


def disc(ground, inside=(0.8, 0.1, 0.1), size=64):
    """A disc with a hole of the ground's colour."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    r = np.hypot(x, y)
    rgb = np.broadcast_to(np.float32(ground), (size, size, 3)).copy()
    rgb[r < 20] = inside
    rgb[r < 6] = ground
    return rgb, (r < 20)


@pytest.mark.parametrize("ground", [(1.0, 1.0, 1.0), (0.4, 0.5, 0.6), (0.0, 0.0, 0.0)])
def test_a_plain_ground_is_cut_away_up_to_the_object(ground):
    rgb, inside = disc(ground)
    noisy = np.clip(rgb + np.random.default_rng(0).normal(0, 0.01, rgb.shape), 0, 1)
    rgba = image.cut_out(noisy)
    # What is of the ground's colour inside the object stays: it does not reach the border.
    assert np.mean((rgba[..., 3] > 0.5) == inside) > 0.99
    np.testing.assert_allclose(rgba[..., :3], noisy, atol=1e-6)


def test_coverage_is_believed():
    rgb, inside = disc((0.1, 0.9, 0.2))
    given = np.concatenate([rgb, inside[..., None] * 0.75], -1)
    np.testing.assert_allclose(image.cut_out(given), given, atol=1e-6)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.random.default_rng(0).uniform(size=(64, 64, 3)), "not plain"),
        (np.full((64, 64, 3), 0.5), "nothing is in the picture but"),
        (np.zeros((64, 64, 4)), "transparent"),
    ],
)
def test_what_cannot_be_cut_out_is_told(picture, says):
    with pytest.raises(ValueError, match=says):
        image.cut_out(picture)
