"""Rendered sets of the prop world: what the embedded critic and the scorer learn from.

A bank is a pure function of its `BankConfig`; it is rendered once, kept as plain `.npy` files and
read memory-mapped.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jax3d.bounds import Count, Range, Seed
from jax3d.data import props
from jax3d.render import sdf
from jax3d.types import Camera, Key


@dataclasses.dataclass(frozen=True)
class BankConfig:
    """Which renders a bank holds."""

    images: Count
    """One object and one camera an image; the classes take turns."""
    seed: Seed
    front_heavy: bool = False
    """Cameras as photographs have them instead of uniform orbits."""
    held_out: bool = False
    """Only the held-out combinations, instead of only the training ones."""
    size: Annotated[int, Range(8, 4096)] = 64
    """Side of the square images, pixels."""


class Bank(NamedTuple):
    """N renders with their labels; images may be a memory map."""

    images: np.ndarray
    """[N, S, S, 4] uint8: straight sRGB and coverage."""
    spec: np.ndarray
    """[N] index into `props.specs()`"""
    camera: Camera
    """[N], NumPy leaves."""


def draw_specs(config: BankConfig) -> np.ndarray:
    """[N] indices into `props.specs()`: classes in turn, combinations uniform within a class."""
    specs = props.specs()
    rng = np.random.Generator(np.random.Philox(key=config.seed))
    pools = [
        [i for i, s in enumerate(specs) if s.name == c and props.is_held_out(s) == config.held_out]
        for c in props.CLASSES
    ]
    draws = rng.random(config.images)
    chosen = [pools[k % len(pools)] for k in range(config.images)]
    return np.array([pool[int(d * len(pool))] for pool, d in zip(chosen, draws, strict=True)])


@functools.partial(jax.jit, static_argnums=0)
def _draw(size, scene, camera, keys):
    def one(args):
        scene, camera, key = args
        k_light, k_ambient = jax.random.split(key)
        light = props.sample_light(k_light, camera)
        ambient = jax.random.uniform(k_ambient, minval=0.35, maxval=0.6)
        rgba = props.render(scene, camera, light, ambient, size)
        return jnp.round(jnp.clip(rgba, 0.0, 1.0) * 255).astype(jnp.uint8)

    # A CPU is fastest one image at a time, inside its caches; an accelerator wants many.
    batch = 1 if jax.default_backend() == "cpu" else 256
    return jax.lax.map(one, (scene, camera, keys), batch_size=batch)


def open_bank(
    folder: Path, config: BankConfig, report: Callable[[int], None] = lambda done: None
) -> Bank:
    """The bank of `config`, rendered into `folder` unless it is there already.

    Args:
      folder: Made if missing; one bank a folder.
      config: What to render.
      report: Called with the number of images done.

    Raises:
      ValueError: The folder holds a bank of another config.
    """
    folder = Path(folder)
    wanted = dataclasses.asdict(config)
    if (folder / "bank.json").exists():
        found = json.loads((folder / "bank.json").read_text())
        if found != wanted:
            raise ValueError(
                f"{folder} holds the bank {found}, not {wanted}: choose another folder or delete it"
            )
    else:
        _render_bank(folder, config, report)
        (folder / "bank.json").write_text(json.dumps(wanted))
    labels = np.load(folder / "labels.npz")
    camera = Camera(**{f.name: labels[f.name] for f in dataclasses.fields(Camera)})
    return Bank(np.load(folder / "images.npy", mmap_mode="r"), labels["spec"], camera)


def _render_bank(folder: Path, config: BankConfig, report: Callable[[int], None]):
    folder.mkdir(parents=True, exist_ok=True)
    specs, chosen = props.specs(), draw_specs(config)
    key = jax.random.key(config.seed)
    camera = props.sample_cameras(jax.random.fold_in(key, 0), config.images, config.front_heavy)
    camera = jax.tree.map(np.asarray, camera)
    keys = jax.random.split(jax.random.fold_in(key, 1), config.images)
    scene = props.build([specs[i] for i in chosen], config.seed)
    shape = (config.images, config.size, config.size, 4)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    chunk = min(512, config.images)
    for done in range(0, config.images, chunk):
        # The last chunk overlaps the one before, so that every chunk is the same program.
        at = slice(min(done, config.images - chunk), min(done, config.images - chunk) + chunk)
        images[at] = _draw(
            config.size, *jax.tree.map(lambda x, at=at: x[at], (scene, camera, keys))
        )
        report(at.stop)
    images.flush()
    np.savez(
        folder / "labels.npz",
        spec=chosen,
        **{f.name: getattr(camera, f.name) for f in dataclasses.fields(Camera)},
    )


def draw_wordings(key: Key, n: int, short: float) -> Int[Array, " n"]:
    """Indices of wordings; a share `short` of them leaves something out."""
    k_full, k_short, k_choose = jax.random.split(key, 3)
    full = jax.random.randint(k_full, (n,), 0, 4)
    partial = jax.random.randint(k_short, (n,), 4, props.WORDINGS)
    return jnp.where(jax.random.uniform(k_choose, (n,)) < short, partial, full)


def over_random_ground(key: Key, rgba: UInt8[Array, "n S S 4"]) -> Float[Array, "n S S 3"]:
    """Composites a bank's images over white or, half the time, a light grey."""
    k_level, k_white = jax.random.split(key)
    n = rgba.shape[0]
    level = jax.random.uniform(k_level, (n,), minval=0.25)
    level = jnp.where(jax.random.uniform(k_white, (n,)) < 0.5, 1.0, level)[:, None, None, None]
    rgba = rgba.astype(jnp.float32) / 255.0
    return rgba[..., :3] * rgba[..., 3:] + level * (1.0 - rgba[..., 3:])


def draw(key: Key, scenes: sdf.Scene, size: int) -> UInt8[np.ndarray, "n size size 4"]:
    """A picture of each scene: by cameras all around, or every second as photographs are taken."""
    k_camera, k_light = jax.random.split(key)
    n = len(scenes.role)
    around, photo = (
        props.sample_cameras(jax.random.fold_in(k_camera, k), n, front_heavy=bool(k))
        for k in range(2)
    )
    every = np.arange(n) % 2
    camera = jax.tree.map(
        lambda a, b: jnp.where(every.reshape(-1, *(1,) * (a.ndim - 1)), b, a), around, photo
    )
    return np.asarray(_draw(size, scenes, camera, jax.random.split(k_light, n)))


def ground_truth(
    chosen: list[props.Spec], seed: int, camera: Camera, size: int
) -> Float[np.ndarray, "n v size size 3"]:
    """What objects really look like to cameras `[v]`, over white: the ceiling of every score."""
    n, v = len(chosen), len(camera.fovy)
    scenes = jax.tree.map(lambda x: np.repeat(x, v, 0), props.build(chosen, seed))
    around = jax.tree.map(lambda x: jnp.tile(x, (n,) + (1,) * (x.ndim - 1)), camera)
    keys = jax.random.split(jax.random.key(seed), n * v)
    rgba = np.asarray(_draw(size, scenes, around, keys), np.float32) / 255.0
    rgb = rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:]
    return rgb.reshape(n, v, size, size, 3)
