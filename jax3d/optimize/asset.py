"""Optimisation of one asset, by a critic or to photographs: the pure step, and the stages that the
engine runs.

Letters: A assets, v views, k steps of a block.

A step reads: key of this step -> for each term: cameras -> render -> guidance -> with the
regularisers a gradient -> Adam -> the representation's own adaptation. Every random number comes
from the asset's seed and the step's number, so an asset is the same alone, among others, and after
a resume.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jax3d import camera
from jax3d.bounds import INT32, RISING, Natural, NonNegative, Range, Share
from jax3d.camera import CameraConfig
from jax3d.fields.base import Representation, Taken
from jax3d.guidance import photometric
from jax3d.guidance.base import Guidance, Shot, Term, scale_gradient
from jax3d.guidance.losses import of_pictures, weigh
from jax3d.knobs import Knobs
from jax3d.math import normalize
from jax3d.optimize.stage import INIT, Left, Stage, Task, step_key
from jax3d.priors.base import Prior
from jax3d.types import AssetState, Camera, Key, Look, Params


class StageConfig(NamedTuple):
    """Consecutive steps at one resolution; one compilation each."""

    steps: Natural
    size: Annotated[int, Range(1, 4096)]
    """Side of the renders, pixels."""


@dataclass(frozen=True)
class AssetConfig:
    """What fixes the shapes and code path of an optimisation; numbers to sweep are `Knobs`."""

    camera: CameraConfig = field(default_factory=CameraConfig)
    views: Annotated[int, Range(1, 4096)] = 4
    """Views rendered a step."""
    stages: tuple[StageConfig, ...] = (StageConfig(200, 32), StageConfig(80, 64))
    """None at all leaves an asset as a recipe's model makes it."""
    rate: NonNegative = 0.01
    """Learning rate of Adam."""
    rates: tuple[tuple[str, NonNegative], ...] = ()
    """Learning rates of single groups, by the top-level names of the parameters, in place of `rate`
    and of what the representation itself asks for. What a guidance trains beside the asset goes by
    the name "guidance"."""
    p_grey: Share = 0.5
    """Chance that a view gets a background of random grey instead of the knobs'."""
    grey: Annotated[tuple[Share, Share], RISING] = (0.25, 1.0)
    """Range of that grey; the embedded critic has seen no darker ground."""
    p_textureless: Share = 0.5
    """Chance that a lit view is white, so that its shape alone is judged."""
    ambient: Share = 0.1
    """Share of the ambient light in lit views."""

    def mistake(self) -> str | None:
        """What does not fit together, for `bounds.check`."""
        steps = sum(stage.steps for stage in self.stages)
        if self.stages and not 1 <= steps <= INT32:
            return f"stages take {steps} steps in all; expected from 1 to {INT32}"
        if self.views % self.camera.group:
            return (
                f"views is {self.views}; cameras in groups of {self.camera.group} "
                "(camera.group) take a multiple of that"
            )
        return None


class Optimizer(NamedTuple):
    """Two pure functions of one asset; batch them over assets with `vmap`."""

    init: Callable[..., AssetState]
    """`init(knobs, params=None) -> AssetState`; `params` starts from an asset at hand."""
    step: Callable[..., tuple[AssetState, dict[str, Array]]]
    """`step(state, shared, cond, Knobs, size) -> (state, metrics)`; `shared` and `cond` are what
    the terms' guidances read; `size`, the side of the renders in pixels, is static"""


def distil(
    representation: Representation,
    prior: Prior,
    guidance: Guidance,
    shared: Params,
    config: AssetConfig,
    others: Sequence[Term] = (),
) -> tuple[Stage, ...]:
    """The stages of an asset under one critic, a resolution each, and `others` beside it.

    Raises:
      ValueError: The views do not fit a critic that looks at several together.
    """
    if config.views % prior.views:
        raise ValueError(
            f"views={config.views}: this critic looks at {prior.views} views together; "
            f"take a multiple of {prior.views}"
        )
    optimizer = make(representation, (random_views(guidance, config), *others), config)
    return stages(representation, optimizer, shared, config)


