"""What every form of score distillation shares.

Letters: v views, z the critic's pixels or latents, t timesteps, abar the critic's noise schedule
(alpha^2 = abar, sigma^2 = 1 - abar), s the guidance scale.

A critic never enters the gradient: a guidance computes a residual r in z from stopped values and
returns sum(stop_gradient(w r) * z) / v, whose gradient in z is w r / v (DreamFusion,
arXiv:2209.14988, eq. 3). The value of that loss says nothing; `residual_norm` does.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jax3d.bounds import Share
from jax3d.diffusion import cfg, noise_level, q_sample, rescale
from jax3d.guidance import perp_neg
from jax3d.knobs import Knobs
from jax3d.priors.base import Prior
from jax3d.prompts import hard_weights, select, soft_weights
from jax3d.types import Camera, Cond, Condition, Key, Params

Weighting = Literal["sds", "uniform", "fantasia3d", "recon"]


@dataclass(frozen=True)
class ScoreConfig:
    """How a critic is asked."""

    weighting: Weighting = "sds"
    """w(t): "sds" sigma^2, "uniform" 1 (score Jacobian chaining), "fantasia3d" alpha sigma^2,
    "recon" sigma / alpha, which makes w (eps_hat - eps) = z - x0 (MVDream)."""
    view_words: Literal["none", "hard", "soft", "perp-neg"] = "hard"
    """How the camera chooses among the prompt's wordings; "none" takes the plain prompt."""
    use_camera: bool = True
    """Tell the critic the exact camera."""
    shared_t: bool = False
    """One timestep for all views; multi-view critics need it."""
    shared_noise: bool = False
    """One noise image for all views."""
    rescale: Share = 0.0
    """Share of the rescaling of x0 to its spread without guidance, over the views that the critic
    looks at together (MVDream takes 0.5)."""


class Noised(NamedTuple):
    """One draw of what the critic looks at; nothing in it carries a gradient."""

    t: Int[Array, " v"]
    noise: Float[Array, "v h w c"]
    z_t: Float[Array, "v h w c"]


def encode(
    prior: Prior, prior_params: Params, key: Key, rgb: Float[Array, "v H W 3"]
) -> Float[Array, "v h w c"]:
    """z of images of any size; no gradient reaches the critic's weights."""
    return prior.encode(lax.stop_gradient(prior_params), key, resize(rgb, prior.size))


def resize(rgb: Float[Array, "v H W 3"], size: int) -> Float[Array, "v {size} {size} 3"]:
    """Bilinear, to the side that the critic takes."""
    return jax.image.resize(rgb, (len(rgb), size, size, 3), "linear")


def draw_t(key: Key, step, knobs: Knobs, timesteps: int, shape: tuple[int, ...] = ()) -> Array:
    """Uniform in floor(T t_min) .. floor(T t_max), both included."""
    # The small shift undoes float32 rounding below a whole number.
    low, high = (
        jnp.floor(jnp.clip(end.at(step), 0, 1) * timesteps + 1e-3).astype(jnp.int32)
        for end in (knobs.t_min, knobs.t_max)
    )
    high = jnp.minimum(high, timesteps - 1)
    return jax.random.randint(key, shape, jnp.minimum(low, high), high + 1)


def draw(
    prior: Prior, key: Key, step, z: Float[Array, "v h w c"], knobs: Knobs, config: ScoreConfig
) -> Noised:
    """Noise z at random timesteps of the range that the knobs ask for."""
    t_key, noise_key = jax.random.split(key)
    shape = () if config.shared_t else (len(z),)
    t = draw_t(t_key, step, knobs, len(prior.alphas_cumprod), shape)
    noise = jax.random.normal(noise_key, z.shape[1:] if config.shared_noise else z.shape, z.dtype)
    return renoise(prior, z, jnp.broadcast_to(t, z.shape[:1]), jnp.broadcast_to(noise, z.shape))


def look(
    prior: Prior,
    prior_params: Params,
    key: Key,
    step,
    rgb: Float[Array, "v H W 3"],
    knobs: Knobs,
    config: ScoreConfig,
) -> tuple[Float[Array, "v h w c"], Noised]:
    """Renders as the critic sees them, clean and noised."""
    encode_key, draw_key = jax.random.split(key)
    z = encode(prior, prior_params, encode_key, rgb)
    return z, draw(prior, draw_key, step, z, knobs, config)


def renoise(prior: Prior, z: Array, t: Array, noise: Array) -> Noised:
    """Noise z at given timesteps."""
    return Noised(t, noise, q_sample(prior.alphas_cumprod, lax.stop_gradient(z), t, noise))


