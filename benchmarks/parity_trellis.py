"""TRELLIS's golden vectors, for `parity_golden.py`.

The file's voxels of two assets follow each other; ours are two sets, each with room to spare, of
which the rows that are somebody's are compared. Gaussians are those of the asset that ours leave,
in our world and after all activations, turned back to the decoder's own numbers. Each check is a
value of ours and a tolerance.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jax3d import weights
from jax3d.models import trellis, trellis_gaussians
from jax3d.nn import sparse
from jax3d.nn import trellis as networks
from jax3d.nn import trellis_latents as latents
from jax3d.types import Cond, Condition

Arrays = dict[str, np.ndarray]
Checks = dict[str, tuple]

NEAR = 2e-4
ROOMS = (128, 64)
"""Voxels of an asset, more than it has."""
LEAST_NOISE = 1e-5
"""The authors' sigma_min, which their estimate of the clean sample has."""


def check_structure(split: Path, path: Path, io: Arrays) -> Checks:
    """The flow of structures and its decoder, or the sampler."""
    if path.name == "sampler.npz":
        return check_sampler(io)
    net, params = trellis.read_network(
        split / "ss_flow", networks.structure_flow, networks.abstract_structure_flow
    )
    out, layers = jax.jit(partial(net.apply, capture_intermediates=True))(
        {"params": params}, last(io["in_x"]), io["in_t_times1000"], io["in_cond"]
    )
    decoder, decoding = trellis.read_network(
        split / "ss_dec", networks.structure_decoder, networks.abstract_structure_decoder
    )
    logits = jax.jit(decoder.apply)({"params": decoding}, last(io["dec_in"]))
    layers = layers["intermediates"]
    return {
        "pos_emb": (np.asarray(params["pos_emb"]), 0),
        "mid_t_emb": (shown(layers["t_embedder"]), NEAR),
        "mid_block0": (shown(layers["blocks_0"]), NEAR),
        "out": (np.moveaxis(np.asarray(out), -1, 1), NEAR),
        "dec_logits": (np.moveaxis(np.asarray(logits), -1, 1), NEAR),
    }


def last(x: np.ndarray):
    """Channels last."""
    return jnp.asarray(np.moveaxis(x, 1, -1))


def shown(layer) -> np.ndarray:
    """The output of a layer."""
    return np.asarray(layer["__call__"][0])


def check_sampler(io: Arrays) -> Checks:
    """Every step on the file's own velocity, with guidance where its interval has some."""
    strength = float(io["cfg_strength"])
    steps = trellis.sampler(
        int(io["steps"]), strength, tuple(map(float, io["cfg_interval"])), float(io["rescale_t"])
    )
    calls = [t for t, guided in zip(steps.t, steps.guided, strict=True) for _ in range(1 + guided)]
    tokens = [Cond(jnp.asarray(io[name])) for name in ("in_cond", "in_neg")]

    def velocity(x, t, told):
        return x @ io["W"] + told * jnp.cos(t / 300)[:, None]

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, 0))
    def step(x, i, cond):
        return trellis.euler(velocity, x, i, steps, cond, jnp.float32(1 + strength))

    path = [jnp.asarray(io["in_x"])]
    for i in range(len(steps.t)):
        path.append(step(path[-1], jnp.int32(i), Condition(*tokens)))
    path, t, drop = np.stack(path), *(a[:, None, None] for a in steps[:2])
    v = (path[:-1] - path[1:]) / drop
    clean = (1 - LEAST_NOISE) * path[:-1] - (LEAST_NOISE + (1 - LEAST_NOISE) * t) * v
    return {
        "model_calls_t": (1000 * np.array(calls), 1e-3),
        "pred_x_t": (path[1:], 1e-5),
        "pred_x_0": (clean, 1e-4),
        "out": (path[-1], 1e-5),
    }


