"""The README's code runs as it stands."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_the_library_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    space = {}
    exec(code, space)
    assert space["metrics"]["residual_norm"].shape == (10, 2)
    assert np.isfinite(space["metrics"]["residual_norm"]).all()
    assert (space["states"].step == 10).all()


def test_every_file_that_the_readme_names_is_there():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text())
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing
