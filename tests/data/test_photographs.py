"""Photographed scenes: what files say, where pictures come to lie, and what is refused."""

import json
import math

import numpy as np
import photographed
import pytest
from PIL import Image

from jax3d.data import photographs, transforms
from jax3d.render.raster import project, render_mesh
from jax3d.types import Look, Mesh


def read(folder, size=16, room=12):
    return photographs.read(transforms.scan(folder), size, room)


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    photographed.write(folder)
    return folder


def placed(found) -> Mesh:
    """The cube in the normalised scene."""
    mesh = photographed.cube()
    return mesh.replace(vertices=np.float32(found.scale * (mesh.vertices - found.centre)))


def over_white(found):
    rgba = found.rgba[: int(found.count)].astype(float) / 255
    return rgba[..., :3] + 1 - rgba[..., 3:]


def test_every_eighth_is_held_out(cube):
    scene = transforms.scan(cube)
    assert [frame.path.name for frame in scene.unseen] == ["0.png", "8.png"]
    assert len(scene.seen) == 8
    found = read(cube)
    assert int(found.count) == 8
    assert found.rgba.shape == (12, 16, 16, 4)
    assert not found.rgba[8:].any()
    assert photographs.held_out(scene, found, 16).count == 2


def test_the_object_fills_the_ball_and_looks_as_in_the_pictures(cube):
    found = read(cube, 32)
    mesh = placed(found)
    # From up to 40 degrees above and below, the hull has a pyramid on the cube.
    assert 0.5 < np.linalg.norm(mesh.vertices, axis=-1).max() < 0.95
    camera = type(found.camera)(**{k: v[:8] for k, v in vars(found.camera).items()})
    shown = render_mesh(mesh, camera, Look.albedo(), (32, 32))
    rgb = np.asarray(shown.rgb) + 1 - np.asarray(shown.alpha)[..., None]
    np.testing.assert_allclose(rgb, over_white(found), atol=0.02)
    np.testing.assert_allclose(camera.radius, np.linalg.norm(camera.c2w[:, :3, 3], axis=-1), 1e-5)


def test_of_too_many_pictures_evenly_spread_ones_are_taken(cube):
    few = read(cube, room=3)
    assert int(few.count) == 3
    np.testing.assert_array_equal(few.rgba[[0, 2]], read(cube).rgba[[0, 7]])


def test_a_lens_of_its_own_is_laid_onto_ours(tmp_path):
    # The left three quarters of a picture twice as wide as high: off-centre, not square.
    whole = photographed.write(tmp_path / "whole", 4)
    focal = 16 / math.tan(photographed.ANGLE / 2)
    lens = {"fl_x": 3 * focal, "fl_y": 2 * focal, "cx": 48, "cy": 32, "w": 72, "h": 64}
    photographed.write(tmp_path / "part", 4, **lens)
    for i in range(4):
        picture = Image.open(tmp_path / "part" / f"{i}.png")
        picture.resize((96, 64), Image.Resampling.BICUBIC).crop((0, 0, 72, 64)).save(
            tmp_path / "part" / f"{i}.png"
        )
    assert whole["frames"]
    a, b = read(tmp_path / "whole", 32), read(tmp_path / "part", 32)
    np.testing.assert_allclose(a.camera.fovy, b.camera.fovy, rtol=1e-6)
    assert b.known[:4, :, :24].all()
    assert not b.known[:4, :, 24:].any()
    assert np.abs(over_white(a) - over_white(b))[:, :, :23].mean() < 0.02


def test_distortion_is_undone(tmp_path):
    # A fan of dots, each where OpenCV's formulas put it.
    size, focal, bend = 128, 150.0, {"k1": 0.3, "k2": -0.1, "p1": 0.02, "p2": -0.01}
    photographed.write(tmp_path, 4, size, fl_x=focal, fl_y=focal, w=size, h=size, **bend)
    x, y = (v.ravel() for v in np.meshgrid(*[np.linspace(-0.3, 0.3, 5)] * 2))
    r2 = x * x + y * y
    radial = 1 + 0.3 * r2 - 0.1 * r2 * r2
    bent_x = x * radial + 2 * 0.02 * x * y - 0.01 * (r2 + 2 * x * x)
    bent_y = y * radial + 0.02 * (r2 + 2 * y * y) - 2 * 0.01 * x * y
    rows, columns = np.mgrid[:size, :size] + 0.5
    picture = np.zeros((size, size, 4))
    for u, v in zip(focal * bent_x + size / 2, focal * bent_y + size / 2, strict=True):
        picture[..., 3] += np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 4)
    picture = Image.fromarray(np.uint8(255 * picture.clip(0, 1)))
    for i in range(4):
        picture.save(tmp_path / f"{i}.png")
    alpha = read(tmp_path, size, 4).rgba[0, ..., 3].astype(float)
    for u, v in zip(focal * x + size / 2, focal * y + size / 2, strict=True):
        near = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 18) * alpha
        found = (near * columns).sum() / near.sum(), (near * rows).sum() / near.sum()
        np.testing.assert_allclose(found, (u, v), atol=0.1)