def fit(
    representation: Representation, guidance: Guidance, config: AssetConfig
) -> tuple[Stage, ...]:
    """The stages of a scene that is fitted to photographs, which are its condition."""
    term = random_views(guidance, config)._replace(
        cameras=lambda key, cond: photometric.cameras(key, cond, config.views)
    )
    optimizer = make(representation, (term,), config)
    return stages(representation, optimizer, {}, config, watch="photometric")


def stages(
    representation: Representation,
    optimizer: Optimizer,
    shared: Params,
    config: AssetConfig,
    watch: str = "residual_norm",
) -> tuple[Stage, ...]:
    """An optimisation as the engine runs it: moments and step count go on from stage to stage.

    An asset is stopped early by the metric to `watch`, in the last stage.
    """

    def begin(task: Task, left: Left | None) -> AssetState:
        if left is None:
            return optimizer.init(task.knobs)
        return optimizer.init(task.knobs, left.params).replace(shown=left.shown)

    def go_on(task: Task, left: Left) -> AssetState:
        del task
        return left.rest

    def of(i: int, steps: int, size: int) -> Stage:
        def step(state, shared, cond, knobs):
            return optimizer.step(state, shared, cond, knobs, size)

        return Stage(
            representation=representation,
            start=begin if i == 0 else go_on,
            step=step,
            steps=steps,
            result=lambda state, shared: Left(state.params, state, state.shown),
            shared=shared,
            watch=watch if i == len(config.stages) - 1 else None,
        )

    return tuple(of(i, *each) for i, each in enumerate(config.stages))


def random_views(guidance: Guidance, config: AssetConfig) -> Term:
    """The term of distillation: cameras and looks at random, as the config has them."""
    return Term(
        cameras=lambda key, cond: camera.sample(key, config.camera, config.views),
        look=lambda key, step, cameras, knobs: sample_look(key, config, step, cameras, knobs),
        guidance=guidance,
        weight=lambda knobs: knobs.lambda_sds,
    )


def make(representation: Representation, terms: Sequence[Term], config: AssetConfig) -> Optimizer:
    """The optimisation of one asset under the sum of some terms."""
    adam = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-15)

    def init(knobs: Knobs, params: Params = None) -> AssetState:
        """The state before the first step."""
        asset_key, own_key = jax.random.split(step_key(knobs, INIT))
        params = representation.init(asset_key) if params is None else params
        own = tuple(
            term.guidance.init(_of_term(own_key, i)) if term.guidance.init is not None else None
            for i, term in enumerate(terms)
        )
        group_rates(config, representation, 0.0, params)
        opt_state = (adam.init(params), adam.init(own))
        memory = representation.memory(params)
        return AssetState(jnp.zeros((), jnp.int32), params, opt_state, memory, own)

    def objective(trained, state, keys, shared, cond, knobs, size):
        """The scalar to descend; only its gradient has a meaning."""
        params, own = trained
        each = [
            _judge(representation, term, params, own[i], keys[i], state, shared, cond, knobs, size)
            for i, term in enumerate(terms)
        ]
        scalars, metrics, pictures = zip(*each, strict=True)
        seen = {name: sum(p[name] for p in pictures) / len(terms) for name in pictures[0]}
        regularisers = seen | representation.regularise(params)
        total = sum(scalars) + weigh(regularisers, knobs, state.step)
        return total, _named(metrics) | regularisers

    def step(
        state: AssetState, shared: Params, cond: Any, knobs: Knobs, size: int
    ) -> tuple[AssetState, dict[str, Array]]:
        """One update of one asset."""
        key = step_key(knobs, state.step)
        *first, adapt_key = jax.random.split(key, 5)
        keys = [first, *(jax.random.split(_of_term(key, i), 4) for i in range(1, len(terms)))]
        trained = (state.params, state.guidance)
        gradient, metrics = jax.grad(objective, has_aux=True)(
            trained, state, keys, shared, cond, knobs, size
        )
        updates, opt_state = zip(*map(adam.update, gradient, state.opt_state), strict=True)
        lr = knobs.lr.at(state.step)
        progress = jnp.clip(state.step / knobs.steps, 0.0, 1.0)
        groups = group_rates(config, representation, progress, state.params)
        metrics["grad_norm"] = _norm(gradient[0], learning_rates(groups, *trained)[0])
        groups = {name: lr * rate for name, rate in groups.items()}
        rates = learning_rates(groups, *trained)
        params, own = jax.tree.map(
            lambda x, update, rate: x - (rate * update).astype(x.dtype), trained, updates, rates
        )
        taken = Taken(state.step, progress, groups)
        params, adapted, memory = representation.adapt(
            params, opt_state[0], state.memory, gradient[0], taken, adapt_key
        )
        opt_state = (adapted, opt_state[1])
        return AssetState(state.step + 1, params, opt_state, memory, own, state.shown), metrics

    return Optimizer(init, step)


