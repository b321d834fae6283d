"""How Gaussians come and go, in arrays of fixed size, as explicit state.

The state ("memory") is a dictionary of arrays over the n places: which are `alive`, and for the
classical rule what it measures. Both rules act after every `every` steps of a part of the run; a
Gaussian that comes takes a place where nobody is.

`classical` (Kerbl et al. 2023, section 5): where the gradient of a centre in the picture is steep,
small Gaussians are cloned and large ones split; faint and huge ones are pruned. `mcmc` (Kheradmand
et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo"): the faint are put where others
are, so that the picture stays the same, and all that are faint walk at random.

Letters: v views, n places.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax3d.bounds import RISING, Count, Natural, NonNegative, Positive, Share
from jax3d.fields.base import Memory, Taken
from jax3d.render import ewa
from jax3d.types import Key, Params

DEAD = -100.0
"""The opacity's logit where there is no Gaussian; no training goes as low."""

Changed = tuple[Params, Any, Memory]
"""Parameters, the optimiser's state, and ours."""


@dataclass(frozen=True)
class Classical:
    """Clone, split and prune. The defaults are DreamGaussian's."""

    every: Count = 50
    """Steps."""
    span: Annotated[tuple[Share, Share], RISING] = (0.0, 1.0)
    """The part of the run in which it acts."""
    slope: NonNegative = 0.01
    """Gaussians grow from this gradient on, that of the loss in the centre's place in the picture,
    half a picture as the unit; the mean over the views that show them."""
    border: Positive = 0.04
    """Metres: of a larger standard deviation than this they are split, else cloned."""
    faint: Share = 0.01
    """Below this opacity they are pruned."""
    huge: Positive = 0.4
    """Above this standard deviation they are pruned, metres."""
    reset: Natural = 0
    """Steps after which, again and again, no opacity is above twice `faint`; 0: never."""


@dataclass(frozen=True)
class Mcmc:
    """Relocation and noise."""

    every: Count = 20
    """Steps."""
    span: Annotated[tuple[Share, Share], RISING] = (0.05, 0.85)
    """The part of the run in which the faint are put elsewhere and others come."""
    faint: Share = 0.005
    """Up to this opacity they are put elsewhere."""
    growth: NonNegative = 0.05
    """By how much there may be more each time, as a share, as far as there are places."""
    noise: NonNegative = 8000.0
    """Of the walk, in units of the learning rate of the centres: as large as that of the authors,
    whose rates are smaller (5e5 at 1.6e-4)."""


def there(params: Params) -> Bool[Array, " n"]:
    """Which places have a Gaussian, by the parameters alone."""
    return jnp.asarray(params["opacities"]) > DEAD + 10


def start(params: Params, config: Classical | Mcmc) -> Memory:
    """The state before the first step."""
    memory = {"alive": there(params)}
    if isinstance(config, Classical):
        nothing = jnp.zeros(len(params["means"]))
        memory |= {"slope": nothing, "seen": nothing}
    return memory


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def measured(
    means2d: Float[Array, "v n 2"],
    shown: Bool[Array, "v n"],
    tap: Float[Array, "n 2"],
    size: tuple[int, int],
) -> Float[Array, "v n 2"]:
    """The centres themselves, whose gradients are told to the `tap`.

    What it gets as its gradient are sums over views: of the length of the centre's gradient, half a
    picture of `size` (H, W) as the unit and times the number of views, over which losses are means;
    and of whether it is shown.
    """
    del shown, tap, size
    return means2d


def _measured(means2d, shown, tap, size):
    del tap, size
    return means2d, shown


def _told(size, shown, gradient):
    half = jnp.array([size[1] / 2, size[0] / 2], gradient.dtype)
    slopes = jnp.linalg.norm(gradient * half, axis=-1) * len(gradient)
    slope = jnp.sum(jnp.where(shown, slopes, 0.0), axis=0)
    return gradient, None, jnp.stack([slope, jnp.sum(shown, axis=0).astype(slope.dtype)], axis=-1)


measured.defvjp(_measured, _told)


