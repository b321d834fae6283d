"""InstantMesh's surfaces: assets of its mesh variant, and how FlexiCubes meshes them.

Four networks read the features of three planes: a distance, positive inside and in a unit of its
own, a colour, how far each point of a lattice moves, and the weights of each cube. The first two
are the asset's, joined to the one network of a `fields.triplane`; the others only move what is
meshed, are seen in no render, and stay the model's.

Letters: n points or cubes, f features.
"""

from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jax3d.fields import triplane
from jax3d.fields.triplane import TriplaneConfig
from jax3d.math import safe_norm
from jax3d.mesh import flexicubes
from jax3d.mesh.extract import evaluate
from jax3d.types import Mesh, Params


class Lattice(NamedTuple):
    """Of FlexiCubes."""

    cells: int
    """Cubes along an axis."""
    side: float
    """Of the whole, metres."""


def joined(a: list[Params], b: list[Params]) -> list[Params]:
    """One network that tells what two of the same input tell: side by side, apart by zeros."""
    first, *rest = (
        {"b": jnp.concatenate([p["b"], q["b"]]), "w": (p["w"], q["w"])}
        for p, q in zip(a, b, strict=True)
    )
    first["w"] = jnp.concatenate(first["w"], axis=1)
    return [first, *({**layer, "w": jax.scipy.linalg.block_diag(*layer["w"])} for layer in rest)]


def in_metres(asset: Params, field: TriplaneConfig) -> Params:
    """An asset of the mesh variant whose distances grow by 1 a metre, on average at the surface.

    The network's unit is its own, for a mesh depends on ratios of distances alone; a density does
    not. The slope is looked up at half as many points along an axis as the field's lattice has;
    without a surface the asset stays as it is.
    """
    axis = jnp.linspace(-field.bound, field.bound, max(field.lattice // 2, 2))
    x = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    distance, pull = jax.vjp(lambda x: triplane.outputs(asset, x, field)[:, 0], x)
    slope = safe_norm(pull(jnp.ones_like(distance))[0])
    near = jnp.abs(distance) < slope * (axis[1] - axis[0])
    mean = jnp.sum(slope, where=near) / jnp.maximum(jnp.sum(near), 1)
    scale = jnp.where(jnp.any(near), 1.0 / jnp.where(mean > 0, mean, 1.0), 1.0)
    *layers, last = asset["mlp"]
    last = {"w": last["w"].at[:, 0].multiply(scale), "b": last["b"].at[0].multiply(scale)}
    return {**asset, "mlp": [*layers, last]}


def mesh(asset: Params, heads: Params, field: TriplaneConfig, lattice: Lattice) -> Mesh:
    """An asset's surface by FlexiCubes with a colour at each vertex, on the host.

    FlexiCubes takes negative for inside and these distances are positive there, which the networks
    learnt with: ambiguous cubes show it. The faces are turned outwards afterwards.

    Args:
      asset: its parameters.
      heads: the frozen networks `deformation` and `weight`, of the model.
      field: of the asset.
      lattice: on which it is meshed.

    Raises:
      ValueError: there is no surface.
    """
    asset, heads = jax.device_put((asset, heads))
    n, x = lattice.cells, flexicubes.lattice(*lattice)
    sdf = evaluate(partial(distance, asset, field=field), x)
    found = flexicubes.topology(sdf.reshape(n + 1, n + 1, n + 1))
    # Only what lies at the surface is asked the other two.
    ends, cubes = np.unique(found.ends), np.unique(found.cube)
    moved, raw = x.copy(), np.zeros((n**3, flexicubes.RAW), np.float32)
    read = partial(deformation, asset, heads["deformation"], field=field)
    moved[ends] += evaluate(read, x[ends]) / (4 * n)
    first = x[np.ravel_multi_index(np.unravel_index(cubes, (n,) * 3), (n + 1,) * 3)]
    cell = lattice.side / n
    raw[cubes] = evaluate(
        partial(raw_weights, asset, heads["weight"], field=field, cell=cell), first
    )
    weights = flexicubes.activated(raw)
    placed = np.asarray(flexicubes.vertices(found, moved, sdf, weights))
    faces = flexicubes.faces(found, np.asarray(weights.gamma))
    return Mesh(placed, faces[:, ::-1], evaluate(partial(color, asset, field=field), placed))


_compiled = partial(jax.jit, static_argnames="field")


@_compiled
def distance(asset: Params, x: Float[Array, "n 3"], field: TriplaneConfig) -> Float[Array, " n"]:
    """To the surface, positive inside."""
    return triplane.outputs(asset, x, field)[:, 0]


@_compiled
def color(asset: Params, x: Float[Array, "n 3"], field: TriplaneConfig) -> Float[Array, "n 3"]:
    """Albedo, sRGB in [0, 1]."""
    return field.build().color(asset, x)


@_compiled
def deformation(
    asset: Params, layers: list, x: Float[Array, "n 3"], field: TriplaneConfig
) -> Float[Array, "n 3"]:
    """How far points of a lattice move, in (-1, 1) of what they may."""
    return jnp.tanh(triplane.perceptron(layers, triplane.features(asset, x, field), jax.nn.relu))


@_compiled
def raw_weights(
    asset: Params, layers: list, x: Float[Array, "n 3"], field: TriplaneConfig, cell: ArrayLike
) -> Float[Array, "n 21"]:
    """Numbers for `flexicubes.activated` of cubes of side `cell` with lowest corners at `x`."""
    corners = np.array([bits[::-1] for bits in product((0, 1), repeat=3)])  # x is the fastest
    read = triplane.features(asset, x[:, None] + cell * corners, field)
    return 0.1 * triplane.perceptron(layers, read.reshape(len(x), -1), jax.nn.relu)
