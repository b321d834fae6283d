"""Small scenes of 3D Gaussians, and what gsplat makes of one."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from checkpoints import GOLDEN

from jax3d import camera
from jax3d.render.ewa import View, view_of
from jax3d.render.splat import SplatConfig
from jax3d.types import Gaussians

CAMERAS = camera.orbit(jnp.array([0.4, 2.0]), jnp.array([0.3, -0.2]), 2.6, 0.75)


def gaussians(key: int, n: int, degree: int = 0, *, size: float = 0.15, opacity: float = 0.0):
    """A ball of Gaussians at random, the logits of their opacities around `opacity`."""
    keys = jax.random.split(jax.random.key(key), 5)
    return Gaussians(
        means=0.7 * jax.random.ball(keys[0], 3, shape=(n,)),
        quats=jax.random.normal(keys[1], (n, 4)),
        scales=size * jnp.exp(0.6 * jax.random.normal(keys[2], (n, 3))),
        opacities=jax.nn.sigmoid(opacity + 1.5 * jax.random.normal(keys[3], (n,))),
        sh=0.5 * jax.random.normal(keys[4], (n, (degree + 1) ** 2, 3)),
    )


def view(size: tuple[int, int]) -> View:
    """Of two cameras, whose centres are not the pictures'."""
    seen = view_of(CAMERAS, size)
    shift = jnp.zeros((3, 3)).at[:2, 2].set(jnp.array([0.7, -1.3]))
    return View(seen.viewmats, seen.intrinsics + shift)


class Golden(NamedTuple):
    """A scene, its pictures by gsplat in double precision, and gradients of a sum over these."""

    gaussians: Gaussians
    view: View
    size: tuple[int, int]
    config: SplatConfig
    arrays: dict[str, np.ndarray]


def golden() -> Golden:
    """300 Gaussians of degree 1, antialiased, in two pictures of 32 x 32."""
    with np.load(GOLDEN / "gaussians.npz") as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    scene = Gaussians(
        *(jnp.asarray(arrays[f"in_{x}"]) for x in ("means", "quats", "scales", "opacities", "sh"))
    )
    seen = View(jnp.asarray(arrays["in_viewmats"]), jnp.asarray(arrays["in_Ks"]))
    config = SplatConfig(antialiased=meta["antialiased"], blur=meta["eps2d"], near=meta["near"])
    return Golden(scene, seen, (meta["height"], meta["width"]), config, arrays)


def double(tree):
    """The same in double precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def far_ball(n: int = 400) -> Gaussians:
    """A ball's surface, coloured by place, far away and huge."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    known = Gaussians(
        means=100 + 30 * x,
        quats=np.tile([1.0, 0, 0, 0], (n, 1)),
        scales=np.full((n, 3), 3.0),
        opacities=np.full(n, 0.9),
        sh=1.2 * x[:, None],
    )
    return jax.tree.map(np.float32, known)
