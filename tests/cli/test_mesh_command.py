"""`jax3d mesh`: from files of Gaussians to a GLB, and mistakes in a line."""

import numpy as np
from scenes import far_ball

from jax3d import cli
from jax3d.mesh import load_glb, splats

SMALL = [
    "--no-cache",
    "--resolution=24",
    "--faces=300",
    "--texture=64",
    "--views=8",
    "--size=48",
]


def test_a_file_of_gaussians_becomes_a_mesh_in_its_own_place(tmp_path, capsys):
    known = far_ball()
    known.means[0] = 1e4  # a stray
    splats.write(tmp_path / "a.ply", known)
    out = tmp_path / "a.glb"
    assert cli.main(["mesh", str(tmp_path / "a.ply"), f"--out={out}", "--stray=0.004", *SMALL]) == 0
    told = capsys.readouterr().out
    assert "400 Gaussians of degree 0, 1 strays left out" in told
    psnr = float(told.partition(" dB")[0].split()[-1])
    assert psnr > 20
    mesh = load_glb(out)
    assert 100 < len(mesh.faces) <= 300
    away = np.linalg.norm(mesh.vertices - 100, axis=-1)
    assert np.all((away > 25) & (away < 40))
    assert out.stat().st_size > 1000


def refused(capsys, *argv):
    """What a command says in its one line."""
    assert cli.main(["mesh", *map(str, argv)]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    return told.err


def test_mistakes_are_told_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splats.write("a.ply", far_ball(5))
    splats.write("a.glb", far_ball(5))
    (tmp_path / "empty.ply").touch()
    (tmp_path / "empty.splat").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.obj").write_text("v 0 0 0")
    splats.write("faint.ply", far_ball(5).replace(opacities=np.zeros(5, np.float32)))
    for argv, says in [
        ([], "no source"),
        (["none.ply"], "there is no such file"),
        (["a.obj"], ".obj is no format of Gaussians"),
        (["empty.ply"], "is no PLY"),
        (["empty.splat"], "0 bytes"),
        (["folder"], "holds no asset"),
        (["faint.ply"], "faint.ply: all of its Gaussians are transparent"),
        (["a.ply", "--out=b.obj"], "is written as .glb"),
        (["a.glb", "--out=a.glb"], "is the source itself"),
        (["a.ply", "--out=none/b.glb"], "there is no such folder"),
        (["a.ply", "--views=1"], "--views"),
    ]:
        assert says in refused(capsys, *argv), argv
    (tmp_path / "b.glb").mkdir()
    assert "is a folder" in refused(capsys, "a.ply", "--out=b.glb")
