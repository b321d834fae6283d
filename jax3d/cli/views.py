"""`jax3d views`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jax3d import camera as cameras
from jax3d import hub, image
from jax3d.bounds import Count, NonNegative, Range, Seed
from jax3d.cli import cache, terminal
from jax3d.cli.making import Dtype
from jax3d.cli.signals import Stop
from jax3d.priors import sampling, zero123plus
from jax3d.priors.open import FETCHED, open_critic
from jax3d.types import Key, Prompt

MOVING = (".mp4", ".gif")
_KNOWN = "known are folders of Zero123, Stable-Zero123 and Zero123++ in diffusers' layout"


@dataclass(frozen=True)
class Options:
    """Draws what a picture shows from other sides, by a critic alone: one row a picture."""

    pictures: tyro.conf.Positional[tuple[Path, ...]] = ()
    prior: str = ""
    """Who is told a picture: a folder of Zero123 or Stable-Zero123, which are asked for any view,
    or of Zero123++, which draws six on one sheet, as InstantMesh reads them."""
    out: Path = Path("views.png")
    """File to write: a picture (.png, .jpg, .webp), or of a single one an orbit (.mp4, .gif)."""
    views: Count | None = None
    """Evenly spread around the object, the picture's own side first; None: 8. Zero123++ has six of
    its own."""
    elevation: Annotated[float, Range(-90, 90)] | None = None
    """From where the views are taken, degrees above the horizon; None: the picture's own."""
    picture_elevation: Annotated[float, Range(-90, 90)] = 0.0
    """From where the pictures were taken, degrees above the horizon."""
    guidance_scale: NonNegative | None = None
    """None: 3 for Zero123, 4 for Zero123++."""
    steps: Annotated[int, Range(1, 1000)] | None = None
    """Of the sampler; None: 50 for Zero123, 75 for Zero123++."""
    seed: Seed = 0
    dtype: Dtype = "float32"
    """Of the weights and arithmetic, save norms, softmax and autoencoder."""
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
        raise ValueError(f"{options.out}: an orbit is of one picture's object, not of {count}")
    prompts = [
        Prompt("", image=image.read_picture(path), elevation=options.picture_elevation)
        for path in options.pictures
    ]
    if options.cache:
        cache.turn_on()
    prior = hub.find(options.prior, FETCHED, _KNOWN)
    six = zero123plus.recognises(prior)
    draw, side, views = _six(options, prior) if six else _orbit(options, prior, prompts[0])
    if not moving:
        image.demand_writable(options.out, side * count, side * views)
    keys = jax.random.split(jax.random.key(options.seed), count)
    rows = [np.asarray(draw(key, prompt)) for key, prompt in zip(keys, prompts, strict=True)]
    if moving:
        image.write_video(options.out, rows[0], fps=12)
    elif six and count == 1:
        image.write(options.out, zero123plus.sheet(rows[0]))
    else:
        image.write(options.out, image.contact_sheet(np.concatenate(rows), views))
    terminal.say(f"{count} pictures, {views} views each: {options.out}")
    return 0


def _orbit(options: Options, prior: Path, first: Prompt):
    """Any views of a critic that is told cameras: `(draw(key, prompt), side, views)`."""
    critic = open_critic(prior, options.dtype)
    source = critic.condition(first).plain.source
    if source is None:
        raise ValueError(f"{critic.name} is told no picture; {_KNOWN}")
    terminal.say(f"critic: {critic.name}")
    views = options.views or 8
    turns = jnp.arange(views) * (2 * jnp.pi / views)
    height = options.picture_elevation if options.elevation is None else options.elevation
    around = cameras.orbit(source.azimuth + turns, jnp.radians(height), source.radius, source.fovy)
    scale = 3.0 if options.guidance_scale is None else options.guidance_scale
    sample = sampling.sampler(critic, "camera", scale, options.steps or 50, "ddim")
    return lambda key, prompt: sample(key, prompt, around), critic.prior.size, views


def _six(options: Options, prior: Path):
    """The six views of Zero123++, as `_orbit` has its own."""
    if options.views is not None or options.elevation is not None:
        raise ValueError("views, elevation: Zero123++ draws six views from places of its own")
    model = zero123plus.open(prior, jnp.dtype(options.dtype), options.steps or zero123plus.STEPS)
    terminal.say(f"critic: {model.name}")
    scale = 4.0 if options.guidance_scale is None else options.guidance_scale
    sample = jax.jit(lambda *asked: zero123plus.sample(model, *asked))

    def draw(key: Key, prompt: Prompt):
        return sample(model.params, key, model.condition(prompt), scale)

    return draw, zero123plus.SIDE, len(zero123plus.AZIMUTH)
