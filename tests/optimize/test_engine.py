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
from toys import no_condition, pages

from jax3d.guidance.base import Guidance
from jax3d.guidance.sds import sds
from jax3d.optimize import asset, engine
from jax3d.optimize.asset import AssetConfig, Optimiser, Stage
from jax3d.optimize.checkpoint import Checkpoints
from jax3d.optimize.engine import EngineConfig, Sweep, Task
from jax3d.priors.gaussian import GaussianData, gaussian

SIZE = 8
PRIOR = gaussian(SIZE)
DATA = GaussianData(
    mean=jax.random.uniform(jax.random.key(9), (SIZE, SIZE, 3)), std=jnp.float32(0.05)
)
STAGES = (Stage(12, SIZE), Stage(9, 2 * SIZE))


def optimiser(guidance=None):
    config = AssetConfig(views=2, stages=STAGES)
    return asset.make(pages(4, SIZE), PRIOR, guidance or sds(PRIOR), config)


OPTIMISER = optimiser()


def task(index):
    """Assets of several lengths, so that slots fall free at different times."""
    first = 12 - 2 * (index % 3)
    return Task(no_condition(), asset.knobs(index), (first, first + 9))


def swept(
    indices, made=OPTIMISER, devices=1, checkpoints=None, finished=None, report=None, **config
):
    """The outcomes by index, and the reports."""
    outcomes, reports = {}, []

    def keep(outcome):
        assert outcome.track.index not in outcomes, "an asset came twice"
        outcomes[outcome.track.index] = outcome

    this = Sweep(
        Optimiser(*made),
        [stage.size for stage in STAGES],
        DATA,
        task,
        EngineConfig(**{"block": 5, "over": "vmap", **config}),
        devices=jax.devices()[:devices],
    )
    engine.run(this, indices, finished or keep, report or reports.append, checkpoints)
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


def test_every_asset_takes_its_own_steps(undisturbed):
    assert sorted(undisturbed) == list(range(11))
    for index, outcome in undisturbed.items():
        assert outcome.track.status == "done"
        assert outcome.track.step == task(index).ends[-1]
        assert np.isfinite(outcome.track.residual_norm)
        assert outcome.track.device_seconds > 0


@pytest.mark.parametrize(("slots", "devices"), [(1, 1), (3, 1), (4, 2), (8, 8)])
def test_slots_devices_and_neighbours_change_no_asset(undisturbed, slots, devices):
    outcomes, _ = swept([7, 3, 0, 10, 1, 9, 2, 8, 4, 6, 5], slots=slots, devices=devices)
    for index, outcome in outcomes.items():
        assert_same(outcome, undisturbed[index], rtol=1e-4, atol=1e-5)


def test_slots_are_filled_again_at_once():
    _, reports = swept(range(11), slots=3)
    # Only when nothing is left to come may a block run with a free slot.
    idle = [report for report in reports if len(report.tracks) < 3]
    assert all(report.finished + 2 * 3 >= 11 - 3 for report in idle)
    assert sum(report.steps for report in reports) == sum(task(k).ends[-1] for k in range(11))


def test_assets_are_finished_several_at_once():
    pair = threading.Barrier(2, timeout=120)
    swept(range(4), slots=4, writers=2, finished=lambda outcome: pair.wait())


def test_a_plateau_stops_an_asset_and_frees_its_slot(undisturbed):
    # No norm falls by nine tenths: every asset stops after two blocks of the last stage.
    outcomes, _ = swept(range(5), slots=2, patience=1, tolerance=0.9, block=3)
    assert {o.track.status for o in outcomes.values()} == {"plateau"}
    for index, outcome in outcomes.items():
        assert outcome.track.step == task(index).ends[0] + 6
    again, _ = swept(range(5), slots=5, patience=1, tolerance=0.9, block=3)
    for index in outcomes:
        assert_same(outcomes[index], again[index], rtol=1e-4, atol=1e-5)


def test_an_ill_asset_ends_alone(undisturbed):
    honest = sds(PRIOR)

    def loss(prior_params, key, step, render, camera, cond, knobs, own=None):
        value, metrics = honest.loss(prior_params, key, step, render, camera, cond, knobs, own)
        return jnp.where((knobs.seed == 4) & (step == 6), jnp.inf, 1.0) * value, metrics

    outcomes, _ = swept(range(8), optimiser(Guidance(loss)), slots=3)
    assert outcomes[4].track.status == "nonfinite"
    assert outcomes[4].track.step == 6
    assert all(np.isfinite(leaf).all() for leaf in leaves(outcomes[4]))
    for index in set(outcomes) - {4}:
        assert outcomes[index].track.status == "done"
        assert_same(outcomes[index], undisturbed[index], rtol=1e-4, atol=1e-5)


class Stop(Exception):
    """Ends a sweep from within."""


@pytest.mark.parametrize(("slots", "devices"), [(4, 1), (8, 4), (2, 2)])
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
    assert sum(report.steps for report in reports) < sum(task(k).ends[-1] for k in left)
    for index, outcome in {**kept, **outcomes}.items():
        assert_same(outcome, undisturbed[index], rtol=1e-4, atol=1e-5)


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
    this = Sweep(
        OPTIMISER, [SIZE], DATA, task, EngineConfig(over="vmap"), devices=jax.devices()[:2]
    )
    mesh = engine.parallel.assets_mesh(this.devices)
    program = engine._Program(this, mesh, task(0))
    one = engine.parallel.bytes_of(program.slot)
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
    this = Sweep(OPTIMISER, [SIZE, SIZE], DATA, task, EngineConfig(block=5, slots=2))
    programs = []
    init = engine._Program.__init__

    def spied(self, *args):
        init(self, *args)
        programs.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._Program, "__init__", spied)
        engine.run(this, range(7), lambda outcome: None)
    (program,) = programs
    assert [block._cache_size() for block in program._blocks.values()] == [1]


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
import numpy as np
import test_sweep as t

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
    moments = np.random.default_rng(5).integers(1, 16, 5)
    for count in moments:
        assert run_until(killed, count, cache) == -signal.SIGKILL
    for out in (killed, whole):
        assert run_until(out, 0, cache) == 0
    for k in range(12):
        a, b = np.load(whole / f"{k}.npz"), np.load(killed / f"{k}.npz")
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
