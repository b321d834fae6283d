"""Pinhole cameras: where they stand, how they are drawn at random, which rays they see.

Letters: v views, H and W pixels, n points. World right-handed with +z up, cameras OpenGL (look
down -z, +y up). Azimuth 0 stands on +x, where objects have their fronts, and grows
counter-clockwise seen from above. Radians everywhere except in `CameraConfig`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jax3d.bounds import RISING, Count, Finite, NonNegative, Positive, Range
from jax3d.math import normalize
from jax3d.types import Camera, Key, Rays

_Height = Annotated[float, Range(-90, 90)]
_Angle = Annotated[float, Range(above=0, below=180)]


@dataclass(frozen=True)
class CameraConfig:
    """The distribution that cameras are drawn from; angles in degrees, ranges as (low, high).

    The defaults fill the picture with an object of radius 0.9. DreamFusion as in threestudio:
    `fovy=(40, 70), elevation=(-10, 45), distance=(1.5, 2.0), fit_radius=None,
    eye_jitter=0.1, center_jitter=0.2, up_jitter=0.02`.
    """

    azimuth: Annotated[tuple[Finite, Finite], RISING] = (0.0, 360.0)
    elevation: Annotated[tuple[_Height, _Height], RISING] = (-10.0, 60.0)
    fovy: Annotated[tuple[_Angle, _Angle], RISING] = (38.0, 46.0)
    distance: Annotated[tuple[Positive, Positive], RISING] = (1.0, 1.15)
    """Factors of the distance at which a ball of `fit_radius` touches the picture's border."""
    fit_radius: Positive | None = 0.95
    """Metres; `None` makes `distance` plain metres, whatever the field of view."""
    fit: Literal["ball", "disc"] = "ball"
    """What touches the border at `distance` 1: a ball of `fit_radius`, or a disc of that radius
    that faces the camera, which may be nearer (MVDream)."""
    group: Count = 1
    """Consecutive views at one elevation, distance and field of view, evenly spaced all around
    `azimuth`, as critics of several views were trained (MVDream takes 4)."""
    eye_jitter: NonNegative = 0.03
    """Half width of the uniform shift of each coordinate of the camera, metres."""
    center_jitter: NonNegative = 0.03
    """Standard deviation of the point looked at, metres."""
    up_jitter: NonNegative = 0.02
    """Standard deviation of the (unit) up vector."""


def look_at(
    eye: Float[Array, "*v 3"], target: Float[Array, "*v 3"], up: Float[Array, "*v 3"]
) -> Float[Array, "*v 4 4"]:
    """Camera-to-world of a camera at `eye` that looks at `target`.

    Where `up` is parallel to the line of sight, a horizontal axis takes its place, so the pose
    is a rotation everywhere; `orbit` passes such places smoothly.
    """
    back = normalize(eye - target)
    up = normalize(up)
    parallel = jnp.sum(jnp.cross(up, back) ** 2, axis=-1, keepdims=True) < 1e-8
    spare = jnp.where(jnp.abs(back[..., :1]) < 0.9, jnp.eye(3)[0], jnp.eye(3)[1])
    right = normalize(jnp.cross(jnp.where(parallel, spare, up), back))
    return _pose(right, jnp.cross(back, right), back, eye)


def orbit(
    azimuth: ArrayLike,
    elevation: ArrayLike,
    radius: ArrayLike,
    fovy: ArrayLike,
    center: ArrayLike = 0.0,
) -> Camera:
    """Cameras on spheres around `center` (`[*v, 3]` or a number), looking at it.

    The other arguments broadcast to `[*v]`; angles in radians. Up is the direction in which
    elevation grows, which is smooth over the poles, where +z says nothing.
    """
    azimuth, elevation, radius, fovy = jnp.broadcast_arrays(
        *(jnp.asarray(x, jnp.result_type(float)) for x in (azimuth, elevation, radius, fovy))
    )
    back, up = _orbit_axes(azimuth, elevation)
    eye = radius[..., None] * back + jnp.asarray(center, back.dtype)
    return Camera(_pose(jnp.cross(up, back), up, back, eye), fovy, azimuth, elevation, radius)


