"""Sums of 3D Gaussians at points: exact, without looking at all of them at each point.

    sum_i [q_i(x) <= reach_i^2] exp(-q_i(x) / 2) c_i,    q_i(x) = |W_i (x - mean_i)|^2

Points are sorted along a Morton curve and cut into cells of 256. A cell's list are the Gaussians
whose box reaches the box of its points: who is not on it adds exactly nothing there, so the sum
does not depend on where cells begin. Lists have no fixed length: the loops are as long as they are.

Letters: n Gaussians, m points, c channels, l cells, p points of a cell, b Gaussians at a time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jax3d.render.sparse import largest_of_batch

_POINTS = 256
"""Of a cell."""
_BLOCK = 64
"""Gaussians in flight."""


class Kernels(NamedTuple):
    """What is summed."""

    means: Float[Array, "n 3"]
    whiten: Float[Array, "n 3 3"]
    """W, which makes the Gaussian a unit ball, 1/metre."""
    reach: Float[Array, " n"]
    """Standard deviations beyond which it is nothing; the cut is not differentiated."""
    channels: Float[Array, "n c"]


def mixture(
    kernels: Kernels, extents: Float[Array, "n 3"], x: Float[Array, "m 3"]
) -> Float[Array, "m c"]:
    """The sum at points; differentiable in the kernels and in the points.

    `extents` are half sides of boxes that hold each Gaussian to its reach, metres; below 0 they
    leave it out.
    """
    order = jnp.argsort(_morton(x))
    cells = -(-len(x) // _POINTS)
    pad = cells * _POINTS - len(x)
    points = jnp.pad(x[order], ((0, pad), (0, 0)), mode="edge").reshape(cells, _POINTS, 3)
    values = _cells(kernels, lax.stop_gradient(extents), points)
    values = values.reshape(cells * _POINTS, -1)[: len(x)]
    return jnp.zeros_like(values).at[order].set(values, unique_indices=True)


def mixture_reference(kernels: Kernels, x: Float[Array, "m 3"]) -> Float[Array, "m c"]:
    """As `mixture`, every Gaussian at every point."""
    return _sum(kernels, x)


def _sum(kernels: Kernels, x: Float[Array, "p 3"]) -> Float[Array, "p c"]:
    away = x[:, None] - kernels.means
    # Component by component: a batch of 3 x 3 products is slow.
    white = [sum(kernels.whiten[:, row, k] * away[..., k] for k in range(3)) for row in range(3)]
    q = sum(w * w for w in white)
    near = q <= kernels.reach**2
    weight = jnp.where(near, jnp.exp(-0.5 * jnp.where(near, q, 0.0)), 0.0)
    return jnp.matmul(weight, kernels.channels, precision="highest")


def _morton(x: Float[Array, "m 3"]) -> Int[Array, " m"]:
    """Places along a Morton curve through the points' bounding cube."""
    low = jnp.min(x, axis=0)
    side = jnp.maximum(jnp.max(x - low), 1e-12)
    cell = jnp.clip((x - low) / side * 1024, 0, 1023).astype(jnp.int32)
    # Ten bits, each moved to three times its place.
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cell = (cell | cell << shift) & mask
    return cell[:, 0] | cell[:, 1] << 1 | cell[:, 2] << 2


@jax.custom_vjp
def _cells(kernels: Kernels, extents, points: Float[Array, "l p 3"]) -> Float[Array, "l p c"]:
    return _forward(kernels, extents, points)[0]


def _forward(kernels, extents, points):
    def cell(x):
        index, blocks = _list(kernels.means, extents, x)

        def block(k, total):
            return total + _sum(_part(kernels, index, k)[1], x)

        nothing = jnp.zeros((len(x), kernels.channels.shape[1]), kernels.channels.dtype)
        return lax.fori_loop(0, blocks, block, nothing)

    return lax.map(cell, points), (kernels, extents, points)


def _backward(saved, dvalues):
    kernels, extents, points = saved

    def cell(dkernels, inputs):
        x, dvalue = inputs
        index, blocks = _list(kernels.means, extents, x)

        def block(k, carry):
            dkernels, dx = carry
            rows, part = _part(kernels, index, k)
            dpart, more = jax.vjp(_sum, part, x)[1](dvalue)
            dkernels = jax.tree.map(lambda d, p: d.at[rows].add(p, mode="drop"), dkernels, dpart)
            return dkernels, dx + more

        return lax.fori_loop(0, blocks, block, (dkernels, jnp.zeros_like(x)))

    nothing = jax.tree.map(jnp.zeros_like, kernels)
    dkernels, dpoints = lax.scan(cell, nothing, (points, dvalues))
    return dkernels, None, dpoints


_cells.defvjp(_forward, _backward)


def _list(means, extents, x: Float[Array, "p 3"]):
    """Indices `[n]` of the Gaussians that reach a cell, then n; and how many blocks they fill."""
    low, high = jnp.min(x, axis=0), jnp.max(x, axis=0)
    reaches = jnp.all((means + extents >= low) & (means - extents <= high), axis=-1)
    (index,) = jnp.nonzero(reaches, size=len(means), fill_value=len(means))
    count = largest_of_batch(jnp.sum(reaches, dtype=jnp.int32))
    return index.astype(jnp.int32), (count + _BLOCK - 1) // _BLOCK


def _part(kernels: Kernels, index, k):
    """The k-th block of a list, and its rows; beyond the list there are kernels of no channels."""
    place = k * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)
    rows = index.at[place].get(mode="fill", fill_value=len(kernels.means))
    return rows, jax.tree.map(lambda x: x.at[rows].get(mode="fill", fill_value=0), kernels)
