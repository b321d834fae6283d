"""The engine: every asset arrives, whatever happens on the way, and is what it would be alone."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import knobs, no_condition, pages

from jax3d.guidance.base import Guidance
from jax3d.guidance.sds import sds
from jax3d.optimize import asset, engine
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.checkpoint import Checkpoints
from jax3d.optimize.engine import EngineConfig
from jax3d.optimize.stage import Task
from jax3d.priors.gaussian import GaussianData, gaussian

SIZE = 8
PRIOR = gaussian(SIZE)
DATA = GaussianData(
    mean=jax.random.uniform(jax.random.key(9), (SIZE, SIZE, 3)), std=jnp.float32(0.05)
)
CONFIG = AssetConfig(views=2, stages=(StageConfig(12, SIZE), StageConfig(9, 2 * SIZE)))


def staged(guidance=None):
    return asset.distil(pages(4, SIZE), PRIOR, guidance or sds(PRIOR), DATA, CONFIG)


STAGES = staged()


def task(index):
    """Assets of several lengths, so that slots fall free at different times."""
    first = 12 - 2 * (index % 3)
    return Task(no_condition(), knobs(index), (first, 9))


def swept(
    indices,
    stages=STAGES,
    devices=1,
    checkpoints=None,
    finished=None,
    report=None,
    stop=lambda: False,
    **config,
):
    """The outcomes by index, and the reports."""
    outcomes, reports = {}, []

    def keep(outcome):
        assert outcome.track.index not in outcomes, "an asset came twice"
        outcomes[outcome.track.index] = outcome

    engine.run(
        stages,
        task,
        indices,
        finished or keep,
        config=EngineConfig(**{"block": 5, "over": "vmap", **config}),
        report=report or reports.append,
        checkpoints=checkpoints,
        stop=stop,
        devices=jax.devices()[:devices],
    )
    return outcomes, reports


def leaves(outcome):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(outcome.params)]


def assert_same(a, b, **tolerance):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@pytest.fixture(scope="module")
def undisturbed():
    """Eleven assets, all at once."""
    return swept(range(11), slots=11)[0]


def blocks_of(steps):
    """The steps that end the blocks of five of each stage."""
    before = [0, *np.cumsum(steps)]
    ends = [[*range(a + 5, a + n, 5), a + n] for a, n in zip(before, steps, strict=False)]
    return [end for of_stage in ends for end in of_stage]


def test_every_asset_takes_its_own_steps(undisturbed):
    assert sorted(undisturbed) == list(range(11))
    for index, outcome in undisturbed.items():
        assert outcome.track.status == "done"
        assert outcome.track.taken == sum(task(index).steps)
        assert [row["step"] for row in outcome.track.history] == blocks_of(task(index).steps)
        assert np.isfinite([row["residual_norm"] for row in outcome.track.history]).all()
        assert outcome.track.device_seconds > 0


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("slots", "devices"),
    [(1, 1), (8, 8), pytest.param(3, 1, marks=SLOW), pytest.param(4, 2, marks=SLOW)],
)
def test_slots_devices_and_neighbours_change_no_asset(undisturbed, slots, devices):
    outcomes, _ = swept([7, 3, 0, 10, 1, 9, 2, 8, 4, 6, 5], slots=slots, devices=devices)
    for index, outcome in outcomes.items():
        assert_same(outcome, undisturbed[index], rtol=1e-4, atol=1e-5)


def test_slots_are_filled_again_at_once():
    _, reports = swept(range(11), slots=3)
    # Only when nothing is left to come may a block run with a free slot.
    idle = [report for report in reports if len(report.tracks) < 3]
    assert all(report.finished + 2 * 3 >= 11 - 3 for report in idle)
    assert sum(report.steps for report in reports) == sum(sum(task(k).steps) for k in range(11))


def test_assets_are_finished_several_at_once():
    pair = threading.Barrier(2, timeout=120)
    swept(range(4), slots=4, writers=2, finished=lambda outcome: pair.wait())


def test_a_plateau_stops_an_asset_and_frees_its_slot(undisturbed):
    # No norm falls by nine tenths: every asset stops after two blocks of the last stage.
    outcomes, _ = swept(range(5), slots=2, patience=1, tolerance=0.9, block=3)
    assert {o.track.status for o in outcomes.values()} == {"plateau"}
    for index, outcome in outcomes.items():
        assert outcome.track.taken == task(index).steps[0] + 6
    again, _ = swept(range(5), slots=5, patience=1, tolerance=0.9, block=3)
    for index in outcomes:
        assert_same(outcomes[index], again[index], rtol=1e-4, atol=1e-5)


def test_an_ill_asset_ends_alone(undisturbed):
    honest = sds(PRIOR)

    def loss(shared, key, shot, cond, knobs, own):
        value, metrics = honest.loss(shared, key, shot, cond, knobs, own)
        return jnp.where((knobs.seed == 4) & (shot.step == 6), jnp.inf, 1.0) * value, metrics

    outcomes, _ = swept(range(8), staged(Guidance(loss)), slots=3)
    assert outcomes[4].track.status == "nonfinite"
    assert outcomes[4].track.taken == 6
    assert all(np.isfinite(leaf).all() for leaf in leaves(outcomes[4]))
    for index in set(outcomes) - {4}:
        assert outcomes[index].track.status == "done"
        assert_same(outcomes[index], undisturbed[index], rtol=1e-4, atol=1e-5)


class Stop(Exception):
    """Ends a sweep from within."""


@pytest.mark.parametrize(
    ("slots", "devices"), [(8, 4), pytest.param(4, 1, marks=SLOW), pytest.param(2, 2, marks=SLOW)]
)
def test_a_sweep_goes_on_with_other_slots_and_devices(undisturbed, tmp_path, slots, devices):
    kept = {}

    def until_the_third(outcome):
        if len(kept) == 3:
            raise Stop
        kept[outcome.track.index] = outcome

    first = Checkpoints(tmp_path)
    with pytest.raises(Stop):
        swept(range(11), slots=4, checkpoints=first, finished=until_the_third, checkpoint_every=1)
    first.close()
    second = Checkpoints(tmp_path)
    left = [k for k in range(11) if k not in kept]
    outcomes, reports = swept(left, slots=slots, devices=devices, checkpoints=second)
    second.close()
    assert sum(report.steps for report in reports) < sum(sum(task(k).steps) for k in left)
    for index, outcome in {**kept, **outcomes}.items():
        assert_same(outcome, undisturbed[index], rtol=1e-4, atol=1e-5)


def test_a_run_that_is_asked_to_stop_saves_first(undisturbed, tmp_path):
    asked = iter([False, False, True])
    first = Checkpoints(tmp_path)
    before = []
    with pytest.raises(engine.Interrupted):
        swept(
            range(6),
            slots=3,
            checkpoints=first,
            stop=lambda: next(asked),
            report=before.append,
        )
    first.close()
    second = Checkpoints(tmp_path)
    outcomes, reports = swept(range(6), slots=3, checkpoints=second)
    second.close()
    assert len(before) == 3
    steps = sum(report.steps for report in (*before, *reports))
    assert steps == sum(sum(task(k).steps) for k in range(6))
    for index, outcome in outcomes.items():
        assert_same(outcome, undisturbed[index], rtol=1e-4, atol=1e-5)
        whole = undisturbed[index].track.history
        assert [row["step"] for row in outcome.track.history] == [row["step"] for row in whole]


def test_a_checkpoint_is_due_by_blocks_or_by_minutes(tmp_path):
    saved = []
    for config in ({"checkpoint_every": 100, "checkpoint_minutes": 0.0}, {"checkpoint_every": 2}):
        checkpoints = Checkpoints(tmp_path / str(len(saved)))
        count = []
        checkpoints.save = lambda *_, count=count: count.append(1)
        swept(range(2), slots=2, checkpoints=checkpoints, **config)
        saved.append(len(count))
        checkpoints.close()
    assert saved[0] > saved[1] > 0


def test_a_long_history_is_thinned():
    track = engine.Track(0, (1000,))
    for step in range(1, 601):
        track.step = step
        track.remember({"loss": float(step)})
    assert len(track.history) <= engine.LONGEST_HISTORY
    steps = [row["step"] for row in track.history]
    assert steps == sorted(set(steps))
    assert steps[-1] == 600
    assert 1 <= track.history[0]["loss"] <= 8


def test_a_stage_without_steps_is_passed_through():
    def short(index):
        return Task(no_condition(), knobs(index), (0, 3))

    taken = []
    engine.run(STAGES, short, range(2), lambda outcome: taken.append(outcome.track.taken))
    assert taken == [3, 3]


def test_out_of_memory_halves_the_slots(undisturbed, monkeypatch):
    counts = []
    block = engine._Program.block

    def tight(self, size, count):
        counts.append(count)
        if count > 2:
            raise engine.OutOfMemory("no room")
        return block(self, size, count)

    monkeypatch.setattr(engine._Program, "block", tight)
    outcomes, _ = swept(range(6), slots=6)
    assert list(dict.fromkeys(counts)) == [6, 3, 1]
    for index, outcome in outcomes.items():
        assert_same(outcome, undisturbed[index], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(engine._Program, "block", lambda *args: tight(*args[:2], 9))
    with pytest.raises(engine.OutOfMemory):
        swept(range(2), slots=2)


def test_the_devices_own_error_is_understood():
    with pytest.raises(engine.OutOfMemory, match="RESOURCE_EXHAUSTED"), engine._out_of_memory():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    with pytest.raises(jax.errors.JaxRuntimeError), engine._out_of_memory():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_slots_follow_from_the_memory(monkeypatch):
    mesh = engine.parallel.assets_mesh(jax.devices()[:2])
    program = engine._Program(STAGES, mesh, task(0), EngineConfig(over="vmap"), "shard_map")
    one = sum(engine.parallel.bytes_of(slot) for slot in program.slots)
    monkeypatch.setattr(program, "_temporaries", lambda count: 1000 + 500 * count // mesh.size)
    monkeypatch.setattr(
        engine.parallel,
        "device_bytes",
        lambda device: engine.parallel.bytes_of(DATA) + 1000 + 3 * (2 * one + 500),
    )
    assert program.slots_that_fit(100) == 6
    assert program.slots_that_fit(3) == 4
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert engine._Program._temporaries(program, 2) > 0
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_sweep_compiles_each_stage_once():
    programs = []
    init = engine._Program.__init__

    def spied(self, *args):
        init(self, *args)
        programs.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._Program, "__init__", spied)
        engine.run(
            STAGES, task, range(7), lambda outcome: None, config=EngineConfig(block=5, slots=2)
        )
    (program,) = programs
    assert [block._cache_size() for block in program._blocks.values()] == [1, 1]


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
import numpy as np
import test_engine as t

out, left = Path(sys.argv[1]), int(sys.argv[2])

def moment(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def finished(outcome):
    moment()
    path = out / f"{{outcome.track.index}}.npz"
    assert not path.exists(), "an asset came twice"
    fresh = out / f"fresh{{outcome.track.index}}"
    with open(fresh, "wb") as file:
        np.savez(file, *t.leaves(outcome))
    fresh.rename(path)
    moment()

todo = [k for k in range(12) if not (out / f"{{k}}.npz").exists()]
checkpoints = t.Checkpoints(out / "checkpoints")
config = dict(slots=4, checkpoint_every=2, block=2)
t.swept(todo, checkpoints=checkpoints, finished=finished, report=moment, **config)
checkpoints.close()
"""


def run_until(out, moments, cache):
    """Runs the sweep in a process of its own that SIGKILL ends after so many moments."""
    here = Path(__file__).parent
    script = KILLED.format(tests=str(here.parent), here=str(here))
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", script, str(out), str(moments)]
    return subprocess.run(command, env=env).returncode


def test_a_killed_sweep_loses_nothing_and_does_nothing_twice(tmp_path):
    killed, whole, cache = tmp_path / "killed", tmp_path / "whole", tmp_path / "compiled"
    # A moment is a block done, an asset about to be kept, or an asset kept.
    moments = np.random.default_rng(5).integers(1, 16, 3)
    for count in moments:
        assert run_until(killed, count, cache) == -signal.SIGKILL
    for out in (killed, whole):
        assert run_until(out, 0, cache) == 0
    for k in range(12):
        a, b = np.load(whole / f"{k}.npz"), np.load(killed / f"{k}.npz")
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
