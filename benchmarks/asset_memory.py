"""Bytes of an asset and of the program that optimises A of them, as XLA plans it.

python benchmarks/asset_memory.py [--json FILE] [--counts 1 2 4 8 16] [--plan accelerator]

State is what an asset is (parameters, Adam's moments, step) and a checkpoint holds; a slot adds its
condition and knobs. Temporaries are what the compiled block of steps needs beside its arguments at
the recipe's largest size. Nothing is run. The compiler is that of the machine at hand: the plan
"accelerator" compiled for a CPU tells how memory grows with A there, not a GPU's bytes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import timing
import tyro

from jax3d import recipe as recipes
from jax3d.optimize import parallel
from jax3d.optimize.engine import _Program
from jax3d.optimize.stage import Task, abstract_states
from jax3d.priors import embedded
from jax3d.recipe import Recipe
from jax3d.render import sparse


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    plan: Literal["cpu", "accelerator"] = "cpu"
    """How the renderer takes samples and assets."""
    config: Path | None = None
    """A recipe for the embedded critic; None: the shipped default."""


def main(args: Args) -> None:
    """Compile and print."""
    plan = sparse.CPU if args.plan == "cpu" else sparse.ACCELERATOR
    sparse.plan = lambda backend=None: plan
    recipe = Recipe() if args.config is None else recipes.load(args.config)
    critic = embedded.open()
    stages, over = recipe.build(critic), parallel.natural_over(args.plan)
    task = Task(recipe.condition(critic, "a red chair"), recipe.knobs_of(0), (1,) * len(stages))
    size, stage = max((s.size, i) for i, s in enumerate(recipe.optimize.stages))
    state = abstract_states(stages, task)[stage]
    slot = jax.eval_shape(_Program.fill, task, state, 0)
    mib = 2**20
    sizes = {
        "parameters": parallel.bytes_of(state.params),
        "state": parallel.bytes_of(state),
        "slot": parallel.bytes_of(slot),
        "critic": parallel.bytes_of(critic.params),
    }
    block = parallel.pmap_assets(
        parallel.block(stages[stage].step, 20), parallel.assets_mesh(jax.devices()[:1]), over=over
    )
    rows, figures = [], {}
    for count in args.counts:
        slots = jax.tree.map(lambda x, n=count: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), slot)
        analysis = block.lower(slots, critic.params).compile().memory_analysis()
        used = analysis.temp_size_in_bytes
        whole = used + analysis.argument_size_in_bytes
        rows.append([str(count), *(f"{n / mib:.2f}" for n in (used, whole, whole / count))])
        figures[str(count)] = {"temporaries": used, "arguments": analysis.argument_size_in_bytes}
    told = ", ".join(f"{name} {n / mib:.2f} MiB" for name, n in sizes.items())
    print(told)
    timing.show(
        f"Plan {args.plan} ({over}), {size}x{size} renders, MiB",
        ["A", "temporaries", "with arguments", "an asset"],
        rows,
    )
    timing.save(args.json, {"bytes": sizes, "programs": figures})


if __name__ == "__main__":
    main(tyro.cli(Args))
