"""The engine's unit: a compiled program that takes one asset from one state to the next.

A recipe is a short tuple of stages. Two resolutions of distillation are two stages; a feed-forward
model is a stage of one step; a sampler of T steps is a stage of T steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jax3d.fields.base import Representation
from jax3d.knobs import Knobs
from jax3d.models.base import Model
from jax3d.optimize import flops
from jax3d.types import Key, Params

State = Any
"""A pytree of arrays: all that changes while a stage goes on. What a checkpoint holds."""


class Task(NamedTuple):
    """One asset as its stages are told of it."""

    cond: Any
    """What its networks are told, such as a `Condition`."""
    knobs: Knobs
    steps: tuple[int, ...]
    """Steps of each stage, in place of the stages' own."""


class Left(NamedTuple):
    """What a stage leaves to the next one, and at last to people."""

    params: Params
    """Of the stage's representation; without one, pictures or latents."""
    rest: Any = None
    """What only a next stage of the same kind can use, such as an optimiser's moments."""
    shown: Array | None = None
    """Pictures from which it was made, `[n, H, W, 3]` sRGB in [0, 1]: they go on to people."""


Start = Callable[[Task, Left | None], State]
"""`start(task, left) -> state`; `left` is None in the first stage. It is traced: what must run on
the host is a `Host`."""

Step = Callable[[State, Params, Any, Knobs], tuple[State, dict[str, Array]]]
"""`step(state, shared, cond, knobs) -> (state, metrics)`: pure, of one asset; metrics are
scalars."""

Result = Callable[[State, Params], Left]
"""`result(state, shared) -> left`, after any number of steps."""


class Host(NamedTuple):
    """Work of the host between two stages, such as meshing: it may run programs of its own, which
    a callback from within a program may not."""

    run: Callable[[Left], Left]
    """`run(left) -> left`, by what the asset left alone. It runs in a thread beside others; what it
    raises as a `ValueError` fails its asset and no other."""
    like: Callable[[Left], Left]
    """The shapes of what it makes, from the shapes of what it is given."""


class Stage(NamedTuple):
    """One compiled program of the engine."""

    representation: Representation | None
    """Whose parameters it leaves; None where what it makes is not 3D yet."""
    start: Start
    step: Step
    steps: int
    result: Result
    shared: Params
    """Frozen weights: replicated once, an argument, never differentiated."""
    watch: str | None = None
    """The metric whose plateau ends an asset early."""
    before: Host | None = None
    """What becomes of what the stage before left, before `start` has it."""


INIT = 2**32 - 1
"""Stands for the step before the first in the derivation of keys."""


def step_key(knobs: Knobs, step) -> Key:
    """The key of one step of one asset: of its seed and the step's number alone."""
    return jax.random.fold_in(jax.random.key(knobs.seed), step)


class Sampling(NamedTuple):
    """How far a model's sampler has come with one asset."""

    step: Int[Array, ""]
    z: Any


def as_stage(model: Model) -> Stage:
    """A model as a stage of as many steps as it takes."""

    def start(task: Task, left: Left | None) -> Sampling:
        del left
        key = step_key(task.knobs, INIT)
        return Sampling(jnp.zeros((), jnp.int32), model.begin(key, task.cond))

    def step(state: Sampling, shared, cond, knobs):
        z = model.advance(shared, state.z, state.step, cond, knobs)
        return Sampling(state.step + 1, z), {}

    def result(state: Sampling, shared) -> Left:
        shown = None if model.show is None else model.show(state.z)
        return Left(model.decode(shared, state.z), shown=shown)

    return Stage(model.representation, start, step, model.steps, result, model.params)


def told(stage: Stage, part: int) -> Stage:
    """The same stage in a recipe whose condition is a tuple, of which it is told one part."""
    return stage._replace(
        start=lambda task, left: stage.start(task._replace(cond=task.cond[part]), left),
        step=lambda state, shared, cond, knobs: stage.step(state, shared, cond[part], knobs),
    )


def starting_from(stages: Sequence[Stage], params: Params) -> tuple[Stage, ...]:
    """The same stages, of which the first starts from an asset at hand."""
    first, *others = stages
    return (first._replace(start=lambda task, left: first.start(task, Left(params))), *others)


def abstract_states(stages: Sequence[Stage], task: Task) -> list[State]:
    """The shapes of the state that each stage has of an asset."""
    states, left = [], None
    for stage in stages:
        if stage.before is not None:
            left = stage.before.like(left)
        states.append(jax.eval_shape(stage.start, task, left))
        left = jax.eval_shape(stage.result, states[-1], stage.shared)
    return states


def step_flops(stages: Sequence[Stage], task: Task) -> list[int]:
    """The model FLOPs of one step of one asset in each stage."""
    return [
        flops.count(stage.step, state, stage.shared, task.cond, task.knobs)
        for stage, state in zip(stages, abstract_states(stages, task), strict=True)
    ]
