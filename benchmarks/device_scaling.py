"""Weak scaling: as many assets as devices, on 1, 2, 4 and 8 CPU devices of one machine.

python benchmarks/device_scaling.py [--json FILE] [--repeats 9]

Each count runs in a process of its own, on that many forced CPU devices, and takes one asset a
device through the engine's blocks of steps. The table tells the seconds of a step, wall and CPU,
and how far eight pictures of asset 0 are, after all blocks, from those that one device comes to:
mean and greatest difference of a colour, in [0, 1]. What it shows is that the devices do the same
work and add none: CPU time an asset stays. Wall time can fall to the number of cores and no
further; eight devices on two cores take four times as long as two.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timing
import tyro

STEPS = 20
"""Of a block."""


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    devices: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 9
    """Blocks that are timed, after a first one."""
    size: int = 32
    """Side of the renders, pixels."""
    child: int | None = None
    """Internal: the devices of this process."""


def measure(devices: int, repeats: int, size: int) -> dict:
    """In a process with so many devices: seconds of blocks, and pictures of asset 0 after them."""
    import bare
    import jax
    import jax.numpy as jnp

    from jax3d import camera
    from jax3d.finish import Finisher
    from jax3d.optimize import parallel
    from jax3d.optimize.asset import StageConfig
    from jax3d.optimize.parallel import Slot
    from jax3d.optimize.stage import Task
    from jax3d.priors import embedded
    from jax3d.recipe import Recipe

    critic, recipe = embedded.open(), Recipe()
    optimize = replace(recipe.optimize, stages=(StageConfig(10**6, size),))
    (stage,) = replace(recipe, optimize=optimize).build(critic)
    cond = recipe.condition(critic, "a red chair")
    tasks = [Task(cond, recipe.knobs_of(seed), (10**6,)) for seed in range(devices)]
    conds, knobs = (bare.stack([task[i] for task in tasks]) for i in (0, 1))
    state = bare.stack([stage.start(task, None) for task in tasks])
    ends = jnp.full((devices,), 10**6, jnp.int32)
    mesh = parallel.assets_mesh()
    assert mesh.size == devices
    slots = Slot(state, conds, knobs, 0 * ends, ends, jnp.ones((devices,), bool))
    slots = parallel.place(mesh, slots, over_assets=True)
    shared = parallel.place(mesh, critic.params, over_assets=False)
    block = parallel.pmap_assets(
        parallel.block(stage.step, STEPS), mesh, over=parallel.natural_over()
    )

    slots, _ = jax.block_until_ready(block(slots, shared))
    wall, cpu = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        slots, _ = jax.block_until_ready(block(slots, shared))
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    params = jax.tree.map(lambda x: x[0], jax.device_get(slots.state.params))
    pictures = Finisher(recipe).pictures(params, camera.around(8, 15.0))
    return {"wall": wall, "cpu": cpu, "pictures": pictures.tolist()}


def run(devices: int, args: Args) -> dict:
    """The same in a fresh process."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    words = ["--child", str(devices), "--repeats", str(args.repeats), "--size", str(args.size)]
    said = subprocess.run(
        [sys.executable, __file__, *words], env=env, check=True, stdout=subprocess.PIPE
    )
    return {k: np.array(v) for k, v in json.loads(said.stdout.splitlines()[-1]).items()}


def main(args: Args) -> None:
    """Measure and print."""
    if args.child is not None:
        print(json.dumps(measure(args.child, args.repeats, args.size)))
        return
    found = {devices: run(devices, args) for devices in args.devices}
    one = found[args.devices[0]]
    rows, figures = [], {}
    for devices, each in found.items():
        apart = np.abs(each["pictures"] - one["pictures"])
        shown = f"{apart.mean():.1e}, {apart.max():.1e}"
        wall, cpu = each["wall"] / STEPS, each["cpu"] / STEPS / devices
        rows.append([str(devices), timing.spread(wall), timing.spread(cpu, 3), shown])
        figures[str(devices)] = {
            "wall_seconds_a_step": timing.figure(wall),
            "cpu_seconds_an_asset_step": timing.figure(cpu),
            "pictures_apart": {"mean": float(apart.mean()), "greatest": float(apart.max())},
        }
    timing.show(
        f"One asset a device, {len(os.sched_getaffinity(0))} core(s)",
        ["devices = assets", "wall s a step", "CPU s an asset's step", "pictures apart"],
        rows,
    )
    timing.save(args.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Args))
