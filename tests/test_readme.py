"""The README's code runs as it stands, but for the number of steps."""

import re
import shlex
from pathlib import Path

import pytest

from jax3d import cli
from jax3d.mesh import load_glb

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("steps", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_library_example_ends_in_meshes_on_disk(steps, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    assert "refined(20)" in code
    exec(code.replace("refined(20)", f"refined({steps})"), {})
    told = capsys.readouterr().out.splitlines()
    assert [" done " in line for line in told] == [True, True]
    for line in told:
        path = tmp_path / line.split()[-1]
        assert len(load_glb(path).faces) > 100


def test_every_command_that_the_docs_show_is_understood():
    for path in (README, *README.parent.glob("docs/*.md")):
        for block in re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("jax3d "):
                    command, _ = cli.parse(shlex.split(line, comments=True)[1:])
                    assert command in cli.COMMANDS, line


def test_every_file_that_the_readme_names_is_there():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text())
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing
