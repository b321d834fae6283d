"""`jax3d views`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jax3d import camera as cameras
from jax3d import image
from jax3d.bounds import Count, NonNegative, Range, Seed
from jax3d.cli import cache, terminal
from jax3d.cli.making import Dtype
from jax3d.cli.signals import Stop
from jax3d.priors import sampling
from jax3d.priors.open import open_critic
from jax3d.types import Prompt

MOVING = (".mp4", ".gif")


@dataclass(frozen=True)
class Options:
    """Draws what a picture shows from other sides, by a critic alone: one row a picture."""

    pictures: tyro.conf.Positional[tuple[Path, ...]] = ()
    prior: str = ""
    """A critic that is told a picture: a Zero123 or Stable-Zero123 folder in diffusers' layout."""
    out: Path = Path("views.png")
    """File to write: a picture (.png, .jpg, .webp), or of a single one an orbit (.mp4, .gif)."""
    views: Count = 8
    """Evenly spread around the object, the picture's own side first."""
    elevation: Annotated[float, Range(-90, 90)] | None = None
    """From where the views are taken, degrees above the horizon; None: the picture's own."""
    picture_elevation: Annotated[float, Range(-90, 90)] = 0.0
    """From where the pictures were taken, degrees above the horizon."""
    guidance_scale: NonNegative = 3.0
    method: sampling.Method = "ddim"
    steps: Annotated[int, Range(1, 1000)] = 50
    seed: Seed = 0
    dtype: Dtype = "float32"
    """Of the critic."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""


def run(options: Options, stop: Stop) -> int:
    """Draws and writes one file; whether that can be is found out before the drawing."""
    del stop  # ended at once: nothing would be worth keeping
    count, moving = len(options.pictures), options.out.suffix.lower() in MOVING
    if not count:
        raise ValueError("no picture: give one or more files")
    if not options.prior:
        raise ValueError("no critic: --prior names a folder of one that is told a picture")
    if moving and count > 1:
        raise ValueError(
            f"{options.out}: an orbit shows one picture's object, and {count} are given"
        )
    prompts = [
        Prompt("", image=image.read_picture(path), elevation=options.picture_elevation)
        for path in options.pictures
    ]
    if options.cache:
        cache.turn_on()
    critic = open_critic(options.prior, options.dtype)
    source = critic.condition(prompts[0]).plain.source
    if source is None:
        raise ValueError(f"{critic.name} is told no picture; take a Zero123 folder")
    if not moving:
        image.demand_writable(
            options.out, critic.prior.size * count, critic.prior.size * options.views
        )
    terminal.say(f"critic: {critic.name}")
    turns = jnp.arange(options.views) * (2 * jnp.pi / options.views)
    height = options.picture_elevation if options.elevation is None else options.elevation
    around = cameras.orbit(source.azimuth + turns, jnp.radians(height), source.radius, source.fovy)
    sample = sampling.sampler(
        critic, "camera", options.guidance_scale, options.steps, options.method
    )
    keys = jax.random.split(jax.random.key(options.seed), count)
    rows = [
        np.asarray(sample(key, prompt, around)) for key, prompt in zip(keys, prompts, strict=True)
    ]
    if moving:
        image.write_video(options.out, rows[0], fps=12)
    else:
        image.write(options.out, image.contact_sheet(np.concatenate(rows), options.views))
    terminal.say(f"{count} pictures, {options.views} views each: {options.out}")
    return 0
