"""What a studio takes: names that fit together, whole files only, and no other folder's files."""

import csv
import json
import shutil
import zipfile

import numpy as np
import pytest
import trimesh
from made_assets import SIZE, write_asset

from jax3d import choices, cli, image, ledger, mesh, pack
from jax3d.choices import Choice

PROMPTS = ["a red chair", "=1+1", "a blue mug"]


@pytest.fixture
def out(tmp_path):
    for k, prompt in enumerate(PROMPTS):
        write_asset(tmp_path / "out", k, prompt)
    return tmp_path / "out"


NAMES = ["0000-a-red-chair", "0001-1-1", "0002-a-blue-mug"]
KEEP = {
    NAMES[0]: Choice("keep", '=HYPERLINK("http://x")'),
    NAMES[1]: Choice("star"),
    NAMES[2]: Choice("reject"),
}


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_kept_and_starred_assets_are_packed_by_name(out, tmp_path):
    made = pack.pack(out, tmp_path / "pack", KEEP)
    of_each = ["{}.glb", "{}.png", "{}_hull.glb", "{}_lod1.glb"]
    meshes = [f"meshes/{each.format(name)}" for name in NAMES[:2] for each in of_each]
    rest = ["catalog.csv", "catalog.json", "contact_sheet.png"]
    pictures = [f"thumbnails/{name}.png" for name in NAMES[:2]]
    assert files(tmp_path / "pack") == sorted([*meshes, *rest, *pictures])
    assert (made.skipped, made.lacking) == ({}, {})

    found = json.loads((tmp_path / "pack" / pack.CATALOG).read_text())
    assert found["files"] == files(tmp_path / "pack")
    assert found["assets"] == made.entries
    first = made.entries[0]
    assert (first["prompt"], first["seed"], first["faces"]) == ("a red chair", 0, 4)
    # Files have +y up and the front towards +z: width is of the world's second axis.
    size = [first["width_m"], first["height_m"], first["depth_m"]]
    np.testing.assert_allclose(size, [SIZE[1], SIZE[2], SIZE[0]], atol=1e-6)
    assert first["lods"] == [{"file": f"meshes/{NAMES[0]}_lod1.glb", "faces": 4}]
    assert "Apache-2.0" in first["licence"]
    assert [entry["starred"] for entry in made.entries] == [False, True]


def test_coarser_meshes_find_their_texture_under_its_new_name(out, tmp_path):
    pack.pack(out, tmp_path / "pack", KEEP)
    path = tmp_path / "pack" / "meshes" / f"{NAMES[0]}_lod1.glb"
    (geometry,) = trimesh.load_scene(path).geometry.values()  # reads what lies beside
    texture = np.asarray(geometry.visual.material.baseColorTexture.convert("RGB"))
    np.testing.assert_array_equal(texture[0, 0], [204, 51, 26])
    before, after = (p.read_bytes() for p in (out / NAMES[0] / "mesh_lod1.glb", path))
    assert mesh.glb_faces(after) == 4
    assert before[-100:] == after[-100:]
    assert int.from_bytes(after[8:12], "little") == len(after)


@pytest.mark.parametrize("glb", [b"", b"glTF", b"x" * 400, b"glTF" + bytes(40)])
def test_what_is_no_glb_is_told(glb):
    with pytest.raises(ValueError, match="no GLB file"):
        mesh.glb_faces(glb)
    with pytest.raises(ValueError, match="no GLB file"):
        mesh.with_texture(glb, "x.png")


def test_pictures_show_the_front(out, tmp_path):
    pack.pack(out, tmp_path / "pack", KEEP)
    thumbnail = image.read_image(tmp_path / "pack" / "thumbnails" / f"{NAMES[0]}.png")
    assert thumbnail.shape == (pack.THUMBNAIL, pack.THUMBNAIL, 3)
    np.testing.assert_allclose(thumbnail, 0.2, atol=0.01)  # the first of eight views
    sheet = image.read_image(tmp_path / "pack" / "contact_sheet.png")
    assert sheet.shape == (pack.THUMBNAIL, 2 * pack.THUMBNAIL, 3)


def test_no_cell_of_the_catalog_is_a_formula(out, tmp_path):
    pack.pack(out, tmp_path / "pack", KEEP, licence="@SUM(A1)")
    with open(tmp_path / "pack" / "catalog.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "@", "+"))]
    assert ledger.text_of(rows[1]["prompt"]) == "=1+1"
    assert ledger.text_of(rows[0]["note"]) == KEEP[NAMES[0]].note
    assert rows[0]["similarity"] == "1.0"


def damage(out, name, file):
    path = out / name / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda out: damage(out, NAMES[0], "mesh.glb"), "mesh.glb is damaged"),
        (lambda out: (out / NAMES[0] / "mesh_lod1.glb").unlink(), "mesh_lod1.glb is missing"),
        (lambda out: (out / NAMES[0] / "asset.json").write_text("{"), "truncated or no JSON"),
        (lambda out: (out / NAMES[0] / "asset.json").unlink(), "there is no such asset"),
    ],
)
def test_an_asset_that_is_not_whole_costs_no_other(out, tmp_path, capsys, harm, told):
    harm(out)
    choices.write(tmp_path / "keep.json", KEEP)
    argv = ["pack", str(out), "--keep", str(tmp_path / "keep.json"), "--out", str(tmp_path / "p")]
    assert cli.main(argv) == 1
    said = capsys.readouterr().out
    assert f"{NAMES[0]} is not packed: " in said
    assert told in said
    assert "1 of 2 assets packed" in said
    assert not [name for name in files(tmp_path / "p") if NAMES[0] in name]


