"""The engine: any number of assets through the stages of a recipe, killed and resumed at will.

A run has a queue of tasks and, for each stage, a pool of slots: one compiled program each. An asset
enters the first pool, moves on when the stage is done, and leaves by its last step, by a plateau or
by numbers that stopped being finite; its slot is filled again at once, so a program rests only when
nothing is left for it. Of the pools that are full, or that nothing more can reach, the one of the
latest stage runs.

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

from jax3d.bounds import Count, Natural, NonNegative, Share
from jax3d.optimize import parallel
from jax3d.optimize.checkpoint import Checkpoints
from jax3d.optimize.parallel import Over, Slot
from jax3d.optimize.stage import Left, Stage, State, Task, abstract_states, step_flops
from jax3d.types import Params

Status = Literal["running", "done", "plateau", "nonfinite", "failed"]

MOST = 64
"""Slots a device, unless more are asked for."""

# For programs that run once an asset. Of an initialisation's random numbers LLVM's full pipeline
# takes six times as long, for the same bits.
_QUICK = {"xla_backend_optimization_level": 1}

MOST_WRITERS = 8
"""Threads that finish assets, unless more are asked for: each holds a mesh in the making."""

LONGEST_HISTORY = 256
"""Rows of an asset's history; a longer one is thinned by taking means of pairs."""


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs. Only `patience` and `tolerance` change what an asset becomes, save for
    the rounding that `over` tells of."""

    slots: Count | None = None
    """Assets in a program at once; None takes as many as the devices' memory holds."""
    over: Over | None = None
    """How a device takes its assets. One by one ("map"), an asset is the same to the last bit in
    any company; as a batch ("vmap"), its sums are rounded by the size of the batch. None: "map" on
    a CPU, "vmap" elsewhere, which are the faster ones."""
    block: Count = 20
    """Steps between two looks at the numbers."""
    checkpoint_every: Count = 25
    """Blocks between two checkpoints."""
    checkpoint_minutes: NonNegative = 5.0
    """Minutes between two checkpoints, where so many blocks take longer."""
    keep: Count = 2
    """Checkpoints kept."""
    writers: Count | None = None
    """Threads of the host that finish assets while the devices go on; None: one a core, up to 8."""
    patience: Natural = 0
    """Stops an asset when the metric that its stage watches, averaged over a block, has not fallen
    for so many blocks; 0 never does."""
    tolerance: Share = 0.01
    """Share by which the metric must fall to count as falling."""


@dataclass
class Track:
    """What the host knows of an asset on its way."""

    index: int
    steps: tuple[int, ...]
    """Of each stage."""
    stage: int = 0
    step: int = 0
    """Taken in this stage."""
    best: float | None = None
    """Lowest mean over a block of the metric that this stage watches."""
    stale: int = 0
    """Blocks since then."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The metrics' means over each block, with the `step` of the asset that ended it."""
    device_seconds: float = 0.0
    """Time of the blocks it was in, times devices, over the assets that shared them."""
    status: Status = "running"
    why: str = ""
    """What the host said of an asset that failed between two stages."""

    @property
    def taken(self) -> int:
        """Steps taken in all stages together."""
        return sum(self.steps[: self.stage]) + self.step

    def remember(self, means: dict[str, float]) -> None:
        """Notes the metrics of a block."""
        self.history.append({"step": float(self.taken), **means})
        if len(self.history) > LONGEST_HISTORY:
            pairs = zip(self.history[::2], self.history[1::2], strict=False)
            odd = self.history[-1:] if len(self.history) % 2 else []
            self.history = [_mean_row(*pair) for pair in pairs] + odd


