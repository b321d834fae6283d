"""Variational score distillation (ProlificDreamer, arXiv:2305.16213).

A second critic learns, step by step, what the asset's renders look like; the asset moves along
the difference between the frozen critic and this one. The second critic is any pair of functions;
`lora` makes one of the first critic and low-rank changes of its matrices (arXiv:2106.09685).
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import lax

from jax3d.bounds import Count, NonNegative, Share
from jax3d.diffusion import cfg
from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Critic, Prior
from jax3d.priors.stable_diffusion import camera_weights
from jax3d.types import Key, Params


@dataclass(frozen=True)
class VSDConfig:
    """Variational score distillation."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    second_scale: NonNegative = 1.0
    """Guidance of the second critic by the camera; 1 asks it once."""
    p_untold: Share = 0.1
    """Chance that the second critic learns from a view without its camera."""
    rank: Count = 4
    """Of the changes of matrices that `lora` makes."""
    pattern: str = r"'unet'.*'(to_\w+|qkv|words|out)'"
    """Which matrices, by their paths: those of all attention layers."""

    def build(self, critic: Critic) -> Guidance:
        """The guidance by a critic, with low-rank changes of it for the second one."""
        second = lora(
            critic.prior,
            critic.params,
            rank=self.rank,
            pattern=self.pattern,
            camera_weights=camera_weights(critic.params),
        )
        return vsd(critic.prior, second, self)

    def mistake(self) -> str | None:
        """What does not fit together, for `bounds.check`."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            return f"pattern is {self.pattern!r}; expected a regular expression ({error})"
        return None


class SecondCritic(NamedTuple):
    """A critic that is trained beside the asset."""

    init: Callable[..., Any]
    """`init(key) -> own`"""
    denoise: Callable[..., Any]
    """`denoise(prior_params, own, z_t, t, Cond[b], Camera[b], told[b]) -> eps`, where `told`
    is 1 for views whose camera may be used and 0 for the others"""


def vsd(prior: Prior, second: SecondCritic, config: VSDConfig | None = None) -> Guidance:
    """The residual w(t) (eps_hat - eps_second), plus the second critic's own denoising loss.

    The second critic reads the prompt without view words, `Condition.plain` (eq. 9 and 10).
    """
    config = config or VSDConfig()

    def loss(shared, key, shot, cond, knobs, own):
        shared = lax.stop_gradient(shared)
        look_key, learn_key = jax.random.split(key)
        z, at = score.look(prior, shared, look_key, shot.step, shot.rgb, knobs, config.score)
        text = score.repeat(cond.plain, len(z))
        scale = knobs.guidance_scale.at(shot.step)
        eps_hat = score.guided(prior, shared, at, shot.camera, cond, scale, config.score)

        def ask(own, at, told):
            return second.denoise(shared, own, at.z_t, at.t, text, shot.camera, told)

        eps_second = _second(ask, lax.stop_gradient(own), at, config.second_scale)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        judged, metrics = score.distil(z, eps_hat - eps_second, w)
        metrics["second_loss"] = _learn(ask, own, prior, learn_key, z, config)
        return judged + metrics["second_loss"], metrics

    return Guidance(loss, second.init)


def _second(ask, own, at: score.Noised, scale: float):
    """The second critic's estimate, guided by the camera."""
    told = ask(own, at, jnp.ones(len(at.t)))
    if scale == 1:
        return told
    return cfg(ask(own, at, jnp.zeros(len(at.t))), told, scale)


def _learn(ask, own, prior: Prior, key: Key, z, config: VSDConfig):
    """Mean squared error of the second critic on renoised renders, over all of the schedule."""
    t_key, noise_key, told_key = jax.random.split(key, 3)
    t = jax.random.randint(t_key, z.shape[:1], 0, len(prior.alphas_cumprod))
    at = score.renoise(prior, z, t, jax.random.normal(noise_key, z.shape, z.dtype))
    told = 1.0 - jax.random.bernoulli(told_key, config.p_untold, z.shape[:1])
    return jnp.mean((ask(own, at, told) - at.noise) ** 2)


def lora(
    prior: Prior,
    like: Params,
    *,
    rank: int = VSDConfig.rank,
    pattern: str = VSDConfig.pattern,
    camera_weights: Params = None,
) -> SecondCritic:
    """The first critic with low-rank changes of its matrices whose path matches `pattern`.

    The change is zero at first. Each asset holds its own changed copy of the matched matrices
    while it is asked.

    Args:
      prior: the first critic.
      like: the shapes of its weights.
      rank: of the changes.
      pattern: searched in `jax.tree_util.keystr` of the paths.
      camera_weights: shapes of weights by which a critic of text alone is told the camera, such
        as `priors.stable_diffusion.camera_weights` makes; a nested dict, joined with the
        critic's. Of views whose camera may not be used the critic then sees a pose of zeros.

    Raises:
      ValueError: no matrix matches.
    """
    matrices = {
        name: leaf.shape
        for path, leaf in jax.tree.leaves_with_path(like)
        if len(leaf.shape) == 2 and re.search(pattern, name := jax.tree_util.keystr(path))
    }
    if not matrices:
        raise ValueError(f"lora: no matrix of the critic has a path that matches {pattern!r}")
    added = traverse_util.flatten_dict(camera_weights or {}, sep="/")

    def init(key: Key) -> Params:
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        own = {name: _pair(next(keys), *shape, rank) for name, shape in matrices.items()}
        return own | {name: _fresh(next(keys), name, leaf.shape) for name, leaf in added.items()}

    def denoise(prior_params, own, z_t, t, text, camera, told):
        def changed(path, leaf):
            pair = own.get(jax.tree_util.keystr(path))
            return leaf if pair is None else leaf + (pair["down"] @ pair["up"]).astype(leaf.dtype)

        params = jax.tree.map_with_path(changed, prior_params)
        if added:
            flat = traverse_util.flatten_dict(params, sep="/")
            params = traverse_util.unflatten_dict(flat | {k: own[k] for k in added}, sep="/")
            camera = camera.replace(c2w=camera.c2w * told[:, None, None])
        return prior.denoise(params, z_t, t, text, camera)

    return SecondCritic(init, denoise)


def _pair(key: Key, rows: int, columns: int, rank: int) -> Params:
    """A change of a matrix that is zero at first."""
    down = jax.random.normal(key, (rows, rank)) / rows**0.5
    return {"down": down, "up": jnp.zeros((rank, columns))}


def _fresh(key: Key, name: str, shape: tuple[int, ...]):
    # The last layer is zero, so that cameras change nothing at first.
    if len(shape) < 2 or "linear_2" in name:
        return jnp.zeros(shape)
    return jax.random.normal(key, shape) / shape[0] ** 0.5
