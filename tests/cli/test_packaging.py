"""What a wheel and an sdist hold, and that the command works from an unpacked wheel."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked(*folders):
    """The files that git knows, below folders."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", *folders], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("no git checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, built from a copy of what git knows, without a network."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("built")
    for name in tracked():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    build = (
        "import setuptools.build_meta as backend, sys\n"
        "folder = sys.argv[1]\n"  # the backend changes the arguments
        "print(backend.build_wheel(folder), backend.build_sdist(folder))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(folder)],
        cwd=folder / "tree",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def wheel_names(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_a_wheel_holds_the_package_its_data_and_the_recipes(built):
    names = wheel_names(built)
    assert tracked("jax3d") <= names
    assert {f"jax3d/{name}" for name in tracked("configs")} <= names
    kept = {name.partition("/")[0] for name in names}
    assert {name for name in kept if not name.endswith(".dist-info")} == {"jax3d"}
    licences = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences == set(PROJECT["license-files"])


@pytest.mark.slow
def test_an_sdist_holds_all_that_is_tested(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = tracked("jax3d", "configs", "tests", "benchmarks", "launch", "docs")
    wanted |= {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "setup.py", "Makefile"}
    assert wanted <= names


@pytest.mark.slow
def test_the_command_works_from_an_unpacked_wheel(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    where = "import jax3d; print(jax3d.__file__)"
    python = [sys.executable, "-P"]

    def run(*argv):
        done = subprocess.run(
            [*python, *argv], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", where).startswith(str(site))
    assert "distil" in run("-m", "jax3d", "configs")
    assert "--knobs.lr" in run("-m", "jax3d", "generate", "--config", "distil", "--help")
    assert "--batch" in run("-m", "jax3d", "train", "prior", "--config", "prior_gpu", "--help")


def test_what_is_imported_is_declared():
    import ast

    declared = {name.split("[")[0].split(">")[0].split("=")[0] for name in PROJECT["dependencies"]}
    modules = {
        "PIL": "pillow", "skimage": "scikit-image", "orbax": "orbax-checkpoint",
        "jaxlib": "jax", "yaml": "pyyaml", "imageio_ffmpeg": "imageio-ffmpeg",
        "fast_simplification": "fast-simplification", "gcsfs": None, "tensorstore": None,
    }  # fmt: skip
    found = set()
    for path in (ROOT / "jax3d").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    found -= sys.stdlib_module_names | {"jax3d", "torch", "diffusers", "transformers"}
    assert {modules.get(name, name) for name in found} - {None} <= declared


def test_the_licence_names_what_is_vendored():
    assert PROJECT["license"] == "Apache-2.0 AND MIT"
    assert "MIT" in (ROOT / "jax3d/gallery/viewer/LICENSE.three").read_text()
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])


def test_every_recipe_is_found_by_its_name():
    from jax3d import config_files

    assert {f"configs/{name}.py" for name in config_files.packaged()} == tracked("configs")
    assert all(config_files.about(path) for path in config_files.packaged().values())
