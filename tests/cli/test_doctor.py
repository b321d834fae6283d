"""`jax3d doctor`: it tells what is there and what is to be done, whatever is missing."""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

from jax3d import cli
from jax3d.cli import doctor


@pytest.fixture
def well(monkeypatch):
    """A machine on which nothing is to be done."""
    known = {"jax": "1.2"}
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: ["jax>=1,<2", "ray; extra == 'r'"]
    )
    monkeypatch.setattr(importlib.metadata, "version", known.__getitem__)
    monkeypatch.setattr(doctor, "accelerator", lambda: None)


def test_it_tells_devices_versions_memory_and_extras(well, capsys):
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("jax3d ")
    assert "packages: jax 1.2" in told
    assert "device 0: cpu, cpu" in told
    assert [line for line in told if line.startswith("host: ") and "cores" in line]
    assert "extra test (the tests): there" in told
    assert told[-1] == "all is well"


def test_what_is_missing_is_told_and_how_it_is_had(well, monkeypatch, capsys):
    def requires(_):
        return ["jax>=1", "numpy"]

    def version(name):
        if name == "numpy":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "accelerator", lambda: ("cuda", "an NVIDIA GPU"))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "extra ray (sweeps by launch/ray_sweep.py): not installed: pip install " in "\n".join(
        told
    )
    assert told[-4:] == [
        "to do: numpy: missing; pip install numpy",
        "to do: an NVIDIA GPU is not used: pip install 'jax3d-assets[cuda]'",
        "to do: no ffmpeg, so no turntable.mp4: pip install --force-reinstall imageio-ffmpeg",
        "something is to be done",
    ]


def test_it_tells_of_a_jax_that_does_not_work(well, monkeypatch, capsys):
    import jax

    def broken():
        raise RuntimeError("Unable to initialize backend 'cuda':\n no driver")

    monkeypatch.setattr(jax, "devices", broken)
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "to do: JAX finds no device: Unable to initialize backend 'cuda': no driver" in told


def test_it_knows_every_extra():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["name"] == doctor.PACKAGE
    assert {*project["optional-dependencies"]} == {*doctor.EXTRAS}
