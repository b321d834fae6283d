"""Steps of many assets with nothing around them: what the engine is held against."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax3d.optimize.parallel import Over
from jax3d.optimize.stage import Step


def stack(trees: Sequence[Any]) -> Any:
    """One tree with a leading axis of assets from one tree each."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def block(step: Step, k: int, over: Over) -> Callable[..., tuple[Any, dict]]:
    """Compile k steps of A assets: `(states, shared, conds, knobs) -> (states, metrics[k, A])`.

    The states are donated.
    """

    def run(states, shared, conds, knobs):
        def one(inputs):
            state, cond, knob = inputs
            return step(state, shared, cond, knob)

        each = jax.vmap(one) if over == "vmap" else lambda inputs: lax.map(one, inputs)
        return lax.scan(lambda states, _: each((states, conds, knobs)), states, length=k)

    return jax.jit(run, donate_argnums=0)