def _judge(representation, term: Term, params, own, keys, state, shared, cond, knobs, size):
    """One term's scalar and metrics, and the regularisers of its renders."""
    # Taken out once: a key that is indexed again counts as used twice.
    camera_key, look_key, render_key, judge_key = keys
    cameras = term.cameras(camera_key, cond)
    look = term.look(look_key, state.step, cameras, knobs)
    render = representation.render(params, render_key, cameras, look, (size, size))
    overflow, render = render.overflow, render.replace(overflow=None)
    weight = term.weight(knobs).at(state.step)
    weighed = jax.tree.map(lambda x: scale_gradient(x, weight), render)
    shot = Shot(state.step, cameras, look, weighed, camera_key)
    scalar, metrics = term.guidance.loss(shared, judge_key, shot, cond, knobs, own)
    if overflow is not None:
        metrics = metrics | {"overflow": jnp.sum(overflow).astype(jnp.float32)}
    return scalar, metrics, of_pictures(render)


def _of_term(key: Key, term: int) -> Key:
    """A key for each term; the first has the one that it has alone."""
    return jax.random.fold_in(key, term) if term else key


def _named(metrics: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """All terms' metrics: the first one's by their names, the others' by their number too."""
    return {
        name if i == 0 else f"{name}_{i}": value
        for i, of_term in enumerate(metrics)
        for name, value in of_term.items()
    }


def group_rates(
    config: AssetConfig, representation: Representation, progress, params: Params
) -> dict[str, Any]:
    """The learning rate of each group at a share of the run, before the knobs' factor.

    Raises `ValueError` for rates of a group that there is not.
    """
    names = {_group(path) for path, _ in jax.tree.leaves_with_path(params)} | {"guidance"}
    rates = representation.rates(progress) | dict(config.rates)
    if unknown := set(rates) - names:
        raise ValueError(f"rates: no group {sorted(unknown)}; there are {sorted(names)}")
    return dict.fromkeys(sorted(names), config.rate) | rates


def learning_rates(groups: dict[str, Any], params: Params, own: Params) -> tuple[Any, Any]:
    """The learning rate of each leaf."""
    of_params = jax.tree.map_with_path(lambda path, _: groups[_group(path)], params)
    return of_params, jax.tree.map(lambda _: groups["guidance"], own)


def _norm(gradient: Params, rates: Any) -> Array:
    """Of the gradient, without the groups whose rate is 0: they are not trained."""
    return optax.tree.norm(
        jax.tree.map(lambda g, rate: jnp.where(jnp.asarray(rate) == 0, 0, g), gradient, rates)
    )


def _group(path) -> str:
    return jax.tree_util.keystr(path[:1], simple=True)


def sample_look(key: Key, config: AssetConfig, step, cameras: Camera, knobs: Knobs) -> Look:
    """Background and light of each view (DreamFusion, section 3.1); lamps stand near the camera."""
    keys = jax.random.split(key, 5)
    views = cameras.azimuth.shape
    low, high = config.grey
    grey = jax.random.uniform(keys[0], (*views, 1), minval=low, maxval=high) * jnp.ones(3)
    use_grey = jax.random.bernoulli(keys[1], config.p_grey, views)
    lit = jax.random.bernoulli(keys[2], knobs.p_shaded.at(step), views)
    bare = jax.random.bernoulli(keys[3], config.p_textureless, views)
    towards = normalize(cameras.c2w[..., :3, 3])
    return Look(
        background=jnp.where(use_grey[..., None], grey, knobs.background),
        ambient=jnp.where(lit, config.ambient, 1.0),
        textureless=(lit & bare).astype(jnp.float32),
        light=normalize(towards + 0.5 * jax.random.normal(keys[4], towards.shape)),
    )