def guided(
    prior: Prior,
    prior_params: Params,
    at: Noised,
    camera: Camera,
    cond: Condition,
    scale,
    config: ScoreConfig,
) -> Float[Array, "v h w c"]:
    """eps_hat: the noise estimate under classifier-free guidance."""
    if config.view_words == "perp-neg":
        positive, negatives, weights = perp_neg.wordings(camera)
        texts = (positive, negatives[:, 0], negatives[:, 1])
        texts = (*(select(_worded(cond), w) for w in texts), repeat(cond.null, len(weights)))
        text, *away, null = ask(prior, prior_params, at.z_t, at.t, texts, camera, config)
        eps_hat = perp_neg.combine(null, text, jnp.stack(away, axis=1), weights, scale)
    else:
        texts = view_texts(cond, camera, config)
        text, null = ask(prior, prior_params, at.z_t, at.t, texts, camera, config)
        eps_hat = cfg(null, text, scale)
    if config.rescale == 0:
        return eps_hat
    alpha, sigma = noise_level(prior.alphas_cumprod, at.t, at.z_t.ndim)
    together = (-1, prior.views, *at.z_t.shape[1:])
    x0, bare = (((at.z_t - sigma * eps) / alpha).reshape(together) for eps in (eps_hat, text))
    x0 = rescale(x0, bare, config.rescale).reshape(at.z_t.shape)
    return (at.z_t - alpha * x0) / sigma


def view_texts(cond: Condition, camera: Camera, config: ScoreConfig) -> tuple[Cond, Cond]:
    """The prompt as each view is asked by, and the null text once a view: `([v], [v])`."""
    views = len(camera.azimuth)
    match config.view_words:
        case "hard":
            text = select(_worded(cond), hard_weights(camera))
        case "soft":
            text = select(_worded(cond), soft_weights(camera))
        case "none":
            text = repeat(cond.plain, views)
        case "perp-neg":
            raise ValueError(
                "view_words='perp-neg' asks by several texts: it works where a "
                "guidance uses score.guided, such as sds and vsd"
            )
    return text, repeat(cond.null, views)


def repeat(text: Cond, views: int) -> Cond:
    """One text for every view."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (views, *x.shape)), text)


def ask(
    prior: Prior,
    prior_params: Params,
    z_t: Float[Array, "v h w c"],
    t: Int[Array, " v"],
    texts: tuple[Cond, ...],
    camera: Camera,
    config: ScoreConfig,
) -> list[Float[Array, "v h w c"]]:
    """The noise estimates under several texts `[v]`, in one batch of the critic."""
    told = camera if config.use_camera else None

    def batch(x):
        return jnp.concatenate([x] * len(texts))

    text = jax.tree.map(lambda *x: jnp.concatenate(x), *texts)
    prior_params = lax.stop_gradient(prior_params)
    eps = prior.denoise(prior_params, batch(z_t), batch(t), text, jax.tree.map(batch, told))
    return jnp.split(lax.stop_gradient(eps), len(texts))


def weight(
    alphas_cumprod: Float[Array, " T"], t: Int[Array, " v"], weighting: Weighting
) -> Float[Array, "v 1 1 1"]:
    """w(t)."""
    abar = alphas_cumprod[t][:, None, None, None]
    match weighting:
        case "sds":
            return 1 - abar
        case "uniform":
            return jnp.ones_like(abar)
        case "fantasia3d":
            return jnp.sqrt(abar) * (1 - abar)
        case "recon":
            return jnp.sqrt((1 - abar) / abar)


def distil(
    z: Float[Array, "v h w c"], residual: Float[Array, "v h w c"], weight: Float[Array, "v 1 1 1"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The scalar whose gradient in z is `weight * residual / v`, and its metrics."""
    gradient = lax.stop_gradient(weight * residual) / len(z)
    return jnp.sum(gradient * z), {
        "residual_norm": jnp.sqrt(jnp.mean(lax.stop_gradient(residual) ** 2)),
        "z_grad_norm": jnp.sqrt(jnp.sum(gradient**2)),
    }


def refuse_rescale(config: ScoreConfig, name: str) -> None:
    """Raises `ValueError` for a guidance whose residual has no guided estimate to rescale."""
    if config.rescale:
        raise ValueError(
            f"guidance.score.rescale is {config.rescale}: {name} compares estimates and rescales "
            "none; set it to 0, or take sds, hifa or vsd"
        )


def _worded(cond: Condition) -> Cond:
    if cond.views is None:
        raise ValueError(
            "this critic has no wordings of a prompt for different views: set view_words='none'"
        )
    return cond.views
