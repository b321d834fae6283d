"""Evaluating a field only where a ray can see something, without keeping what it computed.

The field is split where it is linear: h = gather(table, x), a weighted sum of table rows, then a
small network `head(net, h, x)`. Reverse mode would store h and every hidden layer for all n s
samples. Instead the samples go through in chunks, and the backward pass computes each chunk again:

    forward, per chunk:   h = gather(table, x);  out[chunk] = head(net, h, x)
    backward, per chunk:  (dnet, dh) = vjp(head)(dout[chunk]);  scatter(dtable, x, dh)

so nothing of size [n s, hidden] exists, and scatter adds into one accumulator in place. The
backward loop carries the h of the next chunk: XLA would otherwise fuse the lookup into each of
h's consumers and do it twice.

Which samples matter is read off a coarse lattice of densities, dilated (its neighbourhood's
maximum) to find empty space and eroded (its minimum) to find what lies behind opaque matter; both
are on the safe side. The samples that are left are found by rank, and the loop runs for as many
chunks as they fill: the work follows the scene, and there is no budget to choose or to overflow.

Once evaluated, a kept sample's own density says whether it is visible. All that were kept are in
the picture, but those that are not visible are held still (`hold`), and the backward pass, which
costs most, goes through the samples whose cotangent is not zero.

Letters: n rays, s samples along a ray, m = n s, g lattice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax3d import interp, stepfun
from jax3d.bounds import Count
from jax3d.types import Params, Rays


@dataclass(frozen=True)
class Plan:
    """What is fast depends on the machine; the numbers are the same but for rounding."""

    fold: bool
    """Apply the network's first layer to the table before the lookup, which is linear too. Saves
    arithmetic at the samples and widens the rows: right where arithmetic is the limit."""
    chunk: Count
    """Samples in flight."""
    dtype: str | None
    """Of the table's rows; `None` is that of the parameters."""


CPU = Plan(fold=True, chunk=1024, dtype=None)
ACCELERATOR = Plan(fold=False, chunk=65536, dtype="bfloat16")


def plan(backend: str | None = None) -> Plan:
    """The plan of a backend, by default the one that JAX runs on."""
    return CPU if (backend or jax.default_backend()) == "cpu" else ACCELERATOR


class Split(NamedTuple):
    """A field that is linear in a table; its parameters are the pair `(table, net)`."""

    gather: Callable[[Any, Any], Any]
    """`gather(table, x[m, 3]) -> h[m, ...]`, linear in `table`"""
    scatter: Callable[[Any, Any, Any], Any]
    """`scatter(table, x, dh) -> table` plus the transpose of `gather` applied to `dh`"""
    head: Callable[[Any, Any, Any], Any]
    """`head(net, h, x) -> Samples`"""

    def __call__(self, params: Params, x: Float[Array, "m 3"]) -> Any:
        """The field as one function, for the reference renderer."""
        table, net = params
        return self.head(net, self.gather(table, x), x)


def evaluate(
    field: Split,
    params: Params,
    rays: Rays,
    t: Float[Array, "n s"],
    keep: Bool[Array, "n s"] | None = None,
    chunk: int = 1024,
) -> Any:
    """The field's `Samples`, `[n * s]`, at `t` along flat rays; zero where not kept.

    Differentiable in `params` alone: raises `NotImplementedError` when asked for gradients of
    the rays, which `volume.render_reference` gives.
    """
    lines = (_constant(rays.origins), _constant(rays.directions), _constant(t))
    return _evaluate(field, chunk, params, lines, keep)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _evaluate(field, chunk, params, lines, keep):
    return _forward(field, chunk, params, lines, keep)[0]


def _forward(field, chunk, params, lines, keep):
    (table, net), t = params, lines[2]
    trips, find = _schedule(t.size, keep, chunk)

    def body(i, out):
        index = find(i)
        x = _points(lines, index)
        values = field.head(net, field.gather(table, x), x)
        return jax.tree.map(
            lambda o, v: o.at[index].set(
                v, mode="drop", indices_are_sorted=True, unique_indices=True
            ),
            out,
            values,
        )

    one_chunk = jax.eval_shape(
        lambda p, x: field(p, x), params, jax.ShapeDtypeStruct((chunk, 3), t.dtype)
    )
    out = jax.tree.map(lambda a: jnp.zeros((t.size, *a.shape[1:]), a.dtype), one_chunk)
    return lax.fori_loop(0, trips, body, out), (params, lines, keep)


def _backward(field, chunk, saved, cotangents):
    (table, net), lines, keep = saved
    if keep is not None:
        keep = keep & _any_nonzero(cotangents).reshape(keep.shape)
    trips, find = _schedule(lines[2].size, keep, chunk)

    def ahead(i):
        index = find(i)
        x = _points(lines, index)
        return index, x, field.gather(table, x)

    def body(i, carry):
        dtable, dnet, (index, x, h) = carry
        dout = jax.tree.map(lambda c: c.at[index].get(mode="fill", fill_value=0), cotangents)
        _, pull = jax.vjp(lambda net, h: field.head(net, h, x), net, h)
        more, dh = pull(dout)
        dtable = field.scatter(dtable, x, dh)
        return dtable, jax.tree.map(jnp.add, dnet, more), ahead(i + 1)

    # Thousands of small terms meet in a row: narrow tables are summed wide.
    wide = jnp.zeros(table.shape, jnp.promote_types(table.dtype, jnp.float32))
    start = (wide, jax.tree.map(jnp.zeros_like, net), ahead(0))
    dtable, dnet, _ = lax.fori_loop(0, trips, body, start)
    return (dtable.astype(table.dtype), dnet), None, None


