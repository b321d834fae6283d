"""Assets an hour: many assets in one program, one after the other, and without the engine.

taskset -c 1 python benchmarks/sweep_throughput.py [--json FILE] [--repeats 5] [--toy]

Both run the shipped recipe, over fewer steps, under the embedded critic. "One program" has a slot
for each of A assets; "in turn" has one slot, which the A assets take one after the other in the
same process, compiled once. "Bare" is `asset.run_block` alone, over the same steps: what the
engine adds to it are queue, slots, guards against numbers that are not finite and looks at the
metrics; with "checkpoints" there is one after every block, 25 times as often as by default. Files,
meshes and scores are made by neither. Figures are CPU seconds; the first call of each program is
told apart, as it compiles.
"""

# ruff: noqa: E402
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import timing

timing.pin()

import bare
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jax3d.fields.triplane import TriplaneConfig
from jax3d.optimize import engine, parallel
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.checkpoint import Checkpoints
from jax3d.optimize.engine import EngineConfig
from jax3d.optimize.stage import Task
from jax3d.priors import embedded
from jax3d.recipe import Recipe

PROMPTS = ("a red chair", "a blue mug", "a green car", "a yellow lamp")


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Assets to compare; none leaves the comparison out."""
    overhead: int = 4
    """Assets to measure the engine's own cost with; 0 leaves it out."""
    repeats: int = 5
    steps: int = 40
    """Of an asset, in two stages as the recipe divides them."""
    block: int = 10
    """Steps between two looks at the numbers; 20 by default."""
    toy: bool = False
    """A tiny field at 16x16 pixels, to try the script."""


class Work:
    """The recipe, the critic and the assets."""

    def __init__(self, args: Args):
        critic = embedded.open()
        recipe = Recipe()
        if args.toy:
            field = TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, samples=8)
            stages = (StageConfig(1, 16), StageConfig(1, 32))
            recipe = replace(recipe, field=field, optimize=AssetConfig(views=2, stages=stages))
        # The same number of steps in both stages, in whole blocks: nothing rests in either.
        half = max(args.steps // 2 // args.block, 1) * args.block
        stages = tuple(StageConfig(half, stage.size) for stage in recipe.optimize.stages)
        recipe = replace(recipe, optimize=replace(recipe.optimize, stages=stages))
        self.block, self.critic = args.block, critic
        self.stages, self.over = recipe.build(critic), parallel.natural_over()
        conds = [recipe.condition(critic, prompt) for prompt in PROMPTS]
        knobs = [recipe.knobs_of(seed) for seed in range(max((*args.counts, args.overhead)))]
        steps = tuple(stage.steps for stage in stages)
        self.task = lambda k: Task(conds[k % len(conds)], knobs[k], steps)

    def engine(self, assets: int, slots: int, folder: str | None = None):
        """A sweep of the assets that compiles when it is first run.

        With a folder it writes its checkpoints there, in a new one for each run: it would go on
        from the last run's.
        """
        config = EngineConfig(slots=slots, block=self.block, checkpoint_every=1)
        # `engine.run` compiles anew for each call; here the compiled functions are kept.
        mesh = parallel.assets_mesh()
        program = engine._Program(self.stages, mesh, self.task(0), config, "shard_map")

        def run():
            left, known = list(range(assets)), set()
            checkpoints = Checkpoints(tempfile.mkdtemp(dir=folder)) if folder else None
            hooks = (lambda outcome: None, lambda report: None, checkpoints, lambda: False)
            engine._Run(program, self.task, slots, left, known, *hooks).go(())
            assert len(known) == assets
            if checkpoints:
                assert checkpoints.steps()
                checkpoints.close()

        return run

    def bare(self, assets: int):
        """The same steps, with nothing around them."""
        tasks = [self.task(k) for k in range(assets)]
        conds, knobs = (bare.stack([task[i] for task in tasks]) for i in (0, 1))
        start = bare.stack([self.stages[0].start(task, None) for task in tasks])
        blocks = [bare.block(stage.step, self.block, self.over) for stage in self.stages]

        def run():
            states = jax.tree.map(jnp.copy, start)  # the blocks consume them
            for stage, block in zip(self.stages, blocks, strict=True):
                for _ in range(stage.steps // self.block):
                    states, metrics = block(states, self.critic.params, conds, knobs)
                    jax.block_until_ready(metrics)
            jax.device_get(states.params)

        return run


def alternate(programs: dict, repeats: int) -> tuple[dict, dict]:
    """CPU seconds of each program's first call, and of `repeats` further calls in turn."""

    def seconds(program):
        start = time.process_time()
        program()
        return time.process_time() - start

    first = {name: seconds(program) for name, program in programs.items()}
    later = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            later[name].append(seconds(program))
    return first, {name: np.array(values) for name, values in later.items()}


def main(args: Args) -> None:
    """Measure and print."""
    work = Work(args)
    programs, base = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        if args.overhead:
            count = args.overhead
            names = [(name, count) for name in ("bare", "engine", "engine, checkpoints")]
            programs[names[0]] = work.bare(count)
            programs[names[1]] = work.engine(count, count)
            programs[names[2]] = work.engine(count, count, folder)
            base |= dict.fromkeys(names, names[0])
        for count in args.counts:
            names = [(name, count) for name in ("in turn", "one program")]
            programs[names[0]] = work.engine(count, 1)
            programs[names[1]] = work.engine(count, count)
            base |= dict.fromkeys(names, names[0])
        first, later = alternate(programs, args.repeats)
    rows, figures = [], {}
    for (name, count), seconds in later.items():
        rate = 3600 * count / seconds
        ratio = seconds / later[base[name, count]]
        compiled = first[name, count] - float(np.median(seconds))
        cells = [timing.spread(seconds), timing.spread(rate, 0), timing.spread(ratio, 3)]
        rows.append([name, str(count), *cells, f"{compiled:.1f}"])
        figures[f"{name} {count}"] = {
            "seconds": timing.figure(seconds),
            "assets_per_hour": timing.figure(rate),
            "time_over_first_of_its_kind": timing.figure(ratio),
            "compile_seconds": compiled,
        }
    timing.show(
        f"{len(work.stages)} x {work.stages[0].steps} steps, blocks of {work.block}, "
        f"{work.over} over assets",
        ["program", "A", "CPU s", "assets/h", "time over bare / in turn", "compile s"],
        rows,
    )
    timing.save(args.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Args))