def check_latents(split: Path, path: Path, io: Arrays) -> Checks:
    """The flow of latents and the decoder to Gaussians."""
    del path
    net, params = trellis.read_network(
        split / "slat_flow", latents.latent_flow, latents.abstract_latent_flow
    )
    side = net.config.resolution
    assets = [asset(io, i, side) for i in range(2)]
    place, x = (jnp.stack(parts) for parts in zip(*assets, strict=True))

    def flow(place, x, t, told):
        found = sparse.levels(place, side, ROOMS[1:])
        run = partial(net.apply, capture_intermediates=True)
        out, layers = run({"params": params}, x[None], found, t[None], told[None])
        return out, layers["intermediates"], found.voxels

    out, layers, voxels = jax.jit(jax.vmap(flow))(
        place, x, io["in_t_times1000"], jnp.asarray(io["in_cond"])
    )
    found = {
        "mid_input_layer": (layers["input_layer"], 0),
        "mid_conv1": (layers["input_blocks_0"]["conv1"], 0),
        "mid_inblock0": (layers["input_blocks_0"], 0),
        "mid_inblock1_down": (layers["input_blocks_1"], 1),
        "mid_block0": (layers["blocks_0"], 1),
        "mid_outblock0_up": (layers["out_blocks_0"], 0),
    }
    checks = {"out_feats": (joined(out[:, 0], voxels[0]), NEAR)}
    for name, (layer, level) in found.items():
        at = voxels[level]
        checks[name] = (joined(shown(layer)[:, 0], at), NEAR)
        asset_of = np.repeat(np.arange(2), np.sum(at.there, axis=1))
        coords = np.concatenate([asset_of[:, None], joined(at.coords, at)], axis=1)
        checks[f"{name}_coords"] = (coords, 0)
    tensors = weights.load(split / "slat_flow.safetensors")
    shape = np.array(tensors["input_blocks.0.conv1.conv.weight"].shape)
    return checks | {"conv1_weight_shape": (shape, 0)} | check_gaussians(split, place, x)


def asset(io: Arrays, i: int, side: int) -> tuple[jnp.ndarray, jnp.ndarray]:
    """The places and features of one of the file's assets, with room to spare."""
    mine = io["in_coords"][:, 0] == i
    place = io["in_coords"][mine, 1:] @ [side**2, side, 1]
    spare = ROOMS[0] - len(place)
    place = np.pad(place, (0, spare), constant_values=side**3)
    return jnp.asarray(place, jnp.int32), jnp.asarray(
        np.pad(io["in_feats"][mine], [(0, spare), (0, 0)])
    )


def joined(x, voxels: sparse.Voxels) -> np.ndarray:
    """The rows that are somebody's, of one asset after another."""
    return np.asarray(x)[np.asarray(voxels.there)]


def check_gaussians(split: Path, place, x) -> Checks:
    """The decoder's transformer, and its Gaussians."""
    (net, splats), params = trellis.read_network(
        split / "slat_dec_gs", trellis_gaussians.decoder, trellis_gaussians.abstract_params
    )
    side, offsets = net.config.resolution, params["offset_perturbation"]

    def decode(place, x):
        voxels = sparse.voxels(place, side)
        run = partial(net.apply, capture_intermediates=True)
        raw, layers = run({"params": params}, x[None], voxels)
        made = trellis_gaussians.parameters(raw[0], offsets, voxels, splats, side)
        return layers["intermediates"], made, voxels

    layers, made, voxels = jax.jit(jax.vmap(decode))(place, x)
    last_block = f"blocks_{net.config.num_blocks - 1}"
    checks = {
        "gs_trunk_feats": (joined(shown(layers[last_block])[:, 0], voxels), NEAR),
        "gs_offset_perturbation": (np.asarray(offsets), 0),
    }
    for i in range(2):
        there = np.repeat(np.asarray(voxels.there[i]), splats.count)
        one = {k: np.asarray(v[i])[there] for k, v in made.items()}
        checks |= {f"gs{i}_{k}": (v, NEAR) for k, v in raw_numbers(one, splats).items()}
    return checks


def raw_numbers(made: Arrays, splats: trellis_gaussians.Splats) -> Arrays:
    """Parameters turned back to what the decoder said, in its own world."""
    turn = np.array(trellis_gaussians.TURN)
    w, x, y, z = np.moveaxis(made["quats"], -1, 0)
    back = np.stack([w + z, x + y, y - x, z - w], axis=-1) * 0.5**0.5
    scales = np.sqrt(np.exp(2.0 * made["scales"].astype(np.float64)) - splats.floor**2)
    scales = np.log(np.expm1(scales)) - np.log(np.expm1(splats.scale))
    odds = splats.opacity / (1 - splats.opacity)
    return {
        "xyz": made["means"] @ turn + 0.5,
        "features_dc": made["sh0"],
        "scaling": scales,
        "rotation": back - [1, 0, 0, 0],
        "opacity": made["opacities"][:, None] - np.log(odds),
    }
