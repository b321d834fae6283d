"""Where recipes lie: in files, and in those that ship with the package, which go by name."""

import ast
import difflib
import os
from pathlib import Path


def packaged() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    # A wheel holds them inside the package, a checkout beside it.
    inside = Path(__file__).parent / "configs"
    folder = inside if inside.is_dir() else Path(__file__).parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def find(name: str | os.PathLike) -> Path:
    """The file of a recipe: a packaged one by its bare name, such as "distil", or a path.

    Raises `ValueError` where there is no such file; what is known is named.
    """
    known = packaged()
    path = known.get(os.fspath(name), Path(name))
    if path.is_file():
        return path
    near = difflib.get_close_matches(path.stem, known, 1)
    hint = f"nearest: {near[0]}; " if near else ""
    raise ValueError(
        f"config {name}: there is no such file, nor one of that name in the package "
        f"({hint}`jax3d configs` lists them)"
    )


def about(path: Path) -> str:
    """The first line of a recipe's docstring; the file is read and not run."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]
