"""TRELLIS's Gaussians: from what its decoder says of each voxel to a `fields.gaussians`.

In TRELLIS's world +z is up and objects look along -y, as in Blender, from where its data come; our
(x, y, z) are its (-y, x, z).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import weights
from jax3d.fields.densify import DEAD
from jax3d.fields.gaussians import GaussiansConfig
from jax3d.nn import trellis_latents
from jax3d.nn.sparse import Voxels
from jax3d.nn.trellis_latents import GaussianDecoder
from jax3d.render.splat import SplatConfig
from jax3d.types import Params
from jax3d.weights import WeightsError

NUMBERS = {"_xyz": 3, "_features_dc": 3, "_scaling": 3, "_rotation": 4, "_opacity": 1}
"""Of each Gaussian, in the order in which the decoder says them, each for all of a voxel's."""
TURN = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
"""From TRELLIS's world to ours: a quarter about z."""


class Splats(NamedTuple):
    """How raw numbers become Gaussians: `representation_config` of the decoder's settings."""

    count: int
    """Gaussians of a voxel."""
    factors: dict[str, float]
    """Of the raw numbers."""
    perturbed: bool
    """Whether offsets begin at those that come with the weights."""
    reach: float
    """How far an offset leads at most, voxels' half sides."""
    floor: float
    """Least standard deviation, sides of the cube."""
    scale: float
    """Standard deviation where the raw number is 0, before the floor."""
    opacity: float
    """Where the raw number is 0."""
    activation: str
    """Of scales: "exp" or "softplus"."""
    blur: float
    """Of footprints, pixels^2."""


def decoder(config: dict[str, Any], dtype: Any = jnp.float32) -> tuple[GaussianDecoder, Splats]:
    """The decoder that a file of settings describes; raises `WeightsError`."""
    settings = trellis_latents.decoder_settings(config, "SLatGaussianDecoder")
    splats = from_config(config["args"].get("representation_config"))
    return GaussianDecoder(settings, splats.count * sum(NUMBERS.values()), dtype), splats


def abstract_params(found: tuple[GaussianDecoder, Splats]) -> Params:
    """The shapes of its parameters, and of the offsets that a checkpoint has beside them."""
    net, splats = found
    offsets = jax.ShapeDtypeStruct((splats.count, 3), jnp.float32)
    return trellis_latents.abstract_gaussian_decoder(net) | {"offset_perturbation": offsets}


def from_config(config: Any) -> Splats:
    """The settings of a decoder's `representation_config`.

    Raises:
      WeightsError: it lacks something, or asks for what is not supported.
    """
    if not isinstance(config, dict) or not isinstance(config.get("lr"), dict):
        raise WeightsError("representation_config is no JSON object with lr")
    kinds = {
        "num_gaussians": int,
        "perturb_offset": bool,
        "voxel_size": float,
        "3d_filter_kernel_size": float,
        "scaling_bias": float,
        "opacity_bias": float,
        "scaling_activation": str,
        "2d_filter_kernel_size": float,
    }
    found = weights.checked(config, kinds)
    factors = weights.checked(config["lr"], dict.fromkeys(NUMBERS, float))
    if lost := sorted({*kinds, *NUMBERS} - {*found, *factors}):
        raise WeightsError(f"representation_config lacks {', '.join(lost)}")
    if found["scaling_activation"] not in ("exp", "softplus"):
        raise WeightsError(
            f"scaling_activation = {weights.shown(found['scaling_activation'])} is not supported, "
            "only exp and softplus"
        )
    sound = found["scaling_bias"] > 0 and 0 < found["opacity_bias"] < 1
    if not sound or not 1 <= found["num_gaussians"] <= 1024 or found["2d_filter_kernel_size"] < 0:
        raise WeightsError(f"representation_config = {weights.shown(found)} cannot be meant")
    found = {k: float(v) if kinds[k] is float else v for k, v in found.items()}
    count, *others = (found[name] for name in kinds)
    return Splats(count, {k: float(v) for k, v in factors.items()}, *others)


def field(splats: Splats, room: int) -> GaussiansConfig:
    """The representation, with places for the Gaussians of `room` voxels."""
    capacity = splats.count * room
    return GaussiansConfig(
        capacity=capacity,
        start=capacity,
        bound=0.5,
        densify=None,
        splat=SplatConfig(antialiased=True, blur=splats.blur),
    )


def parameters(
    raw: Float[Array, "n o"],
    perturbation: Float[Array, "g 3"],
    voxels: Voxels,
    splats: Splats,
    side: int,
) -> Params:
    """Parameters of `field`, in our world.

    Args:
      raw: the decoder's numbers.
      perturbation: of the offsets of each of a voxel's Gaussians, before the activation.
      voxels: where they are.
      splats: the settings.
      side: of the grid.
    """
    n, g = len(raw), splats.count
    ends = [g * sum(list(NUMBERS.values())[: i + 1]) for i in range(len(NUMBERS) - 1)]
    parts = zip(NUMBERS.items(), jnp.split(raw, ends, axis=-1), strict=True)
    said = {name: x.reshape(n, g, k) * splats.factors[name] for (name, k), x in parts}
    offset = jnp.tanh(said["_xyz"] + perturbation * splats.perturbed)
    center = (voxels.coords[:, None] + 0.5) / side - 0.5
    means = center + 0.5 * splats.reach / side * offset
    identity = jnp.array([1.0, 0.0, 0.0, 0.0])
    values = {
        "means": jnp.einsum("ij,ngj->ngi", jnp.array(TURN), means, precision="highest"),
        "quats": turned(said["_rotation"] + identity),
        "scales": _log_scales(said["_scaling"], splats),
        "opacities": said["_opacity"][..., 0] + math.log(splats.opacity / (1 - splats.opacity)),
        "sh0": said["_features_dc"][..., None, :],
    }
    nobody = {"quats": identity, "scales": math.log(splats.floor or 1e-7), "opacities": DEAD}

    def kept(name, x):
        there = voxels.there.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(there, x, nobody.get(name, 0.0)).reshape(n * g, *x.shape[2:])

    return {name: kept(name, x) for name, x in values.items()}


def turned(quats: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Rotations (w, x, y, z) followed by `TURN`."""
    w, x, y, z = jnp.moveaxis(quats, -1, 0)
    return jnp.stack([w - z, x - y, x + y, w + z], axis=-1) * 0.5**0.5


def _log_scales(raw: Array, splats: Splats) -> Array:
    """Logarithms of standard deviations."""
    if splats.activation == "exp":
        scales = jnp.exp(raw + math.log(splats.scale))
    else:
        scales = jax.nn.softplus(raw + math.log(math.expm1(splats.scale)))
    # Held above 0 where there is no floor.
    return 0.5 * jnp.log(jnp.maximum(scales**2 + splats.floor**2, 1e-14))
