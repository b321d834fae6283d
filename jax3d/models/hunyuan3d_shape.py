"""Hunyuan3D 2's assets: from latents to a grid that is seen, and to a mesh.

In its world +y is up and fronts look to +z, in a cube of half side 1.01; ours is (x, y, z) = (their
z, their x, their y), with `METRES` for their unit. Its networks know no colours: assets are grey,
shaded by a lamp, once and for all views.

Letters: n latents, d their width, g points of the grid along an axis, m points.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d.fields.decoded import DecodedConfig
from jax3d.fields.grid import GridConfig
from jax3d.math import safe_norm
from jax3d.mesh import drop_floaters, octree, simplify
from jax3d.nn.vecset import Vecset
from jax3d.render.raster import vertex_normals
from jax3d.types import Mesh, Params

METRES = 0.7
"""Of their unit, which is half the longest side of an object: such a box, to two thirds as wide and
deep as it is long, is inside the ball of 0.95 m that cameras look at."""
BOUND = 1.01 * METRES
"""Half side of the cube in which there are surfaces, metres."""
CELLS = 384
"""Along an axis of the grid that is meshed, as its authors take."""
BAND = 0.95
"""Magnitude of the values around a surface, as its authors take."""
FACES = 40_000
"""Of a mesh, as its authors reduce theirs to."""
CHUNK = 4096
"""Points that are asked together."""


def field(latents: int, width: int, resolution: int = 128) -> DecodedConfig:
    """What latents become; `resolution` is of the grid."""
    grid = GridConfig(resolution, BOUND, shape="box", samples=192)
    return DecodedConfig(grid, latents, width)


def theirs(x: Float[Array, "*m 3"]) -> Float[Array, "*m 3"]:
    """Points of our world in the network's."""
    return x[..., jnp.array([1, 2, 0])] / METRES


# The grid.


def told_by(
    vae: Vecset, params: Params, z: Float[Array, "n d"]
) -> Callable[[Float[Array, "m 3"]], Float[Array, " m"]]:
    """The field of our world that latents stand for, positive inside."""
    mixed = vae.apply({"params": params}, z[None], method="mix")
    return partial(_ask, vae, params, mixed)


def _ask(vae: Vecset, params: Params, mixed: Array, x: Float[Array, "m 3"]) -> Float[Array, " m"]:
    return vae.apply({"params": params}, mixed, theirs(x)[None], method="ask")[0]


def decode(
    field: Callable[[Array], Array], z: Float[Array, "n d"], config: DecodedConfig
) -> dict[str, Array]:
    """An asset's parameters, of `fields.decoded`, from the field that its latents stand for."""
    r = config.grid.resolution
    axis = jnp.linspace(-config.grid.bound, config.grid.bound, r)
    points = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    chunks = jnp.pad(points, ((0, -len(points) % CHUNK), (0, 0))).reshape(-1, CHUNK, 3)
    values = jax.lax.map(field, chunks).reshape(-1)[: len(points)].reshape(r, r, r)
    slopes = jnp.stack(jnp.gradient(values, 2 * config.grid.bound / (r - 1)), axis=-1)
    return {
        "sdf": distances(values, slopes, config.grid),
        "rgb": jax.scipy.special.logit(shaded(-slopes)),
        "latents": z,
    }


def distances(
    values: Float[Array, "g g g"], slopes: Float[Array, "g g g 3"], grid: GridConfig
) -> Float[Array, "g g g"]:
    """Signed distances in metres, negative inside, from values of any unit that are positive there.

    They are |f| / |grad f| (Taubin 1994, eq. 4), true near the surface; far from it, where values
    level off, their sign alone counts: they end at `_FAR` widths of the grid's surface.
    """
    far = _FAR * grid.beta
    slope = jnp.maximum(safe_norm(slopes), jnp.abs(values) / far)
    return -values / jnp.maximum(slope, 1e-12)


_FAR = 16.0


# Colours.

_GREY, _AMBIENT = 0.8, 0.3
_LAMP = np.array([0.6, 0.35, 0.72], np.float32) / np.linalg.norm([0.6, 0.35, 0.72])
"""Where its light comes from: the front, above, a little to the left of who stands there."""


def shaded(normals: Float[Array, "*m 3"]) -> Float[Array, "*m 3"]:
    """The grey, sRGB, of surfaces with these normals, of any length.

    The lamp reaches around the object: no side is as dark as another.
    """
    cosine = normals @ _LAMP / jnp.maximum(safe_norm(normals), 1e-12)
    light = _AMBIENT + (1 - _AMBIENT) * (1 + cosine) / 2
    return jnp.broadcast_to(_GREY * light[..., None], normals.shape)


# The mesh.


def mesher(vae: Vecset, params: Params) -> Callable[..., Mesh]:
    """The function by which a model meshes its assets, from their latents; see `mesh`."""
    mix = jax.jit(partial(vae.apply, method="mix"))
    ask = jax.jit(partial(_ask, vae))

    def own(asset: Params, cells: int = CELLS, faces: int | None = FACES) -> Mesh:
        mixed = mix({"params": params}, jnp.asarray(asset["latents"], jnp.float32)[None])
        return mesh(partial(ask, params, mixed), cells, faces)

    return own


def mesh(field: octree.Field, cells: int = CELLS, faces: int | None = FACES) -> Mesh:
    """The surface of a field of our world, metres, with a colour at each vertex.

    As its authors have it: values on a grid that is fine around the surface alone, marching cubes,
    loose parts dropped, and so many faces left. Their vertices are smaller by R / (R + 1), for R
    cells along an axis, towards a corner of the cube: they divide by the number of points.

    Args:
      field: `field(x[m, 3]) -> [m]`, positive inside.
      cells: along an axis of the grid.
      faces: at most; None keeps all, and what is loose.

    Raises:
      ValueError: there is no surface, or it cannot be brought down to so few faces.
    """
    values = octree.near_surface(field, BOUND, cells, CHUNK, BAND).values
    found = octree.surface(values, BOUND)
    if faces is not None:
        found = simplify(drop_floaters(found), faces)
    normals = vertex_normals(found.vertices, found.faces)
    return found.replace(colors=np.asarray(shaded(jnp.asarray(normals))))