def _mean_row(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    both = {name: (a[name] + b[name]) / 2 for name in a.keys() & b.keys()}
    return {**a, **b, **both, "step": b["step"]}


class Outcome(NamedTuple):
    """A finished asset."""

    track: Track
    params: Params
    """What its last stage left, on the host."""
    shown: np.ndarray | None = None
    """Pictures from which it was made, `[n, H, W, 3]`."""


class Report(NamedTuple):
    """What is known after a block."""

    tracks: list[Track]
    """Of the assets in the block."""
    steps: int
    """Taken in this block by all of them together."""
    finished: int
    """Assets of this run that are safe by now."""


class OutOfMemory(Exception):
    """The program does not fit the devices with this many slots."""


class Overflow(Exception):
    """A block's pictures left something out for want of room, and are not gone on from: with more
    room, its assets go on from their last checkpoint."""


class Interrupted(Exception):
    """The run was asked to stop; what it had is in its checkpoints."""


def run(
    stages: Sequence[Stage],
    task: Callable[[int], Task],
    indices: Iterable[int],
    finished: Callable[[Outcome], None],
    *,
    config: EngineConfig | None = None,
    report: Callable[[Report], None] = lambda report: None,
    checkpoints: Checkpoints | None = None,
    others: Sequence[Checkpoints] = (),
    stop: Callable[[], bool] = lambda: False,
    backend: Literal["shard_map", "pmap"] = "shard_map",
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Takes assets from where the checkpoints have them to their end.

    Args:
      stages: What each asset goes through.
      task: The task of an asset by its index; called when it enters and when it moves on, so that a
        long queue costs nothing.
      indices: The assets that are wanted, in the order in which they enter.
      finished: Called with each finished asset, in other threads and several at once. Once it
        returns, the asset is safe and leaves the checkpoints; what it raises ends the run.
      config: How the engine runs.
      report: Called after each block.
      checkpoints: Written to and resumed from.
      others: Resumed from only, such as those of a process that is no more.
      stop: Asked after each block whether to save and stop.
      backend: See `parallel.pmap_assets`.
      devices: By default those of this process.

    Raises:
      OutOfMemory: Not even one asset a device fits.
      Overflow: A step had a metric `overflow` (`Render.overflow`) above 0.
      Interrupted: `stop` said so.
    """
    wanted = list(dict.fromkeys(indices))
    if not wanted:
        return
    config = EngineConfig() if config is None else config
    mesh = parallel.assets_mesh(devices)
    program = _Program(stages, mesh, task(wanted[0]), config, backend)
    slots = program.slots_that_fit(len(wanted))
    safe: set[int] = set()
    while True:
        try:
            left = [index for index in wanted if index not in safe]
            _Run(program, task, slots, left, safe, finished, report, checkpoints, stop).go(others)
            return
        except OutOfMemory:
            if slots == mesh.size:
                raise
            # The assets go on from their last checkpoint, or from their start.
            slots = max(slots // 2 // mesh.size, 1) * mesh.size


class _Program:
    """The compiled functions of a run, shared by all its attempts."""

    def __init__(self, stages: Sequence[Stage], mesh, example: Task, config, backend):
        self.stages, self.mesh, self.config, self.backend = stages, mesh, config, backend
        self.over = config.over or parallel.natural_over()
        placed = {
            id(stage.shared): parallel.place(mesh, stage.shared, over_assets=False)
            for stage in stages
        }
        self.shared = [placed[id(stage.shared)] for stage in stages]
        self._starts = [jax.jit(s.start, compiler_options=_QUICK) for s in stages]
        self._results = [jax.jit(s.result, compiler_options=_QUICK) for s in stages]
        self.slots = [
            jax.eval_shape(partial(self.fill, until=0), example, state)
            for state in abstract_states(stages, example)
        ]
        self._flops = partial(step_flops, stages, example)
        over_assets = NamedSharding(mesh, PartitionSpec("assets"))
        whole = NamedSharding(mesh, PartitionSpec())
        self.put = jax.jit(
            lambda slots, i, slot: jax.tree.map(lambda x, y: x.at[i].set(y), slots, slot),
            donate_argnums=0,
            out_shardings=over_assets,
        )
        self.take = jax.jit(
            lambda slots, i: jax.tree.map(lambda x: x[i], slots.state), out_shardings=whole
        )
        self.empty = jax.jit(
            lambda stage, count: jax.tree.map(
                lambda x: jnp.zeros((count, *x.shape), x.dtype), self.slots[stage]
            ),
            static_argnums=(0, 1),
            out_shardings=over_assets,
        )
        self._blocks, self._warm = {}, set()

    @staticmethod
    def fill(task: Task, state: State, until: int) -> Slot:
        """An asset in its slot."""
        return Slot(state, task.cond, task.knobs, jnp.int32(0), jnp.int32(until), jnp.bool(True))

    def start(self, stage: int, task: Task, left: Left | None) -> State:
        """Where a stage begins for an asset."""
        return self._starts[stage](task, left)

    def result(self, stage: int, state: State) -> Left:
        """What a stage leaves of an asset."""
        return self._results[stage](state, self.shared[stage])

    def mapped(self, stage: int):
        """The block of steps of a stage, over all devices."""
        steps = parallel.block(self.stages[stage].step, self.config.block)
        return parallel.pmap_assets(steps, self.mesh, over=self.over, backend=self.backend)

    def block(self, stage: int, count: int):
        """The same, compiled for this many slots: that time belongs to no asset."""
        if stage not in self._blocks:
            self._blocks[stage] = self.mapped(stage)
        if (stage, count) not in self._warm:
            with _out_of_memory():
                rest = self._blocks[stage](self.empty(stage, count), self.shared[stage])
                jax.block_until_ready(rest)
            self._warm.add((stage, count))
        return self._blocks[stage]

    def slots_that_fit(self, wanted: int) -> int:
        """Slots to run `wanted` assets with, a multiple of the devices."""
        devices, asked = self.mesh.size, self.config.slots
        most = min(wanted, MOST * devices if asked is None else asked)
        a_device = -(-most // devices)
        if asked is None:
            a_device = min(a_device, self._fit_a_device())
        return a_device * devices

    def _fit_a_device(self) -> int:
        budget = parallel.device_bytes(self.mesh.devices.flat[0])
        budget -= sum(
            parallel.bytes_of(tree) for tree in {id(tree): tree for tree in self.shared}.values()
        )
        # Each stage has its slots, and as many may wait for it.
        each = 2 * sum(parallel.bytes_of(slot) for slot in self.slots)
        if self.over == "vmap":
            # What a program needs beside its arguments grows in proportion to its assets.
            one, two = (self._temporaries(n * self.mesh.size) for n in (1, 2))
            each += max(two - one, 0)
            budget -= max(2 * one - two, 0)
        return max(budget // each, 1)

    def _temporaries(self, count: int) -> int:
        """Of the stage whose step is the most work."""
        stage = int(np.argmax(self._flops()))
        lowered = self.mapped(stage).lower(self.empty(stage, count), self.shared[stage])
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
    """One attempt at a run with a fixed number of slots."""

    def __init__(self, program, task, slots, left, safe, finished, report, checkpoints, stop):
        self.program, self.task, self.config = program, task, program.config
        self.queue = deque(left)
        self.waiting = [deque() for _ in program.stages]
        self.pools = [_Pool(None, [None] * slots) for _ in program.stages]
        self.finishing: dict[int, tuple[Track, State, Future]] = {}
        self.between: dict[int, tuple[Track, State, Future]] = {}
        self.safe, self.finished, self.report = safe, finished, report
        self.checkpoints, self.stop = checkpoints, stop
        self.blocks, self.saved_at = 0, time.monotonic()
        writers = self.config.writers
        if writers is None:
            writers = min(parallel.host_cores(), MOST_WRITERS)
        self.writers = ThreadPoolExecutor(writers)

    def go(self, others: Sequence[Checkpoints]) -> None:
        try:
            self.resume([c for c in (self.checkpoints, *others) if c is not None])
            while (stage := self.next_stage()) is not None:
                self.advance(stage)
                self.blocks += 1
                self.collect(at_most=2 * len(self.pools[0].who))
                self.go_on(at_most=2 * len(self.pools[0].who))
                if self.stop():
                    self.save()
                    raise Interrupted
                if self.save_is_due():
                    self.save()
            self.collect(at_most=0)
            if self.checkpoints:
                self.checkpoints.wait()
        finally:
            self.writers.shutdown(wait=True, cancel_futures=True)

    def next_stage(self) -> int | None:
        """Names the pool to run; None when all is done."""
        while (stage := self.full_pool()) is None and self.between:
            self.go_on(at_most=len(self.between) - 1)
        return stage

    def full_pool(self) -> int | None:
        """Fills the pools and names the one to run; None where none can be."""
        self.admit()  # what takes no steps of the first stage waits for a later one
        for stage in reversed(range(len(self.pools))):
            self.fill(stage)
            pool, before = self.pools[stage], range(stage)
            more = bool(self.queue) or any(
                self.waiting[s] or any(self.pools[s].who) for s in before
            )
            more |= any(track.stage in before for track, _, _ in self.between.values())
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
            left = track.steps[stage] - track.step
            slot = self.program.fill(self.task(track.index), state, left)
            if pool.slots is None:
                pool.slots = self.program.empty(stage, len(pool.who))
            pool.slots = self.program.put(pool.slots, i, slot)
            pool.who[i] = track

    def admit(self) -> None:
        """Starts assets of the queue until one waits for the first stage."""
        while self.queue and not self.waiting[0]:
            index = self.queue.popleft()
            task = self.task(index)
            self.route(Track(index, task.steps), self.program.start(0, task, None))

    def route(self, track: Track, state: State) -> None:
        """Sends an asset to its next block, through the stages that it is done with, or out."""
        while track.status == "running" and track.step >= track.steps[track.stage]:
            if track.stage + 1 == len(track.steps):
                track.status = "done"
                break
            left = self.program.result(track.stage, state)
            before = self.program.stages[track.stage + 1].before
            if before is not None:
                state = jax.device_get(state)
                future = self.writers.submit(before.run, jax.device_get(left))
                self.between[track.index] = (track, state, future)
                return
            state = self.enter(track, left)
        if track.status == "running":
            self.waiting[track.stage].append((track, state))
            return
        left = jax.device_get(self.program.result(track.stage, state))
        outcome = Outcome(track, left.params, left.shown)
        future = self.writers.submit(self.finished, outcome)
        self.finishing[track.index] = (track, jax.device_get(state), future)

    def enter(self, track: Track, left: Left) -> State:
        """Begins the next stage of an asset."""
        track.stage, track.step = track.stage + 1, 0
        track.best, track.stale = None, 0
        return self.program.start(track.stage, self.task(track.index), left)

    def go_on(self, at_most: int) -> None:
        """Sends on assets that the host is done with, and waits while it has more than so many."""
        for index, (track, state, future) in list(self.between.items()):
            if not future.done() and len(self.between) <= at_most:
                continue
            try:
                left = future.result()
            except ValueError as error:
                track.status, track.why = "failed", str(error)
            else:
                state = self.enter(track, left)
            del self.between[index]
            self.route(track, state)

    def advance(self, stage: int) -> None:
        """Runs one block of a pool and moves on the assets that are done with it."""
        pool = self.pools[stage]
        program = self.program.block(stage, len(pool.who))
        before = jax.device_get(pool.slots.step)
        started = time.perf_counter()
        with _out_of_memory():
            pool.slots, metrics = program(pool.slots, self.program.shared[stage])
            after, healthy, metrics = jax.device_get((pool.slots.step, pool.slots.healthy, metrics))
        left_out = [rows for name, rows in metrics.items() if name.startswith("overflow")]
        if any(np.any(rows > 0) for rows in left_out):
            raise Overflow(f"stage {stage + 1}: pictures had no room for all that is in them")
        seconds = (time.perf_counter() - started) * self.program.mesh.size
        tracks = [track for track in pool.who if track is not None]
        for i, track in enumerate(pool.who):
            if track is None:
                continue
            track.step += int(after[i] - before[i])
            track.device_seconds += seconds / len(tracks)
            means = _means({name: rows[i] for name, rows in metrics.items()})
            if after[i] > before[i]:
                track.remember(means)
            self.judge(track, means, bool(healthy[i]))
            if track.status != "running" or track.step >= track.steps[stage]:
                self.route(track, self.program.take(pool.slots, i))
                pool.who[i] = None
        taken = int((after - before).sum())
        self.report(Report(tracks, taken, len(self.safe)))

    def judge(self, track: Track, means: dict[str, float], healthy: bool) -> None:
        """Notes what a block says of an asset: whether it may go on."""
        watched = self.program.stages[track.stage].watch
        if not healthy:
            track.status = "nonfinite"
        elif self.config.patience and watched in means:
            if track.best is None or means[watched] < track.best * (1 - self.config.tolerance):
                track.best, track.stale = means[watched], 0
            else:
                track.stale += 1
                if track.stale >= self.config.patience and track.step < track.steps[track.stage]:
                    track.status = "plateau"

    def collect(self, at_most: int) -> None:
        """Lets go of the assets that are safe, and waits while more than `at_most` are not."""
        for index, (_, _, future) in list(self.finishing.items()):
            if future.done() or len(self.finishing) > at_most:
                future.result()
                del self.finishing[index]
                self.safe.add(index)

    def save_is_due(self) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60
        every = self.config.checkpoint_every
        return self.blocks % every == 0 or minutes >= self.config.checkpoint_minutes

    def save(self) -> None:
        """Checkpoints every asset on its way."""
        self.saved_at = time.monotonic()
        if not self.checkpoints:
            return
        rows = [(track, state) for each in self.waiting for track, state in each]
        held = (*self.finishing.values(), *self.between.values())
        rows += [(track, state) for track, state, _ in held]
        for pool in self.pools:
            if any(pool.who):
                states = jax.device_get(pool.slots.state)
                rows += [
                    (track, jax.tree.map(lambda x, i=i: x[i], states))
                    for i, track in enumerate(pool.who)
                    if track is not None
                ]
        if not rows:
            return
        by_stage: dict[str, list[State]] = {}
        for track, state in sorted(rows, key=lambda row: row[0].stage):
            by_stage.setdefault(str(track.stage), []).append(jax.device_get(state))
        stacked = {
            stage: jax.tree.map(lambda *x: np.stack(x), *states)
            for stage, states in by_stage.items()
        }
        tracks = sorted((track for track, _ in rows), key=lambda track: track.stage)
        self.checkpoints.save(stacked, {"tracks": [asdict(track) for track in tracks]})

    def resume(self, folders: Sequence[Checkpoints]) -> None:
        """Takes the assets that checkpoints hold out of the queue and sends them on."""
        found: dict[int, tuple[Track, State]] = {}
        wanted = set(self.queue)
        for checkpoints in folders:
            loaded = checkpoints.load(partial(self.abstract, wanted))
            if loaded is None:
                continue
            states, about = loaded
            row = dict.fromkeys(states, 0)
            for entry in about["tracks"]:
                track = Track(**{**entry, "steps": tuple(entry["steps"])})
                stage, i = str(track.stage), row[str(track.stage)]
                row[stage] += 1
                known = found.get(track.index)
                if track.index in wanted and (known is None or known[0].taken < track.taken):
                    found[track.index] = (track, jax.tree.map(lambda x, i=i: x[i], states[stage]))
        self.queue = deque(index for index in self.queue if index not in found)
        for track, state in found.values():
            self.route(track, state)

    def abstract(self, wanted: set[int], about) -> dict[str, Any] | None:
        """The shapes of a checkpoint's states; None where it holds no asset of interest."""
        if wanted.isdisjoint(track["index"] for track in about["tracks"]):
            return None
        counts: dict[int, int] = {}
        for track in about["tracks"]:
            counts[track["stage"]] = counts.get(track["stage"], 0) + 1
        return {
            str(stage): jax.tree.map(
                lambda x, n=n: jax.ShapeDtypeStruct((n, *x.shape), x.dtype),
                self.program.slots[stage].state,
            )
            for stage, n in counts.items()
        }


def _means(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each metric over the steps of a block in which it was finite."""
    finite = {name: values[np.isfinite(values)] for name, values in rows.items()}
    return {name: float(values.mean()) for name, values in finite.items() if values.size}
