"""Optimising assets under a critic: the pure step of one asset, and blocks of steps for many.

Letters: A assets, v views, k steps of a block.

A step reads: key of this step -> cameras -> render -> guidance and regularisers -> gradient ->
Adam -> the representation's own adaptation. Every random number comes from the asset's seed and
the step's number, so an asset is the same alone, among others, and after a resume.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from jax3d import camera
from jax3d.camera import CameraConfig
from jax3d.fields.base import Representation
from jax3d.guidance.base import Guidance
from jax3d.guidance.losses import regularise
from jax3d.math import normalize
from jax3d.priors.base import Prior
from jax3d.types import AssetState, Camera, Condition, Key, Knobs, Look, Params, Ramp

INIT = 2**32 - 1
"""Stands for the step before the first in the derivation of keys."""


class Stage(NamedTuple):
    """Consecutive steps at one resolution; one compilation each."""

    steps: int
    size: int
    """Side of the renders, pixels."""


@dataclass(frozen=True)
class AssetConfig:
    """What fixes the shapes and code path of an optimisation; numbers to sweep are `Knobs`."""

    camera: CameraConfig = field(default_factory=CameraConfig)
    views: int = 4
    """Views rendered a step."""
    stages: tuple[Stage, ...] = (Stage(200, 32), Stage(200, 64))
    rate: float = 0.01
    """Learning rate of Adam."""
    rates: tuple[tuple[str, float], ...] = ()
    """Learning rates of single groups, by the top-level names of the parameters. What a guidance
    trains beside the asset goes by the name "guidance"."""
    p_grey: float = 0.5
    """Chance that a view gets a background of random grey instead of the knobs'."""
    grey: tuple[float, float] = (0.25, 1.0)
    """Range of that grey; the embedded critic has seen no darker ground."""
    shaded_from: int = 0
    """Steps that show the bare albedo before the first shaded view."""
    p_shaded: float = 0.0
    """Chance that a view is lit by a random lamp afterwards."""
    p_textureless: float = 0.5
    """Chance that a lit view is white, so that its shape alone is judged."""
    ambient: float = 0.1
    """Share of the ambient light in lit views."""


Step = Callable[..., tuple[AssetState, dict[str, Array]]]


class Optimiser(NamedTuple):
    """Two pure functions of one asset; batch them over assets with `vmap`."""

    init: Callable[..., AssetState]
    """`init(knobs, params=None) -> AssetState`; `params` starts from an asset at hand."""
    step: Step
    """`step(state, prior_params, Condition, Knobs, size) -> (state, metrics)`; `size`, the side
    of the renders in pixels, is static"""


def make(
    representation: Representation, prior: Prior, guidance: Guidance, config: AssetConfig
) -> Optimiser:
    """The optimisation of one asset.

    Raises `ValueError` where the views do not fit a critic that looks at several together.
    """
    if config.views % prior.views:
        raise ValueError(
            f"views={config.views}: this critic looks at {prior.views} views together; "
            f"take a multiple of {prior.views}"
        )
    adam = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-15)

    def init(knobs: Knobs, params: Params = None) -> AssetState:
        """The state before the first step."""
        asset_key, own_key = jax.random.split(step_key(knobs, INIT))
        params = representation.init(asset_key) if params is None else params
        own = guidance.init(own_key) if guidance.init is not None else None
        learning_rates(config, params, own)
        opt_state = (adam.init(params), adam.init(own))
        return AssetState(jnp.zeros((), jnp.int32), params, opt_state, own)

    def objective(trained, state, keys, prior_params, cond, knobs, size):
        """The scalar to descend; only its gradient has a meaning."""
        params, own = trained
        cameras = camera.sample(keys[0], config.camera, config.views)
        look = sample_look(keys[1], config, state.step, cameras, knobs)
        render = representation.render(params, keys[2], cameras, look, (size, size))
        judged, metrics = guidance.loss(
            prior_params, keys[3], state.step, render, cameras, cond, knobs, own
        )
        regular, terms = regularise(render, representation.tv(params), knobs, state.step)
        return knobs.lambda_sds.at(state.step) * judged + regular, metrics | terms

    def step(
        state: AssetState, prior_params: Params, cond: Condition, knobs: Knobs, size: int
    ) -> tuple[AssetState, dict[str, Array]]:
        """One update of one asset."""
        keys = jax.random.split(step_key(knobs, state.step), 5)
        trained = (state.params, state.guidance)
        gradient, metrics = jax.grad(objective, has_aux=True)(
            trained, state, keys, prior_params, cond, knobs, size
        )
        updates, opt_state = zip(*map(adam.update, gradient, state.opt_state), strict=True)
        lr = knobs.lr.at(state.step)
        params, own = jax.tree.map(
            lambda x, update, rate: x - (lr * rate * update).astype(x.dtype),
            trained,
            updates,
            learning_rates(config, *trained),
        )
        params, adapted = representation.adapt(
            params, opt_state[0], gradient[0], state.step, keys[4]
        )
        metrics["grad_norm"] = optax.tree.norm(gradient[0])
        return AssetState(state.step + 1, params, (adapted, opt_state[1]), own), metrics

    return Optimiser(init, step)


