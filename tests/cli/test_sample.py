"""`jax3d sample`: what it refuses before the work, and what it writes."""

import io

import numpy as np
import pytest
from PIL import Image

from jax3d import cli, image
from jax3d.cli import sample

MAGIC = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".JPG": "JPEG"}


@pytest.mark.parametrize("suffix", MAGIC)
def test_a_picture_is_what_its_name_says(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    rgb = np.linspace(0, 1, 16 * 24 * 3).reshape(16, 24, 3)
    image.write(path, rgb)
    with Image.open(io.BytesIO(path.read_bytes())) as found:
        assert (found.format, found.size) == (MAGIC[suffix], (24, 16))
    np.testing.assert_allclose(image.read_image(path), rgb, atol=0.1)


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("a.bmp", "no picture format is known for '.bmp'"),
        ("a", "no picture format is known for ''"),
        ("a.mp4", "use .png, .jpg, .jpeg, .webp"),
        ("nowhere/a.png", "nowhere/a.png cannot be written"),
        ("file/a.png", "file/a.png cannot be written"),
        ("folder.png", "folder.png is a folder"),
        ("/proc/a.png", "/proc/a.png cannot be written"),
    ],
)
def test_where_nothing_can_be_written_nothing_is_drawn(tmp_path, monkeypatch, capsys, out, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(sample.sampling, "sampler", lambda *_: pytest.fail("it draws"))
    assert cli.main(["sample", "a red chair", "--out", out]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert told in said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize(
    ("suffix", "side", "fits"),
    [
        (".webp", 16_383, True),
        (".webp", 16_384, False),
        (".jpg", 65_535, True),
        (".jpeg", 65_536, False),
        (".png", 65_536, True),
    ],
)
def test_a_sheet_that_is_too_large_for_its_format_is_told_before(tmp_path, suffix, side, fits):
    for size in ((side, 8), (8, side)):
        if fits:
            image.demand_writable(tmp_path / f"a{suffix}", *size)
            continue
        with pytest.raises(ValueError, match=rf"{suffix} holds {side - 1} a side"):
            image.demand_writable(tmp_path / f"a{suffix}", *size)
    assert not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_written_is_left_as_it_is(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    image.demand_writable(path, 8, 8)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--views", "0"], "--views is 0; expected a whole number from 1"),
        (["--views", "-8"], "--views is -8"),
        (["--steps", "0"], "--steps is 0"),
        (["--guidance-scale", "nan"], "--guidance-scale is nan"),
        (["--guidance-scale", "inf"], "--guidance-scale is inf"),
        (["--seed", "4294967296"], "--seed is 4294967296"),
    ],
)
def test_numbers_out_of_bounds_are_told(capsys, options, told):
    assert cli.main(["sample", "a red chair", *options]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("out", ["a.png", "b.jpg", "c.webp"])
def test_a_sheet_is_written_into_the_working_folder(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    drawn = np.full((2, 4, 4, 3), 0.25, np.float32)
    monkeypatch.setattr(sample.sampling, "sampler", lambda *_: lambda *_: drawn)
    assert cli.main(["sample", "a [red] chair", "a cat", "--out", out, "--views", "2"]) == 0
    assert image.read_image(tmp_path / out).shape == (8, 8, 3)
    assert f"2 prompts, 2 views each: {out}" in capsys.readouterr().out
