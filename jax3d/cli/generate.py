"""`jax3d generate`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from jax3d import manifest
from jax3d.bounds import NonNegative, Range
from jax3d.cli import making
from jax3d.cli.signals import Stop
from jax3d.manifest import Job


@dataclass(frozen=True)
class Options(making.Making):
    """Makes 3D assets from prompts: meshes, turntables and a page that shows them."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """One asset each, for example "a red chair with armrests"."""
    guidance_scale: tuple[NonNegative, ...] = ()
    """Of classifier-free guidance, in the recipe's model or else in distillation: with several,
    each prompt is made with each of them, from the same seed."""
    candidates: Annotated[int, Range(1, 100_000)] = 1
    """Seeds a prompt; the best by the scorer gets a mesh."""


def run(options: Options, stop: Stop) -> int:
    """Makes the assets; raises `ValueError` without a prompt."""
    jobs = jobs_of(options)
    making.split_cpu(options.cpu_devices, len(jobs))
    return making.make(options, jobs, stop, candidates=options.candidates)[1]


def jobs_of(options: Options) -> list[Job]:
    """What is to be made: prompt by prompt, scale by scale, one candidate after the other.

    Raises `ValueError` without a prompt, or where the seeds would leave 32 bits.
    """
    if not options.prompts:
        raise ValueError('no prompt: give one or more in quotes, such as "a red chair"')
    seeds = manifest.seeds(options.seed, len(options.prompts) * options.candidates)
    distils = options.model is None and options.recipe.maker is None
    knob = "guidance_scale" if distils else "model_scale"
    scales = [{knob: (scale,)} for scale in options.guidance_scale] or [{}]
    return [
        Job(prompt, seeds[n * options.candidates + k], knobs=scale)
        for n, prompt in enumerate(options.prompts)
        for scale in scales
        for k in range(options.candidates)
    ]
