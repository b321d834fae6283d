"""`jax3d sample`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from jax3d import camera as cameras
from jax3d import image
from jax3d.bounds import Count, NonNegative, Range, Seed
from jax3d.cli import cache, terminal
from jax3d.cli.making import Dtype
from jax3d.cli.signals import Stop
from jax3d.priors import embedded, sampling
from jax3d.priors.open import open_critic
from jax3d.types import Prompt


@dataclass(frozen=True)
class Options:
    """Draws 2D images from the critic alone: one row a prompt, one column a view."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    out: Path = Path("samples.png")
    """Picture to write: .png, .jpg or .webp."""
    mode: sampling.Mode | None = None
    """How the critic is asked: by the exact camera, by view words, or by the text alone. None: by
    the camera where the critic is told it, else by the text."""
    views: Count = 8
    guidance_scale: NonNegative | None = None
    """None: 3 for the embedded critic, 7.5 for others."""
    method: sampling.Method = "ddim"
    steps: Annotated[int, Range(1, 1000)] = 40
    negative: str = ""
    """Negative prompt, in place of the unconditional one."""
    seed: Seed = 0
    prior: str = "embedded"
    """The critic: "embedded", the path of weights that `jax3d train prior` wrote, or a Stable
    Diffusion, MVDream or pixel-space folder in the official layout."""
    dtype: Dtype = "float32"
    """Of a critic from disk."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""


def run(options: Options, stop: Stop) -> int:
    """Draws and writes one sheet; where it cannot be written is found out before the drawing."""
    del stop  # ended at once: nothing would be worth keeping
    if not options.prompts:
        raise ValueError('no prompt: give one or more in quotes, such as "a red chair"')
    if options.cache:
        cache.turn_on()
    critic = open_critic(options.prior, options.dtype)
    side = critic.prior.size
    image.demand_writable(options.out, side * len(options.prompts), side * options.views)
    terminal.say(f"critic: {critic.name}")
    scale = options.guidance_scale
    if scale is None:
        scale = 3.0 if critic.name == embedded.NAME else 7.5
    camera = cameras.in_groups(cameras.around(options.views, 15.0), critic.prior.views)
    sample = sampling.sampler(critic, options.mode, scale, options.steps, options.method)
    keys = jax.random.split(jax.random.key(options.seed), len(options.prompts))
    rows = [
        sample(key, Prompt(prompt, options.negative), camera)
        for key, prompt in zip(keys, options.prompts, strict=True)
    ]
    image.write(options.out, image.contact_sheet(np.concatenate(rows), options.views))
    terminal.say(f"{len(rows)} prompts, {options.views} views each: {options.out}")
    return 0
