"""What the longer trainings have in common: Adam under a schedule, a running mean, and the loop.

A training is a pure function of its recipe: the key of a step is of the seed and the step's number,
and so are its batches, so that a run that was cut short goes on as if it had not been.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jax3d import weights
from jax3d.types import Params

CHECKPOINT = "checkpoint.safetensors"


@struct.dataclass
class TrainState:
    """All that a checkpoint of a training holds."""

    step: Any
    """int32 []"""
    params: Params
    ema: Params
    """Running mean of the parameters: what is shipped."""
    opt_state: Any


def optimizer(config: Any, tail: optax.Schedule) -> optax.GradientTransformation:
    """Adam with a rate that warms up, stays, and falls by `tail` over the last part.

    `config` is a training's recipe, of which the `lr`, `warmup`, `steps` and `decay` are read.
    """
    schedule = optax.schedules.join_schedules(
        [
            optax.schedules.linear_schedule(0.0, config.lr, config.warmup),
            optax.schedules.constant_schedule(config.lr),
            tail,
        ],
        [config.warmup, config.steps - falling(config)],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01)
    )


def falling(config: Any) -> int:
    """The steps at a training's end over which its rate falls."""
    return int(config.decay * config.steps)


def start(params: Params, adam: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    ema = jax.tree.map(jnp.copy, params)  # a donated state may not hold a buffer twice
    return TrainState(jnp.zeros((), jnp.int32), params, ema, adam.init(params))


def starting_from(state: TrainState, params: Params) -> TrainState:
    """The same state with other weights."""
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, params))


def stepper(
    loss: Callable[..., Any], adam: optax.GradientTransformation, config: Any
) -> Callable[..., tuple[TrainState, Any]]:
    """`step(state, *batch) -> (state, loss)` by `loss(params, key, *batch)`.

    `config` is a training's recipe, of which the `seed` and `ema` are read.
    """

    def step(state: TrainState, *batch):
        key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
        value, grad = jax.value_and_grad(loss)(state.params, key, *batch)
        updates, opt_state = adam.update(grad, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.ema, params)
        return TrainState(state.step + 1, params, ema, opt_state), value

    return step


def resumed(folder: Path, like: TrainState, report: Callable[[str], None]) -> TrainState | None:
    """The state that `folder` holds, of the shapes of `like`; None where there is none."""
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        return None
    state = weights.load_tree(checkpoint, like)
    report(f"going on from step {int(state.step)}")
    return state


def run(
    step: Callable[..., tuple[TrainState, Any]],
    state: TrainState,
    batches: Iterable[tuple],
    config: Any,
    folder: Path,
    save: Callable[[Params], None],
    report: Callable[[str], None],
) -> None:
    """Takes the steps that are left, one a batch.

    Every `config.save_every` of them the loss is told, the state is written to `folder`, and
    `save` is called with the running mean.
    """
    step, losses = jax.jit(step, donate_argnums=0), []
    for k, batch in enumerate(batches, int(state.step) + 1):
        state, value = step(state, *batch)
        # Waiting keeps forced CPU devices, which run ahead, from a deadlock in the reduction.
        losses.append(jax.block_until_ready(value))
        if k % config.save_every == 0 or k == config.steps:
            report(f"step {k} of {config.steps}: loss {float(np.mean(jax.device_get(losses))):.4f}")
            losses = []
            weights.save_safetensors(state, folder / CHECKPOINT)
            save(state.ema)
