"""Many assets over many devices: one program, one axis, no communication.

Letters: A assets, D devices, k steps of a block.

A `Slot` is a place for one asset in a compiled program: its state, what it is asked for, and how
far it may go. A block takes every slot k steps further, unless it has reached its end or its
numbers stopped being finite; such a slot rests and costs its neighbours nothing. Slots are laid
over a one-axis mesh of devices named `assets` and never talk to each other.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from jax3d.knobs import Knobs
from jax3d.optimize.stage import State, Step
from jax3d.types import Numbers, Params

Over = Literal["vmap", "map"]
"""How one device takes its assets: as one batch, which accelerators like, or one by one, which
keeps a CPU's caches warm."""


def natural_over(backend: str | None = None) -> Over:
    """The faster way on a backend, by default the one that JAX runs on."""
    return "map" if (backend or jax.default_backend()) == "cpu" else "vmap"


@struct.dataclass
class Slot:
    """One asset in a program, or none (`until` 0)."""

    state: State
    cond: Any
    knobs: Knobs
    step: Int[Numbers, "*A"]
    """Steps that the asset has taken in this stage."""
    until: Int[Numbers, "*A"]
    """Steps after which this program is done with the asset."""
    healthy: Bool[Numbers, "*A"]
    """False once a step gave a number that is not finite; the state is the last good one."""


def block(step: Step, k: int) -> Callable[[Slot, Params], tuple[Slot, dict[str, Array]]]:
    """`k` guarded steps of one asset: `(Slot, shared) -> (Slot, metrics)`.

    A step that yields a number that is not finite, in the state or the metrics, is not taken: the
    slot keeps its last good state and rests from then on. Metrics are `[k]`, NaN for the steps not
    taken.
    """

    def guarded(slot: Slot, shared):
        def advance(slot):
            state, metrics = step(slot.state, shared, slot.cond, slot.knobs)
            healthy = _all_finite((state, metrics))
            kept = jax.tree.map(lambda new, old: jnp.where(healthy, new, old), state, slot.state)
            taken = slot.step + healthy.astype(slot.step.dtype)
            return slot.replace(state=kept, step=taken, healthy=healthy), metrics

        def rest(slot):
            metrics = jax.eval_shape(lambda slot: advance(slot)[1], slot)
            return slot, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), metrics)

        return lax.cond(slot.healthy & (slot.step < slot.until), advance, rest, slot)

    def run(slot: Slot, shared):
        return lax.scan(lambda slot, _: guarded(slot, shared), slot, length=k)

    return run


def _all_finite(tree) -> Bool[Array, ""]:
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    checks = [jnp.all(jnp.isfinite(x)) for x in numbers]
    return jnp.all(jnp.stack(checks))


def assets_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The one-axis mesh `assets`; by default over the devices of this process."""
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("assets",), (AxisType.Auto,), devices=devices)


def place(mesh: Mesh, tree: Any, *, over_assets: bool) -> Any:
    """Lays a tree over the devices: its leading axis shared out, or a whole copy on each."""
    spec = PartitionSpec("assets") if over_assets else PartitionSpec()
    return jax.device_put(tree, NamedSharding(mesh, spec))


def pmap_assets(
    one: Callable[[Any, Any], tuple[Any, Any]],
    mesh: Mesh,
    *,
    over: Over = "vmap",
    backend: Literal["shard_map", "pmap"] = "shard_map",
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Maps a function of one asset over all assets on all devices.

    Args:
      one: `(slot, shared) -> (slot, result)` of one asset.
      mesh: From `assets_mesh`.
      over: How a device takes its share.
      backend: "shard_map" compiles to one program over the mesh; "pmap" runs the same through
        `jax.pmap`, whose dispatch is slower.

    Returns:
      `(slots[A], shared) -> (slots[A], results[A])`. The slots are donated; `shared` is the same
      on every device. A that the devices do not divide is padded by repeating the last asset, at
      the price of a copy.
    """

    def share(slots, shared):
        if over == "vmap":
            return jax.vmap(one, (0, None))(slots, shared)
        return lax.map(lambda slot: one(slot, shared), slots)

    devices = list(mesh.devices.flat)
    if backend == "shard_map":
        assets, everywhere = PartitionSpec("assets"), PartitionSpec()
        # The replication check does not see through `lax.cond`; nothing here is reduced over it.
        spread = jax.shard_map(
            share, mesh=mesh, in_specs=(assets, everywhere), out_specs=assets, check_vma=False
        )
    else:
        per_device = jax.pmap(share, in_axes=(0, None), devices=devices)

        def spread(slots, shared):
            cut = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), slots)
            done = per_device(cut, shared)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), done)

    def run(slots, shared):
        count = jax.tree.leaves(slots)[0].shape[0]
        missing = -count % len(devices)
        if not missing:
            return spread(slots, shared)
        padded = jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * missing]), slots)
        return jax.tree.map(lambda x: x[:count], spread(padded, shared))

    return jax.jit(run, donate_argnums=0)


def bytes_of(tree: Any) -> int:
    """Bytes of all leaves of a tree of arrays or of their shapes."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def host_cores() -> int:
    """Cores that this process may use: a cluster gives a job some of a machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_bytes(device: jax.Device) -> int:
    """Memory that one device may fill: what its allocator states, or a share of the host's."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(0.9 * stats["bytes_limit"])
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // 2 // len(jax.local_devices())
