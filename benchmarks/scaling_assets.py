"""Time per asset as assets are added to one program: the whole optimisation step, and the render.

    python benchmarks/scaling_assets.py [--json FILE] [--repeats 5] [--size 32]

The step is that of the default recipe with the embedded critic: cameras, render, critic, gradient,
Adam. The render is its renderer alone, forward and backward. Assets go through a program one by
one (`map`) or as one batch (`vmap`); both give the same numbers. Adam is measured by itself, its
state donated, against the render.
"""

# ruff: noqa: E402
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import timing

timing.pin()

import bare
import jax
import jax.numpy as jnp
import optax
import tyro

from jax3d import camera
from jax3d.optimize.asset import StageConfig
from jax3d.optimize.stage import Task
from jax3d.priors import embedded
from jax3d.recipe import Recipe
from jax3d.types import Look

OVER = ("map", "vmap")


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    repeats: int = 5
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    size: int = 32
    """Side of the renders, pixels: the recipe's first stage."""


class Again:
    """A program that is fed what it returned, as its input is donated."""

    def __init__(self, program: Callable, state):
        """Starts from `state`."""
        self.program, self.state = program, state

    def __call__(self) -> None:
        """Runs it to its end."""
        self.state = jax.block_until_ready(self.program(self.state))


def steps(recipe: Recipe, count: int, size: int, critic) -> dict:
    """The optimisation step of `count` assets, by `map` and by `vmap`."""
    optimize = replace(recipe.optimize, stages=(StageConfig(1, size),))
    (stage,) = replace(recipe, optimize=optimize).build(critic)
    cond = recipe.condition(critic, "a red chair")
    tasks = [Task(cond, recipe.knobs_of(seed), (1,)) for seed in range(count)]
    conds, knobs = (bare.stack([task[i] for task in tasks]) for i in (0, 1))

    def program(over):
        block = bare.block(stage.step, 1, over)
        step = lambda states: block(states, critic.params, conds, knobs)[0]  # noqa: E731
        return Again(step, bare.stack([stage.start(task, None) for task in tasks]))

    return {over: program(over) for over in OVER}


def renders(recipe: Recipe, count: int, size: int) -> dict:
    """The gradient of `count` assets' pictures, by `map` and by `vmap`."""
    field = recipe.field.build()
    around = camera.orbit(jnp.linspace(0.0, 6.0, recipe.optimize.views), 0.3, 2.6, 0.75)

    def loss(params):
        out = field.render(params, None, around, Look.albedo(), (size, size))
        return jnp.mean((out.over(1.0) - 0.5) ** 2)

    one = jax.value_and_grad(loss)
    params = jax.vmap(field.init)(jax.random.split(jax.random.key(0), count))
    programs = {"map": jax.jit(partial(jax.lax.map, one)), "vmap": jax.jit(jax.vmap(one))}
    return {o: lambda f=f: jax.block_until_ready(f(params)) for o, f in programs.items()}


def descent(recipe: Recipe, count: int) -> Again:
    """Adam's part of `count` assets' step."""
    adam = optax.adam(0.01)
    init = jax.vmap(recipe.field.build().init)
    params = init(jax.random.split(jax.random.key(0), count))
    gradient = jax.tree.map(jnp.ones_like, params)

    @partial(jax.jit, donate_argnums=0)
    def update(state):
        params, moments = state
        change, moments = adam.update(gradient, moments)
        return optax.apply_updates(params, change), moments

    return Again(update, (params, adam.init(params)))


def main(args: Args) -> None:
    """Measure and print."""
    recipe, critic = Recipe(), embedded.open()
    programs = {}
    for count in args.counts:
        kinds = {
            "step": steps(recipe, count, args.size, critic),
            "render": renders(recipe, count, args.size),
            "Adam": {"donated": descent(recipe, count)},
        }
        programs |= {(k, o, count): f for k, each in kinds.items() for o, f in each.items()}
    seconds = timing.alternate(programs, args.repeats)
    each = {name: s / name[2] for name, s in seconds.items()}
    first = args.counts[0]
    ratios = {(k, o, n): s / each[k, o, first] for (k, o, n), s in each.items()}
    timing.show(
        f"CPU time of an asset, {recipe.optimize.views} views of {args.size} x {args.size} pixels",
        ["what", "over", "assets", "ms an asset", f"over A={first} (bar 1.2)"],
        [
            [*name[:2], str(name[2]), timing.spread(1e3 * s, 1), timing.spread(ratios[name])]
            for name, s in each.items()
        ],
    )
    figures = {
        " ".join(map(str, name)): {
            "milliseconds": timing.figure(1e3 * s),
            "over_first": timing.figure(ratios[name]),
        }
        for name, s in each.items()
    }
    for count in args.counts:
        share = each["Adam", "donated", count] / each["render", "map", count]
        batch = each["step", "vmap", count] / each["step", "map", count]
        print(
            f"A={count}: Adam over the render {timing.spread(100 * share, 1)} % (bar 4); "
            f"step by vmap over map {timing.spread(batch)}"
        )
        figures[f"A={count}"] = {
            "adam_share": timing.figure(share),
            "step_vmap_over_map": timing.figure(batch),
        }
    timing.save(args.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