def classical(
    params: Params,
    opt_state: Any,
    memory: Memory,
    gradient: Params,
    taken: Taken,
    key: Key,
    config: Classical,
) -> Changed:
    """The `adapt` of a representation; the gradient of `params["screen"]` is that of `measured`."""
    slope, seen = jnp.moveaxis(gradient["screen"], -1, 0)
    memory = memory | {"slope": memory["slope"] + slope, "seen": memory["seen"] + seen}
    state = (params, opt_state, memory)
    state = lax.cond(
        _due(config, taken),
        lambda state: _prune(config, *_grow(config, *_fade(config, *state), key)),
        lambda state: state,
        state,
    )
    if not config.reset:
        return state
    again = (taken.step + 1) % config.reset == 0
    return lax.cond(again, partial(_dim, config), lambda *state: state, *state)


def mcmc(
    params: Params,
    opt_state: Any,
    memory: Memory,
    gradient: Params,
    taken: Taken,
    key: Key,
    config: Mcmc,
) -> Changed:
    """The `adapt` of a representation."""
    del gradient
    move_key, walk_key = jax.random.split(key)
    state = (params, opt_state, memory)
    params, opt_state, memory = lax.cond(
        _due(config, taken),
        lambda state: _relocate(config, *state, move_key),
        lambda state: state,
        state,
    )
    step = config.noise * taken.rates["means"]
    means = params["means"] + step * _walk(params, memory["alive"], walk_key)
    return params | {"means": means}, opt_state, memory


def _due(config: Classical | Mcmc, taken: Taken) -> Bool[Array, ""]:
    begin, end = config.span
    within = (taken.progress >= begin) & (taken.progress <= end)
    return within & ((taken.step + 1) % config.every == 0)


def _moments(opt_state: Any, params: Params, change: Callable[[Params], Params]) -> Any:
    """An optimiser's state, `change` applied to each part that has the form of the parameters."""
    form = jax.tree.structure(params)

    def formed(part):
        return jax.tree.structure(part) == form

    return jax.tree.map(
        lambda part: change(part) if formed(part) else part, opt_state, is_leaf=formed
    )


def _without(opt_state: Any, params: Params, places: Bool[Array, " n"]) -> Any:
    """An optimiser's state that knows nothing of what was at some places."""

    def forget(x):
        return jnp.where(places.reshape(-1, *(1,) * (x.ndim - 1)), 0, x)

    return _moments(opt_state, params, lambda part: jax.tree.map(forget, part))


def _logit(opacity):
    return jnp.log(opacity) - jnp.log1p(-opacity)


# The classical rule.


def _bury(params, opt_state, memory, alive: Bool[Array, " n"]) -> Changed:
    """Nobody is where it is not `alive`."""
    opacities = jnp.where(alive, params["opacities"], DEAD)
    params = params | {"opacities": opacities}
    return params, _without(opt_state, params, ~alive), memory | {"alive": alive}


def _fade(config: Classical, params, opt_state, memory) -> Changed:
    """Prune the faint, which makes room."""
    alive = memory["alive"] & (jax.nn.sigmoid(params["opacities"]) >= config.faint)
    return _bury(params, opt_state, memory, alive)


def _prune(config: Classical, params, opt_state, memory) -> Changed:
    """Prune the huge."""
    small = jnp.max(params["scales"], axis=-1) <= math.log(config.huge)
    return _bury(params, opt_state, memory, memory["alive"] & small)


def _grow(config: Classical, params, opt_state, memory, key: Key) -> Changed:
    """Clone and split, the steepest first, as far as there are places."""
    alive, n = memory["alive"], len(params["means"])
    mean = memory["slope"] / jnp.maximum(memory["seen"], 1.0)
    grows = alive & (mean >= config.slope)
    count = jnp.minimum(jnp.sum(grows), jnp.sum(~alive))
    place = jnp.arange(n)
    parent = jnp.where(place < count, jnp.argsort(jnp.where(grows, -mean, jnp.inf)), n)
    child = jnp.where(place < count, jnp.argsort(alive), n)
    source = place.at[child].set(parent, mode="drop")
    born, bears = (jnp.zeros(n, bool).at[p].set(True, mode="drop") for p in (child, parent))

    params = jax.tree.map(lambda x: x[source], params)
    large = jnp.max(params["scales"], axis=-1) > math.log(config.border)
    split = (born | bears) & large
    axes = ewa.rotations(params["quats"]) * jnp.exp(params["scales"])[:, None]
    shift = jnp.sum(axes * jax.random.normal(key, (n, 1, 3), axes.dtype), axis=-1)
    params = params | {
        "means": jnp.where(split[:, None], params["means"] + shift, params["means"]),
        "scales": jnp.where(split[:, None], params["scales"] - math.log(1.6), params["scales"]),
    }
    nothing = jnp.zeros_like(mean)
    memory = {"alive": alive | born, "slope": nothing, "seen": nothing}
    return params, _without(opt_state, params, born | split), memory


