"""`jax3d fit`."""

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
from jax3d.data import transforms
from jax3d.guidance.photometric import PhotometricConfig
from jax3d.manifest import Job
from jax3d.recipe import Recipe


@dataclass(frozen=True)
class Options(making.Making):
    """Fits 3D assets to posed photographs, a folder each."""

    folders: tyro.conf.Positional[tuple[str, ...]] = ()
    """With a transforms.json of nerfstudio or transforms_train.json of Blender in them."""
    prompt: Text = ""
    """What all of them show, in words, by which the scorer may judge."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: recipe.load("fit")
    )


def run(options: Options, stop: Stop) -> int:
    """Makes the assets; raises `ValueError` where no folder has photographs."""
    jobs, most = jobs_of(options)
    fitting = options.whole_recipe()
    if not isinstance(fitting.guidance, PhotometricConfig) or fitting.maker is not None:
        raise ValueError("this recipe fits no photographs: take fit, fit_triplane or fit_mlp")
    # No more room than the largest scene needs: all scenes are one program.
    guidance = dataclasses.replace(fitting.guidance, most=min(most, fitting.guidance.most))
    own = dataclasses.replace(options.recipe, guidance=guidance)
    making.split_cpu(options.cpu_devices, len(jobs))
    return making.make(dataclasses.replace(options, recipe=own), jobs, stop)[1]


def jobs_of(options: Options) -> tuple[list[Job], int]:
    """What is to be made, and the photographs of the largest scene.

    Raises `ValueError` where no folder is a scene, or for seeds beyond 32 bits.
    """
    if not options.folders:
        raise ValueError("no folder: give one or more that have a transforms.json")
    folders = [Path(name).absolute() for name in options.folders]
    most = _most(folders)
    seeds = manifest.seeds(options.seed, len(folders))
    jobs = [
        Job(options.prompt, seed, picture=str(folder))
        for folder, seed in zip(folders, seeds, strict=True)
    ]
    return jobs, most


def _most(folders: Iterable[Path]) -> int:
    """Photographs of the largest scene; one that is none is told of when it is made."""
    counts, refusals = [], []
    for folder in folders:
        try:
            counts.append(len(transforms.scan(folder).seen))
        except (ValueError, OSError) as error:
            refusals.append(error)
    if not counts:
        raise refusals[0]
    return max(counts)