def test_a_file_that_could_not_be_made_is_told(out, tmp_path, capsys):
    errors = {"turntable": "no ffmpeg", "mesh_lod2.glb": "it cannot lose half its faces"}
    write_asset(out, 3, "a chest", errors=errors)
    write_asset(out, 4, "a tree", status="failed", files={}, errors={"asset": "not finite"})
    write_asset(out, 5, "a loser", best=False)
    assert cli.main(["pack", str(out), "--out", str(tmp_path / "p"), "--zip"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "0004-a-tree is not packed: it failed: not finite",
        "0003-a-chest is packed without mesh_lod2.glb: it cannot lose half its faces",
        f"4 of 5 assets packed: {tmp_path / 'p'}/catalog.json",
    ]
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [f"p/{name}" for name in files(tmp_path / "p")]


def test_a_pack_is_replaced_and_other_files_are_left(out, tmp_path):
    target = tmp_path / "pack"
    pack.pack(out, target)
    (target / "meshes" / f"{NAMES[2]}.glb.meta").write_text("an engine's own")
    pack.pack(out, target, KEEP)
    assert not (target / "meshes" / f"{NAMES[2]}.glb").exists()
    assert (target / "meshes" / f"{NAMES[2]}.glb.meta").exists()
    assert (target / "meshes" / f"{NAMES[1]}.glb").exists()
    for name in NAMES:
        (out / name / "mesh.glb").unlink()
    before = files(target)
    assert pack.pack(out, target, KEEP).entries == []
    assert files(target) == before


def test_a_pack_that_was_cut_short_is_made_again(out, tmp_path, monkeypatch):
    target = tmp_path / "pack"

    def killed(fresh, *args):
        shutil.copytree(fresh / "meshes", target / "meshes")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack, "_publish", killed)
        patch.setattr(pack.shutil, "rmtree", lambda *args, **options: None)
        with pytest.raises(KeyboardInterrupt):
            pack.pack(out, target)
    assert pack.CATALOG not in files(target)
    pack.pack(out, target, KEEP)
    assert pack.CATALOG in files(target)
    assert not [name for name in files(target) if NAMES[2] in name or ".packing" in name]


def foreign(target):
    target.mkdir()
    (target / "mine.txt").touch()


def linked(target):
    target.mkdir()
    (target.parent / "elsewhere").mkdir()
    (target / "meshes").symlink_to(target.parent / "elsewhere")


def claiming(target, name):
    target.mkdir()
    about = {"kind": pack.KIND, "files": [name]}
    (target / pack.CATALOG).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (foreign, "is not empty, and no pack"),
        (lambda target: target.touch(), "is no folder"),
        (linked, "is a link, and not followed"),
        (lambda target: claiming(target, "../mine.txt"), "is no file of a pack"),
        (lambda target: claiming(target, "/etc/passwd"), "is no file of a pack"),
        (lambda target: claiming(target, 3), "is no file of a pack"),
    ],
)
def test_another_folder_is_not_written_to(out, tmp_path, harm, told):
    harm(tmp_path / "pack")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=told):
        pack.pack(out, tmp_path / "pack")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["pack"], "no folder"),
        (["pack", "nowhere"], "nothing to pack: it holds no assets"),
        (["pack", "out", "--keep", "nowhere.json"], "nowhere.json"),
        (["pack", "out", "--keep", "none.json"], "no asset is kept or starred"),
    ],
)
def test_what_cannot_be_is_told(out, tmp_path, monkeypatch, capsys, argv, told):
    monkeypatch.chdir(tmp_path)
    choices.write(tmp_path / "none.json", {NAMES[0]: Choice("reject")})
    assert cli.main(argv) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({}, "networks of jax3d, Apache-2.0"),
        ({"critic": "TripoSR"}, "their licences say"),
        ({"recipe": {"maker": {"weights": "own.safetensors"}}}, "their licences say"),
        ({"picture": "ab" * 32}, "whose rights remain its owner's"),
    ],
)
def test_the_note_on_rights_says_who_made_it(tmp_path, about, told):
    name = write_asset(tmp_path, 0, "a chair", **about)
    (entry,) = pack.pack(tmp_path, tmp_path / "pack").entries
    assert (entry["slug"], told in entry["licence"]) == (name, True)
