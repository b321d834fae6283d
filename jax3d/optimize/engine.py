"""The sweep engine: any number of assets through a few slots, killed and resumed at will.

A sweep has a queue of tasks and, for each stage of the recipe, a pool of slots: one compiled
program each. An asset enters the first pool, moves on when the stage is done, and leaves by its
last step, by a plateau or by numbers that stopped being finite; its slot is filled again at once,
so a program rests only when nothing is left for it. Of the pools that are full, or that nothing
more can reach, the one of the latest stage runs.

What an asset becomes depends on its task alone. Its blocks of steps begin at the same steps of its
own wherever it runs, so that even its early stop does not depend on its neighbours.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax3d.optimize import parallel
from jax3d.optimize.asset import Optimiser
from jax3d.optimize.checkpoint import Checkpoints
from jax3d.optimize.parallel import Over, Slot
from jax3d.render import sparse
from jax3d.types import AssetState, Condition, Knobs, Params

Status = Literal["running", "done", "plateau", "nonfinite"]

MOST = 64
"""Slots a device, unless more are asked for."""

MOST_WRITERS = 8
"""Threads that finish assets, unless more are asked for: each holds a mesh in the making."""


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs. Only `patience` and `tolerance` change what an asset becomes, save for
    the rounding that `over` tells of."""

    slots: int | None = None
    """Assets in a program at once; None takes as many as the devices' memory holds."""
    over: Over | None = None
    """How a device takes its assets. One by one ("map"), an asset is the same to the last bit in
    any company; as a batch ("vmap"), its sums are rounded by the size of the batch. None: "map" on
    a CPU, "vmap" elsewhere, which are the faster ones."""
    block: int = 20
    """Steps between two looks at the numbers."""
    checkpoint_every: int = 25
    """Blocks between two checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    writers: int | None = None
    """Threads of the host that finish assets while the devices go on; None: one a core, up to 8."""
    patience: int = 0
    """Stops an asset of the last stage when its residual norm, averaged over a block, has not
    fallen for so many blocks; 0 never does."""
    tolerance: float = 0.01
    """Share by which the norm must fall to count as falling."""


class Task(NamedTuple):
    """One asset to optimize."""

    cond: Condition
    knobs: Knobs
    ends: tuple[int, ...]
    """The step that ends each stage."""


@dataclass
class Track:
    """What the host knows of an asset on its way."""

    index: int
    ends: tuple[int, ...]
    step: int = 0
    best: float = float("inf")
    """Lowest residual norm of a block of the last stage."""
    stale: int = 0
    """Blocks since then."""
    residual_norm: float = float("nan")
    """Mean over the last block."""
    device_seconds: float = 0.0
    """Time of the blocks it was in, times devices, over the assets that shared them."""
    status: Status = "running"

    @property
    def stage(self) -> int:
        """The stage of the next step."""
        return next(stage for stage, end in enumerate(self.ends) if self.step < end)


class Outcome(NamedTuple):
    """A finished asset."""

    track: Track
    params: Params
    """On the host."""


class Report(NamedTuple):
    """What is known after a block."""

    tracks: list[Track]
    """Of the assets in the block."""
    steps: int
    """Taken in this block by all of them together."""
    finished: int
    """Assets of this sweep that are safe by now."""


class OutOfMemory(Exception):
    """The program does not fit the devices with this many slots."""


@dataclass(frozen=True)
class Sweep:
    """What is swept, and on what; `run` does it."""

    optimiser: Optimiser
    sizes: Sequence[int]
    """Side of the renders of each stage, pixels."""
    prior_params: Any
    task: Callable[[int], Task]
    """The task of an asset by its index; called when it enters, so that a long queue costs
    nothing."""
    config: EngineConfig = field(default_factory=EngineConfig)
    backend: Literal["shard_map", "pmap"] = "shard_map"
    devices: Sequence[jax.Device] | None = None
    """By default those of this process."""


def run(
    sweep: Sweep,
    indices: Iterable[int],
    finished: Callable[[Outcome], None],
    report: Callable[[Report], None] = lambda report: None,
    checkpoints: Checkpoints | None = None,
    others: Sequence[Checkpoints] = (),
) -> None:
    """Takes assets from where the checkpoints have them to their end.

    Args:
      sweep: What is swept.
      indices: The assets that are wanted, in the order in which they enter.
      finished: Called with each finished asset, in other threads and several at once. Once it
        returns, the asset is safe and leaves the checkpoints; what it raises ends the sweep.
      report: Called after each block.
      checkpoints: Written to and resumed from.
      others: Resumed from only, such as those of a process that is no more.

    Raises:
      OutOfMemory: Not even one asset a device fits.
    """
    wanted = list(dict.fromkeys(indices))
    if not wanted:
        return
    mesh = parallel.assets_mesh(sweep.devices)
    program = _Program(sweep, mesh, sweep.task(wanted[0]))
    slots = program.slots_that_fit(len(wanted))
    safe: set[int] = set()
    while True:
        try:
            left = [index for index in wanted if index not in safe]
            _Run(program, slots, left, safe, finished, report, checkpoints).go(others)
            return
        except OutOfMemory:
            if slots == mesh.size:
                raise
            # The assets go on from their last checkpoint, or from their start.
            slots = max(slots // 2 // mesh.size, 1) * mesh.size


class _Program:
    """The compiled functions of a sweep, shared by all its attempts."""

    def __init__(self, sweep: Sweep, mesh, example: Task):
        self.sweep, self.mesh = sweep, mesh
        self.over = sweep.config.over or sparse.plan().over
        self.prior_params = parallel.place(mesh, sweep.prior_params, over_assets=False)
        self.init = jax.jit(sweep.optimiser.init)
        self.slot = self.fill(example, self.init(example.knobs))
        shared = NamedSharding(mesh, PartitionSpec("assets"))
        whole = NamedSharding(mesh, PartitionSpec())
        self.put = jax.jit(
            lambda slots, i, slot: jax.tree.map(lambda x, y: x.at[i].set(y), slots, slot),
            donate_argnums=0,
            out_shardings=shared,
        )
        self.take = jax.jit(
            lambda slots, i: jax.tree.map(lambda x: x[i], slots.state), out_shardings=whole
        )
        self.empty = jax.jit(
            lambda count: jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), self.slot),
            static_argnums=0,
            out_shardings=shared,
        )
        self._blocks, self._warm = {}, set()

    @staticmethod
    def fill(task: Task, state: AssetState) -> Slot:
        """An asset in its slot, with nothing to do yet."""
        return Slot(state, task.cond, task.knobs, jnp.int32(0), jnp.bool(True))

    def mapped(self, size: int):
        """The block of steps at one resolution, over all devices."""
        sweep = self.sweep
        steps = parallel.block(sweep.optimiser.step, sweep.config.block, size)
        return parallel.pmap_assets(steps, self.mesh, over=self.over, backend=sweep.backend)

    def block(self, size: int, count: int):
        """The same, compiled for this many slots: that time belongs to no asset."""
        if size not in self._blocks:
            self._blocks[size] = self.mapped(size)
        if (size, count) not in self._warm:
            with _out_of_memory():
                jax.block_until_ready(self._blocks[size](self.empty(count), self.prior_params))
            self._warm.add((size, count))
        return self._blocks[size]

    def slots_that_fit(self, wanted: int) -> int:
        """Slots to run `wanted` assets with, a multiple of the devices."""
        devices = self.mesh.size
        asked = self.sweep.config.slots
        most = min(wanted, MOST * devices if asked is None else asked)
        a_device = -(-most // devices)
        if asked is None:
            a_device = min(a_device, self._fit_a_device())
        return a_device * devices

    def _fit_a_device(self) -> int:
        budget = parallel.device_bytes(self.mesh.devices.flat[0])
        budget -= parallel.bytes_of(self.prior_params)
        pools = 2 * len(self.sweep.sizes)  # each stage has its slots, and as many may wait for it
        each = pools * parallel.bytes_of(self.slot)
        if self.over == "vmap":
            # What a program needs beside its arguments grows in proportion to its assets.
            one, two = (self._temporaries(n * self.mesh.size) for n in (1, 2))
            each += max(two - one, 0)
            budget -= max(2 * one - two, 0)
        return max(budget // each, 1)

    def _temporaries(self, count: int) -> int:
        lowered = self.mapped(max(self.sweep.sizes)).lower(self.empty(count), self.prior_params)
        analysis = lowered.compile().memory_analysis()
        return 0 if analysis is None else analysis.temp_size_in_bytes


class _out_of_memory:
    """Turns the device's own error into `OutOfMemory`."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error).splitlines()[0]) from error