def sample(key: Key, cfg: CameraConfig, n: int) -> Camera:
    """Draw `n` cameras.

    Azimuths are evenly spaced with one random offset, so few views see every side (threestudio);
    each elevation is, with equal chance, uniform in angle or uniform on the sphere
    (DreamFusion, section 3.2).

    Raises:
      ValueError: `n` is no multiple of the group.
    """
    if cfg.group < 1 or n % cfg.group:
        raise ValueError(
            f"{n} cameras are not in groups of {cfg.group}: take a multiple of the camera's group"
        )
    groups = n // cfg.group
    keys = jax.random.split(key, 9)
    azimuth = _spread(jax.random.uniform(keys[0]), n, jnp.radians(jnp.array(cfg.azimuth)))
    # Every `groups`-th of them is one group, so that each goes all around.
    azimuth = azimuth.reshape(cfg.group, groups).T.ravel()

    def draw(key, low, high):
        return jax.random.uniform(key, (groups,), minval=low, maxval=high)

    low, high = jnp.radians(jnp.array(cfg.elevation))
    height = draw(keys[2], jnp.sin(low), jnp.sin(high))
    elevation = jnp.where(
        jax.random.bernoulli(keys[3], 0.5, (groups,)),
        draw(keys[1], low, high),
        jnp.arcsin(jnp.clip(height, -1.0, 1.0)),
    )
    fovy = draw(keys[4], *jnp.radians(jnp.array(cfg.fovy)))
    radius = draw(keys[5], *cfg.distance)
    if cfg.fit_radius is not None:
        share = {"ball": jnp.sin, "disc": jnp.tan}[cfg.fit](fovy / 2)
        radius = radius * cfg.fit_radius / share
    elevation, fovy, radius = (jnp.repeat(x, cfg.group) for x in (elevation, fovy, radius))
    back, up = _orbit_axes(azimuth, elevation)
    shift = jax.random.uniform(keys[6], (n, 3), minval=-1.0, maxval=1.0)
    eye = radius[:, None] * back + cfg.eye_jitter * shift
    center = cfg.center_jitter * jax.random.normal(keys[7], (n, 3))
    up = up + cfg.up_jitter * jax.random.normal(keys[8], (n, 3))
    return Camera(look_at(eye, center, up), fovy, azimuth, elevation, radius)


def around(n: int, elevation: float) -> Camera:
    """`n` cameras on a circle that starts at the front, as results are shown; elevation in degrees.

    They see a ball of 0.95 m whole.
    """
    azimuth = 2 * jnp.pi * jnp.arange(n) / n
    fovy = jnp.radians(42.0)
    return orbit(azimuth, jnp.radians(elevation), 1.02 * 0.95 / jnp.sin(fovy / 2), fovy)


def in_groups(camera: Camera, group: int) -> Camera:
    """Cameras evenly spaced on a circle, reordered so that every `group` go all around it.

    Raises:
      ValueError: their number is no multiple of the group.
    """
    views = len(camera.fovy)
    if views % group:
        raise ValueError(
            f"views={views}: this critic looks at {group} together; take a multiple of {group}"
        )
    order = np.arange(views).reshape(group, -1).T.ravel()
    return jax.tree.map(lambda x: x[order], camera)


def from_front(azimuth: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """Unsigned angle between an azimuth and the front's, in [0, pi]."""
    return jnp.abs((azimuth + jnp.pi) % (2 * jnp.pi) - jnp.pi)


def rays(camera: Camera, size: tuple[int, int]) -> Rays:
    """The rays `[*v, H, W]` through the pixels' centres; `size` is (H, W)."""
    height, width = size
    column = (2 * jnp.arange(width) + 1 - width) / height
    row = (2 * jnp.arange(height) + 1 - height) / height
    x, y = jnp.meshgrid(column, -row)
    scale = jnp.tan(camera.fovy / 2)[..., None, None]
    local = jnp.stack(jnp.broadcast_arrays(scale * x, scale * y, -jnp.ones_like(scale)), axis=-1)
    directions = jnp.einsum("...ij,...hwj->...hwi", camera.c2w[..., :3, :3], local)
    origins = jnp.broadcast_to(camera.c2w[..., None, None, :3, 3], directions.shape)
    return Rays(origins, normalize(directions))


def project(
    camera: Camera, x: Float[Array, "n 3"], size: tuple[int, int]
) -> tuple[Float[Array, "*v n 2"], Float[Array, "*v n"]]:
    """Where points appear: (column, row) in pixels and the depth along the view axis, metres.

    The centre of the upper left pixel is (0.5, 0.5). Points at or behind the camera have
    depth <= 0 and pixels without meaning, but finite.
    """
    height, width = size
    local = jnp.einsum(
        "...ji,...nj->...ni", camera.c2w[..., :3, :3], x - camera.c2w[..., None, :3, 3]
    )
    depth = -local[..., 2]
    in_front = jnp.where(depth > 1e-6, depth, 1.0) * jnp.tan(camera.fovy / 2)[..., None]
    column = width / 2 + height / 2 * local[..., 0] / in_front
    row = height / 2 - height / 2 * local[..., 1] / in_front
    return jnp.stack([column, row], axis=-1), depth


def _spread(offset, n, limits):
    """`n` values at the same place of `n` equal parts of a range."""
    return limits[0] + (limits[1] - limits[0]) * (jnp.arange(n) + offset) / n


def _orbit_axes(azimuth, elevation):
    """Unit vectors away from the centre and towards growing elevation."""
    ca, sa = jnp.cos(azimuth), jnp.sin(azimuth)
    ce, se = jnp.cos(elevation), jnp.sin(elevation)
    back = jnp.stack([ce * ca, ce * sa, se], axis=-1)
    up = jnp.stack([-se * ca, -se * sa, ce], axis=-1)
    return back, up


def _pose(right, up, back, eye):
    """Stack axes and position to 4x4 matrices."""
    upper = jnp.stack([right, up, back, eye], axis=-1)
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0], upper.dtype), (*upper.shape[:-2], 1, 4))
    return jnp.concatenate([upper, last], axis=-2)