_evaluate.defvjp(_forward, _backward)


@jax.custom_jvp
def _constant(x):
    return x


@_constant.defjvp
def _no_gradient(primals, tangents):
    raise NotImplementedError(
        "the fast renderer has no gradient for cameras or rays; use volume.render_reference"
    )


def _any_nonzero(samples: Any) -> Bool[Array, " m"]:
    """Which samples have an entry that is not zero."""
    leaves = [a.reshape(len(a), -1) for a in jax.tree.leaves(samples)]
    return reduce(jnp.logical_or, [a[:, i] != 0 for a in leaves for i in range(a.shape[1])])


def _rank(keep: Bool[Array, "n s"]) -> Int[Array, " m"]:
    """How many samples are kept up to and including each."""
    within = stepfun.running_sum(keep.astype(jnp.float32)).astype(jnp.int32)
    rays = jnp.cumsum(within[:, -1])
    return (within + jnp.pad(rays[:-1], (1, 0))[:, None]).reshape(-1)


def _schedule(m: int, keep: Bool[Array, "n s"] | None, chunk: int):
    """How many chunks there are, and chunk i: ascending flat indices, past the end >= m."""
    slots = jnp.arange(chunk, dtype=jnp.int32)
    if keep is None:
        return -(-m // chunk), lambda i: i * chunk + slots
    rank = _rank(keep)
    trips = (largest_of_batch(rank[-1]) + chunk - 1) // chunk

    def find(i):
        index = jnp.searchsorted(rank, i * chunk + slots + 1).astype(jnp.int32)
        return jnp.where(index < m, index, m + slots)

    return trips, find


@jax.custom_batching.custom_vmap
def largest_of_batch(count):
    """The largest count of a vmapped batch: one loop bound for all, as superfluous chunks are
    empty. A bound per member would have XLA select whole accumulators in each turn."""
    return count


@largest_of_batch.def_vmap
def _the_largest(axis_size, in_batched, count):
    del axis_size, in_batched
    return jnp.max(count), False


def _points(lines, index: Int[Array, " c"]) -> Float[Array, "c 3"]:
    """Points of flat sample indices; those past the end repeat the last."""
    origins, directions, t = lines
    index = jnp.minimum(index, t.size - 1)
    ray = index // t.shape[1]
    return origins[ray] + t.reshape(-1)[index][:, None] * directions[ray]


class Bounds(NamedTuple):
    """What the density surely is between, around each point of a lattice."""

    high: Float[Array, "g g g"]
    low: Float[Array, "g g g"]

    def at(
        self, x: Float[Array, "m 3"], bound: float
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """The bounds at points; the lattice spans `[-bound, bound]^3`."""
        unit = x / (2 * bound) + 0.5
        return interp.nearest(self.high, unit), interp.nearest(self.low, unit)


def bounds(lattice: Float[Array, "g g g"]) -> Bounds:
    """The dilated and the eroded densities of a lattice."""
    high = neighbourhood(lattice, lax.max, -jnp.inf)
    return Bounds(high, neighbourhood(lattice, lax.min, jnp.inf))


def occupied(
    bounds: Bounds,
    rays: Rays,
    edges: Float[Array, "n e"],
    t: Float[Array, "n s"],
    bound: float,
    cull: float,
) -> Bool[Array, "n s"]:
    """Which samples of flat rays can be `visible`, by the bounds of their density."""
    x = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
    high, low = bounds.at(x.reshape(-1, 3), bound)
    return visible(high.reshape(t.shape), low.reshape(t.shape), edges, cull)


def visible(
    high: Float[Array, "n s"], low: Float[Array, "n s"], edges: Float[Array, "n e"], cull: float
) -> Bool[Array, "n s"]:
    """Where the opacity, by the density `high`, is above `cull`, and so is the ray's
    transmittance before the sample, by the density `low`.
    """
    delta = jnp.diff(edges, axis=-1)
    depth = stepfun.running_sum(low * delta)
    before = jnp.pad(depth[:, :-1], ((0, 0), (1, 0)))
    return (high * delta > -jnp.log1p(-cull)) & (before < -jnp.log(cull))


def hold(samples: Any, free: Bool[Array, "n s"]) -> Any:
    """The same `samples`, with a gradient where they are `free` alone."""

    def held(a):
        return jnp.where(free.reshape(-1, *(1,) * (a.ndim - 1)), a, lax.stop_gradient(a))

    return jax.tree.map(held, samples)


def neighbourhood(
    lattice: Float[Array, "g g g"], choose: Callable[[Any, Any], Any], nothing: float
) -> Float[Array, "g g g"]:
    """The maximum or minimum over the 3x3x3 neighbours of each lattice point.

    `nothing` is chosen over by everything. The windows are XLA's, axis by axis, so that the
    result is stored: arithmetic on shifted slices would be done again in every lookup.
    """
    for axis in range(3):
        window = tuple(3 if a == axis else 1 for a in range(3))
        start = jnp.asarray(nothing, lattice.dtype)
        lattice = lax.reduce_window(lattice, start, choose, window, (1, 1, 1), "SAME")
    return lattice