def step_key(knobs: Knobs, step) -> Key:
    """The key of one step of one asset."""
    return jax.random.fold_in(jax.random.key(knobs.seed), step)


def learning_rates(config: AssetConfig, params: Params, own: Params) -> tuple[Any, Any]:
    """The learning rate of each leaf, before the knobs' factor."""
    groups = dict(config.rates)
    names = {_group(path) for path, _ in jax.tree.leaves_with_path(params)} | {"guidance"}
    if unknown := set(groups) - names:
        raise ValueError(f"rates: no group {sorted(unknown)}; there are {sorted(names)}")
    of_params = jax.tree.map_with_path(
        lambda path, _: groups.get(_group(path), config.rate), params
    )
    return of_params, jax.tree.map(lambda _: groups.get("guidance", config.rate), own)


def _group(path) -> str:
    return jax.tree_util.keystr(path[:1], simple=True)


def sample_look(key: Key, config: AssetConfig, step, cameras: Camera, knobs: Knobs) -> Look:
    """Background and light of each view (DreamFusion, section 3.1); lamps stand near the camera."""
    keys = jax.random.split(key, 5)
    views = cameras.azimuth.shape
    low, high = config.grey
    grey = jax.random.uniform(keys[0], (*views, 1), minval=low, maxval=high) * jnp.ones(3)
    use_grey = jax.random.bernoulli(keys[1], config.p_grey, views)
    lit = jax.random.bernoulli(keys[2], config.p_shaded, views) & (step >= config.shaded_from)
    bare = jax.random.bernoulli(keys[3], config.p_textureless, views)
    towards = normalize(cameras.c2w[..., :3, 3])
    return Look(
        background=jnp.where(use_grey[..., None], grey, knobs.background),
        ambient=jnp.where(lit, config.ambient, 1.0),
        textureless=(lit & bare).astype(jnp.float32),
        light=normalize(towards + 0.5 * jax.random.normal(keys[4], towards.shape)),
    )


def run_block(
    step: Step, k: int, size: int, *, over: Literal["vmap", "map"] = "vmap"
) -> Callable[..., tuple[AssetState, dict[str, Array]]]:
    """Compile `k` steps of A assets: `(states, prior_params, conds, knobs) -> (states, metrics)`.

    The states are donated, the critic's weights shared by all assets; metrics come as `[k, A]`.
    "vmap" folds the assets into one batch, which devices like; "map" takes them one by one, which
    keeps a CPU's caches warm.
    """

    def block(states, prior_params, conds, knobs):
        def one(inputs):
            state, cond, knob = inputs
            return step(state, prior_params, cond, knob, size)

        each = jax.vmap(one) if over == "vmap" else lambda inputs: lax.map(one, inputs)
        return lax.scan(lambda states, _: each((states, conds, knobs)), states, length=k)

    return jax.jit(block, donate_argnums=0)


def knobs(
    seed: int = 0,
    *,
    lr: float | Ramp = 1.0,
    guidance_scale: float | Ramp = 10.0,
    t_min: float | Ramp = 0.02,
    t_max: float | Ramp = 0.98,
    lambda_sds: float | Ramp = 1.0,
    lambda_opacity: float | Ramp = 0.0,
    lambda_sparsity: float | Ramp = 0.0,
    lambda_orient: float | Ramp = 0.0,
    lambda_normal: float | Ramp = 0.0,
    lambda_tv: float | Ramp = 0.0,
    background: Sequence[float] = (1.0, 1.0, 1.0),
) -> Knobs:
    """The knobs of one asset from plain numbers or ramps."""

    def ramp(x: float | Ramp) -> Ramp:
        return x if isinstance(x, Ramp) else Ramp.of(x)

    return Knobs(
        seed=jnp.asarray(seed, jnp.uint32),
        lr=ramp(lr),
        guidance_scale=ramp(guidance_scale),
        t_min=ramp(t_min),
        t_max=ramp(t_max),
        lambda_sds=ramp(lambda_sds),
        lambda_opacity=ramp(lambda_opacity),
        lambda_sparsity=ramp(lambda_sparsity),
        lambda_orient=ramp(lambda_orient),
        lambda_normal=ramp(lambda_normal),
        lambda_tv=ramp(lambda_tv),
        background=jnp.asarray(background, jnp.float32),
    )


def stack(trees: Sequence[Any]) -> Any:
    """One tree with a leading axis of assets from one tree each."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
