"""`jax3d reconstruct`."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax3d import manifest, recipe
from jax3d.bounds import Text
from jax3d.cli import making
from jax3d.cli.signals import Stop
from jax3d.manifest import Job
from jax3d.recipe import Recipe

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
"""Of the files that count as pictures in a folder."""


@dataclass(frozen=True)
class Options(making.Making):
    """Makes 3D assets from pictures, one each."""

    pictures: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, and folders whose pictures are all meant."""
    prompt: Text = ""
    """What all of them show, in words, where the recipe's model reads some."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: recipe.load("reconstruct")
    )


def run(options: Options, stop: Stop) -> int:
    """Makes the assets; raises `ValueError` without a picture."""
    jobs = jobs_of(options)
    making.split_cpu(options.cpu_devices, len(jobs))
    return making.make(options, jobs, stop)[1]


def jobs_of(options: Options) -> list[Job]:
    """What is to be made; raises `ValueError` as `find` does, or for seeds beyond 32 bits."""
    files = find(options.pictures)
    seeds = manifest.seeds(options.seed, len(files))
    return [
        Job(options.prompt, seed, picture=str(file))
        for file, seed in zip(files, seeds, strict=True)
    ]


def find(given: Iterable[str]) -> list[Path]:
    """The files that are named, and those of the folders that are named, by name.

    Raises `ValueError` where there is none.
    """
    found = []
    for each in map(Path, given):
        if each.is_dir():
            inside = sorted(p for p in each.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"{each} holds no picture ({', '.join(sorted(SUFFIXES))})")
            found += inside
        elif each.exists():
            found.append(each)
        else:
            raise ValueError(f"{each}: there is no such picture or folder")
    if not found:
        raise ValueError("no picture: give files, or a folder of them")
    return found