def _dim(config: Classical, params, opt_state, memory) -> Changed:
    """Opacities of at most twice what is pruned, and without moments."""
    most = math.log(2 * config.faint) - math.log1p(-2 * config.faint)
    params = params | {"opacities": jnp.minimum(params["opacities"], most)}
    opt_state = _moments(
        opt_state, params, lambda part: part | {"opacities": jnp.zeros_like(part["opacities"])}
    )
    return params, opt_state, memory


# Markov chain Monte Carlo.

_MOST_COPIES = 51
_STEEP, _FAINT = 100.0, 0.005
"""Of the walk: who has more opacity than this stays nearly where it is."""


def _relocate(config: Mcmc, params, opt_state, memory, key: Key) -> Changed:
    """Put the faint, and some more, where others are, in proportion to these' opacities.

    All at one place share its opacity, and shrink so that the picture stays the same.
    """
    alive, n = memory["alive"], len(params["means"])
    opacity = jax.nn.sigmoid(params["opacities"])
    sound = alive & (opacity > config.faint)
    more = jnp.floor(config.growth * jnp.sum(alive)).astype(jnp.int32)
    moves = ((alive & ~sound) | (~alive & (jnp.cumsum(~alive) <= more))) & jnp.any(sound)

    shares = jnp.cumsum(jnp.where(sound, opacity, 0.0))
    # Just below 1, so that rounding cannot pass the last share.
    drawn = jax.random.uniform(key, (n,), maxval=1 - 1e-6) * shares[-1]
    place = jnp.arange(n)
    source = jnp.searchsorted(shares, drawn, side="right").astype(place.dtype)
    source = jnp.where(moves, jnp.minimum(source, n - 1), place)
    copies = jnp.zeros(n, jnp.int32).at[jnp.where(moves, source, n)].add(1, mode="drop")

    params = jax.tree.map(lambda x: x[source], params)
    changed = moves | (copies > 0)
    shared, factor = shared_by(opacity[source], jnp.minimum(copies[source] + 1, _MOST_COPIES))
    shared = _logit(jnp.clip(shared, config.faint, 1 - 1e-6))
    scales = params["scales"] + jnp.log(factor)[:, None]
    params = params | {
        "opacities": jnp.where(changed, shared, params["opacities"]),
        "scales": jnp.where(changed[:, None], scales, params["scales"]),
    }
    return params, _without(opt_state, params, changed), memory | {"alive": alive | moves}


def shared_by(
    opacity: Float[Array, " n"], count: Int[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Opacity of each of `count` equal Gaussians that show what one did, and by how much to scale.

    (1 - o')^count = 1 - o, and the opacity along a line through the centre has the same integral
    (Kheradmand et al., eq. 9). Their double sum over binomials, whose terms cancel, is the integral
    over u of 1 - (1 - o' exp(-u^2))^count, by sqrt(pi).
    """
    shared = -jnp.expm1(jnp.log1p(-opacity) / count)
    u = jnp.linspace(0.0, 5.0, 41)
    weight = jnp.where(u > 0, 2.0, 1.0) * (u[1] - u[0]) / math.sqrt(math.pi)
    seen = shared[:, None] * jnp.exp(-(u**2))
    total = jnp.sum(-jnp.expm1(count[:, None] * jnp.log1p(-seen)) * weight, axis=-1)
    return shared, opacity / jnp.maximum(total, 1e-12)


def _walk(params, alive: Bool[Array, " n"], key: Key) -> Float[Array, "n 3"]:
    """Sigma times noise, for those alive that are faint."""
    axes = ewa.rotations(params["quats"])
    noise = jax.random.normal(key, params["means"].shape, axes.dtype)
    # Sigma itself, not its root, as the authors have it.
    local = jnp.sum(axes * noise[..., None], axis=-2) * jnp.exp(2 * params["scales"])
    opacity = jax.nn.sigmoid(params["opacities"])
    free = jnp.where(alive, jax.nn.sigmoid(-_STEEP * (opacity - _FAINT)), 0.0)
    return free[:, None] * jnp.sum(axes * local[:, None], axis=-1)
