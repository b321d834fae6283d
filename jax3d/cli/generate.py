"""`jax3d generate`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from jax3d import manifest
from jax3d.bounds import Range
from jax3d.cli import making
from jax3d.cli.signals import Stop
from jax3d.manifest import Job


@dataclass(frozen=True)
class Options(making.Making):
    """Makes 3D assets from prompts: meshes, turntables and a page that shows them."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """One asset each, for example "a red chair with armrests"."""
    candidates: Annotated[int, Range(1, 100_000)] = 1
    """Seeds a prompt; the best by the scorer gets a mesh."""


def run(options: Options, stop: Stop) -> int:
    """Makes the assets; raises `ValueError` without a prompt."""
    jobs = jobs_of(options)
    making.split_cpu(options.cpu_devices, len(jobs))
    return making.make(options, jobs, stop, candidates=options.candidates)[1]


def jobs_of(options: Options) -> list[Job]:
    """What is to be made: the candidates of a prompt one after the other.

    Raises `ValueError` without a prompt, or where the seeds would leave 32 bits.
    """
    if not options.prompts:
        raise ValueError('no prompt: give one or more in quotes, such as "a red chair"')
    prompts = [prompt for prompt in options.prompts for _ in range(options.candidates)]
    seeds = manifest.seeds(options.seed, len(prompts))
    return [Job(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