def test_blender_scenes_have_two_files_and_no_suffixes(tmp_path):
    told = photographed.write(tmp_path, 4)
    (tmp_path / "transforms.json").unlink()
    for frame in told["frames"]:
        frame["file_path"] = frame["file_path"].removesuffix(".png")
    for part, frames in (("train", told["frames"][:3]), ("test", told["frames"][3:])):
        text = json.dumps(told | {"frames": frames})
        (tmp_path / f"transforms_{part}.json").write_text(text)
    scene = transforms.scan(tmp_path)
    assert [len(scene.seen), len(scene.unseen)] == [3, 1]
    assert scene.unseen[0].path.name == "3.png"


def test_a_list_of_test_pictures_is_heeded(tmp_path):
    photographed.write(tmp_path, 4, test_filenames=["2.png"])
    assert [frame.path.name for frame in transforms.scan(tmp_path).unseen] == ["2.png"]


def test_photographs_without_coverage_are_framed_by_their_cameras(tmp_path):
    photographed.write(tmp_path, 7)
    for i in range(7):
        Image.open(tmp_path / f"{i}.png").convert("RGB").save(tmp_path / f"{i}.png")
    found = read(tmp_path)
    np.testing.assert_allclose(found.centre, [0.4, 0.1, -0.4], atol=1e-3)
    np.testing.assert_allclose(0.9 / found.scale, 9 * math.sin(photographed.ANGLE / 2), rtol=1e-4)
    pixel, _ = project(found.camera, np.zeros((1, 3)), (16, 16))
    np.testing.assert_allclose(pixel[:7, 0], 8.0, atol=1e-3)


def edited(folder, change):
    """The file's content, changed, back in the file."""
    told = photographed.write(folder, 3)
    change(told)
    (folder / "transforms.json").write_text(json.dumps(told))


def frame(**what):
    return lambda told: told["frames"][1].update(what)


def everywhere(**what):
    return lambda told: told.update(what)


POSE = np.eye(4).tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (frame(file_path="../../secret.png"), r"frame 1: '\.\./\.\./secret.png' is not within"),
        (frame(file_path="/etc/passwd"), "is not within"),
        (frame(file_path="none.png"), r"no picture 'none\.png'"),
        (frame(file_path=7), "no file_path"),
        (frame(file_path="a\0b"), "no file_path"),
        (frame(transform_matrix=[[1, 0], [0, 1]]), "no 4 x 4 matrix"),
        (frame(transform_matrix="eye"), "no 4 x 4 matrix"),
        (frame(transform_matrix=[*POSE[:3], [0, 0, 0, math.nan]]), "of finite numbers"),
        (frame(transform_matrix=[[2, 0, 0, 0], *POSE[1:]]), "no rotation and place"),
        (frame(transform_matrix=[[-1, 0, 0, 0], *POSE[1:]]), "no rotation and place"),
        (frame(fl_x=math.inf), "fl_x is inf"),
        (frame(fl_x="7"), "fl_x is 7; expected a number"),
        (frame(fl_x=1e-3), "are no lens"),
        (frame(fl_x=-40.0), "are no lens"),
        (frame(fl_x=40.0, cx=-3.0), "are no lens"),
        (frame(w=10_000_000, h=32), r"w x h is 1e\+07 x 32, and the picture has 32 x 32"),
        (frame(w=0), "w x h is 0 x 32"),
        (frame(camera_angle_x=4.0), "camera_angle_x between 0 and pi"),
        (frame(mask_path="m.png"), "mask_path"),
        (everywhere(camera_model="OPENCV_FISHEYE"), "OPENCV_FISHEYE"),
        (everywhere(k4=0.1), "fisheye"),
        (everywhere(frames=[]), "no list `frames`"),
        (everywhere(frames=[{}] * 10_001), "no list `frames`"),
        (everywhere(frames=[7]), "no file_path"),
        (lambda told: told["frames"].__delitem__(slice(1, None)), "look the same way"),
    ],
)
def test_a_lying_file_is_told(tmp_path, change, says):
    edited(tmp_path, change)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "no JSON"), ("[" * 10_000, "no JSON"), ("[]", "no list `frames`")]
)
def test_what_is_no_file_of_transforms_is_told(tmp_path, text, says):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        transforms.scan(tmp_path)


def test_a_folder_without_any_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no transforms\.json"):
        transforms.scan(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        transforms.scan(tmp_path / "none")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    photographed.write(tmp_path / "scene", 3)
    (tmp_path / "scene" / "1.png").rename(tmp_path / "1.png")
    (tmp_path / "scene" / "1.png").symlink_to(tmp_path / "1.png")
    with pytest.raises(ValueError, match="is not within"):
        transforms.scan(tmp_path / "scene")


def test_what_would_not_fit_is_told_before_it_is_read(cube):
    with pytest.raises(ValueError, match=r"at most \d+ are held"):
        read(cube, 4096, 10_000)


def test_cameras_that_look_outwards_are_told(tmp_path):
    def turn(told):
        for each in told["frames"]:
            pose = np.array(each["transform_matrix"])
            pose[:3, [0, 2]] *= -1
            each["transform_matrix"] = pose.tolist()

    edited(tmp_path, turn)
    with pytest.raises(ValueError, match="look outwards"):
        read(tmp_path)