@dataclass
class _Pool:
    """The slots of one stage; `who` says which asset is where."""

    slots: Slot | None
    who: list[Track | None]


class _Run:
    """One attempt at a sweep with a fixed number of slots."""

    def __init__(self, program, slots, left, safe, finished, report, checkpoints):
        self.program, self.config = program, program.sweep.config
        self.sizes, self.task = program.sweep.sizes, program.sweep.task
        self.queue = deque(left)
        self.waiting = [deque() for _ in self.sizes]
        self.pools = [_Pool(None, [None] * slots) for _ in self.sizes]
        self.finishing: dict[int, tuple[Track, AssetState, Future]] = {}
        self.safe, self.finished, self.report = safe, finished, report
        self.checkpoints = checkpoints
        writers = self.config.writers
        if writers is None:
            writers = min(parallel.host_cores(), MOST_WRITERS)
        self.writers = ThreadPoolExecutor(writers)

    def go(self, others: Sequence[Checkpoints]) -> None:
        try:
            self.resume([c for c in (self.checkpoints, *others) if c is not None])
            count = 0
            while (stage := self.next_stage()) is not None:
                self.advance(stage)
                count += 1
                self.collect(at_most=2 * len(self.pools[0].who))
                if self.checkpoints and count % self.config.checkpoint_every == 0:
                    self.save()
            self.collect(at_most=0)
            if self.checkpoints:
                self.checkpoints.wait()
        finally:
            self.writers.shutdown(wait=True, cancel_futures=True)

    def next_stage(self) -> int | None:
        """Fills the pools and names the one to run; None when all is done."""
        for stage in reversed(range(len(self.pools))):
            self.fill(stage)
            pool, before = self.pools[stage], range(stage)
            more = bool(self.queue) or any(
                self.waiting[s] or any(self.pools[s].who) for s in before
            )
            if any(pool.who) and (all(pool.who) or not more):
                return stage
        return None

    def fill(self, stage: int) -> None:
        """Puts assets into the free slots of a pool."""
        pool = self.pools[stage]
        for i, track in enumerate(pool.who):
            if track is not None:
                continue
            if not self.waiting[stage] and stage == 0:
                self.admit()
            if not self.waiting[stage]:
                return
            track, state = self.waiting[stage].popleft()
            task = self.task(track.index)
            slot = self.program.fill(task, state).replace(until=jnp.int32(track.ends[stage]))
            if pool.slots is None:
                pool.slots = self.program.empty(len(pool.who))
            pool.slots = self.program.put(pool.slots, i, slot)
            pool.who[i] = track

    def admit(self) -> None:
        """Starts assets of the queue until one waits for the first stage."""
        while self.queue and not self.waiting[0]:
            index = self.queue.popleft()
            task = self.task(index)
            self.route(Track(index, task.ends), self.program.init(task.knobs))

    def route(self, track: Track, state: AssetState) -> None:
        """Sends an asset to its next stage, or out."""
        if track.status == "running" and track.step >= track.ends[-1]:
            track.status = "done"
        if track.status == "running":
            self.waiting[track.stage].append((track, state))
            return
        state = jax.device_get(state)
        future = self.writers.submit(self.finished, Outcome(track, state.params))
        self.finishing[track.index] = (track, state, future)

    def advance(self, stage: int) -> None:
        """Runs one block of a pool and moves on the assets that are done with it."""
        pool, size = self.pools[stage], self.sizes[stage]
        program = self.program.block(size, len(pool.who))
        started = time.perf_counter()
        with _out_of_memory():
            pool.slots, metrics = program(pool.slots, self.program.prior_params)
            steps, healthy = jax.device_get((pool.slots.state.step, pool.slots.healthy))
        seconds = (time.perf_counter() - started) * self.program.mesh.size
        norms = np.asarray(metrics["residual_norm"])
        tracks = [track for track in pool.who if track is not None]
        before = sum(track.step for track in tracks)
        for i, track in enumerate(pool.who):
            if track is None:
                continue
            track.step = int(steps[i])
            track.device_seconds += seconds / len(tracks)
            self.judge(track, norms[i], bool(healthy[i]), stage)
            if track.status != "running" or track.step >= track.ends[stage]:
                self.route(track, self.program.take(pool.slots, i))
                pool.who[i] = None
        taken = sum(track.step for track in tracks) - before
        self.report(Report(tracks, taken, len(self.safe)))

    def judge(self, track: Track, norms: np.ndarray, healthy: bool, stage: int) -> None:
        """Notes what a block says of an asset: whether it may go on."""
        taken = norms[np.isfinite(norms)]
        if taken.size:
            track.residual_norm = float(taken.mean())
        if not healthy:
            track.status = "nonfinite"
        elif self.config.patience and stage == len(self.sizes) - 1:
            if track.residual_norm < track.best * (1 - self.config.tolerance):
                track.best, track.stale = track.residual_norm, 0
            else:
                track.stale += 1
                if track.stale >= self.config.patience and track.step < track.ends[-1]:
                    track.status = "plateau"

    def collect(self, at_most: int) -> None:
        """Lets go of the assets that are safe, and waits while more than `at_most` are not."""
        for index, (_, _, future) in list(self.finishing.items()):
            if future.done() or len(self.finishing) > at_most:
                future.result()
                del self.finishing[index]
                self.safe.add(index)

    def save(self) -> None:
        """Checkpoints every asset on its way."""
        rows = [(track, jax.device_get(state)) for each in self.waiting for track, state in each]
        rows += [(track, state) for track, state, _ in self.finishing.values()]
        for pool in self.pools:
            if any(pool.who):
                states = jax.device_get(pool.slots.state)
                rows += [
                    (track, jax.tree.map(lambda x, i=i: x[i], states))
                    for i, track in enumerate(pool.who)
                    if track is not None
                ]
        if rows:
            tracks, states = zip(*rows, strict=True)
            stacked = jax.tree.map(lambda *x: np.stack(x), *states)
            self.checkpoints.save(stacked, {"tracks": [asdict(track) for track in tracks]})

    def resume(self, folders: Sequence[Checkpoints]) -> None:
        """Takes the assets that checkpoints hold out of the queue and sends them on."""
        found: dict[int, tuple[Track, AssetState]] = {}
        wanted = set(self.queue)
        for checkpoints in folders:
            loaded = checkpoints.load(partial(_abstract, self.program.slot.state, wanted))
            if loaded is None:
                continue
            states, about = loaded
            for i, entry in enumerate(about["tracks"]):
                track = Track(**{**entry, "ends": tuple(entry["ends"])})
                known = found.get(track.index)
                if track.index in wanted and (known is None or known[0].step < track.step):
                    found[track.index] = (track, jax.tree.map(lambda x, i=i: x[i], states))
        self.queue = deque(index for index in self.queue if index not in found)
        for track, state in found.values():
            self.route(track, state)


def _abstract(state: AssetState, wanted: set[int], about) -> AssetState | None:
    if wanted.isdisjoint(track["index"] for track in about["tracks"]):
        return None
    count = len(about["tracks"])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), state)
