"""Hunyuan3D 2's golden vectors, for `parity_golden.py`.

Its networks are asked as they are, in float32; its sampler goes over given velocities. Each check
is a value of ours and a tolerance.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jax3d import weights
from jax3d.models import hunyuan3d, hunyuan3d_config
from jax3d.nn import dit, vecset

Arrays = dict[str, np.ndarray]
Checks = dict[str, tuple]

NETWORKS = 2e-4


def check(split: Path, path: Path, io: Arrays) -> Checks:
    """A file of the networks, or of the sampler."""
    return check_sampler(io) if path.stem == "scheduler" else check_networks(split, io)


def check_networks(split: Path, io: Arrays) -> Checks:
    """The transformer, its insides, and the decoder."""
    tensors = hunyuan3d.names(weights.load(split / "model.fp16.safetensors"))
    settings = json.loads((split / "dit_config.json").read_text())
    net = dit.Dit(dit.DitConfig(**weights.checked_fields(settings, dit.DitConfig)))
    params = part(tensors, "dit", dit.abstract_params(net))
    run = jax.jit(partial(net.apply, capture_intermediates=True))
    told = (jnp.asarray(io[f"in_{name}"]) for name in ("x", "t", "ctx"))
    out, aside = run({"params": params}, *told)
    layers = aside["intermediates"]
    section = {"target": "ShapeVAE", "params": json.loads((split / "vae_config.json").read_text())}
    vae = hunyuan3d_config.vae_of(section)
    params = {"params": part(tensors, "vae", vecset.abstract_params(vae))}
    mixed = jax.jit(partial(vae.apply, method="mix"))(params, jnp.asarray(io["vae_in_latents"]))
    points = jnp.asarray(io["vae_queries"])
    values = jax.jit(partial(vae.apply, method="ask"))(params, mixed, points)
    read = vecset.encode(
        points[:, : io["vae_fourier"].shape[1]], vae.config.num_freqs, vae.config.include_pi
    )
    return {
        "mid_time_in": (shown(layers, "time_in"), NETWORKS),
        "mid_double0_img": (shown(layers, "double_blocks_0")[0], NETWORKS),
        "mid_single0": (shown(layers, "single_blocks_0"), NETWORKS),
        "out": (np.asarray(out), NETWORKS),
        "vae_transformer_out": (np.asarray(mixed), NETWORKS),
        "vae_logits": (np.asarray(values)[..., None], NETWORKS),
        "vae_fourier": (np.asarray(read), 1e-5),
    }


def part(tensors: Arrays, name: str, like):
    """The weights of one network."""
    own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    return weights.to_flax(own, like, name)


def shown(layers, name: str):
    """The output of a layer."""
    return jax.tree.map(np.asarray, layers[name]["__call__"][0])


def check_sampler(io: Arrays) -> Checks:
    """The times, and every step; theirs has one more, which stands still."""
    steps = len(io["timesteps"])
    settings = {"shift": float(io["shift"])}
    levels = hunyuan3d_config.levels("FlowMatchEulerDiscreteScheduler", settings, steps)
    times = jnp.asarray(levels, jnp.float32)
    x, path = jnp.asarray(io["in_x"]), []
    for i, v in enumerate(io["in_model_outputs"][: len(levels) - 1]):
        x = hunyuan3d.moved(x, jnp.asarray(v), i, times)
        path.append(np.asarray(x))
    return {
        "sigmas": (np.append(levels, 1.0), 1e-6),
        "timesteps": (1000 * levels, 1e-3),
        "traj": (np.stack([*path, path[-1]]), 1e-5),
    }
