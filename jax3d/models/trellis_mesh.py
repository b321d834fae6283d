"""TRELLIS's meshes, by the decoder of its folders that speaks for FlexiCubes.

Its voxels are those of the latents cut in 64; each says signed distance, displacement and colour of
its corners, and FlexiCubes' weights. Voxels that share a corner are averaged there, and where there
is no voxel is the outside. Official code that runs without CUDA there is none, so this part is held
to the formulas alone.

Letters: n voxels, o numbers of each, g points along an axis, p = g^3 points of the lattice.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax3d import weights
from jax3d.mesh import flexicubes
from jax3d.models import trellis
from jax3d.models.trellis import Design, State
from jax3d.models.trellis_gaussians import TURN
from jax3d.nn import sparse, trellis_latents
from jax3d.nn.trellis_latents import MeshDecoder
from jax3d.types import Mesh, Params
from jax3d.weights import WeightsError

NUMBERS = {"sdf": 8, "deform": 24, "weights": 21, "color": 48}
"""Of each voxel, in the order in which the decoder says them; colours have normals beside them."""
FINER = 4
"""Voxels along an axis for one of the latents."""
WEIGHT_SCALE = 0.99
"""How far FlexiCubes' weights go, as its authors take."""


class Lattice(NamedTuple):
    """What FlexiCubes asks for, in TRELLIS's world."""

    x: Float[np.ndarray, "p 3"]
    sdf: Float[np.ndarray, " p"]
    rgb: Float[np.ndarray, "p 3"] | None
    weights: Float[np.ndarray, "k 21"]
    """Raw ones, of the voxels that there are, after a row of zeros."""
    row: Int[np.ndarray, " c"]
    """The row of each cube."""


def load(path: Path, dtype: Any = jnp.float32) -> tuple[MeshDecoder, Params]:
    """The decoder of a folder of TRELLIS and its weights.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the other.
    """
    args = weights.read_config(path / "pipeline.json").get("args")
    models = args.get("models") if isinstance(args, dict) else None
    stem = trellis.network_files(path, models, "slat_decoder_mesh")
    return trellis.read_network(
        stem, lambda config: decoder(config, dtype), trellis_latents.abstract_mesh_decoder
    )


def decoder(config: dict[str, Any], dtype: Any = jnp.float32) -> MeshDecoder:
    """The decoder that a file of settings describes; raises `WeightsError`."""
    settings = trellis_latents.decoder_settings(config, "SLatMeshDecoder")
    if settings.model_channels % (8 * trellis_latents.GROUPS):
        raise WeightsError(f"{settings.model_channels} channels do not make groups at an eighth")
    wanted = config["args"].get("representation_config")
    colored = isinstance(wanted, dict) and wanted.get("use_color") is True
    return MeshDecoder(settings, sum(NUMBERS.values()) - 48 * (not colored), dtype)


def mesh(net: MeshDecoder, own: Params, design: Design, params: Params, z: State) -> Mesh:
    """The mesh of a sampled asset, in our world, on the host.

    Args:
      net: the decoder.
      own: its weights.
      design: what sampled the asset.
      params: of the model.
      z: at the end of sampling.

    Raises:
      EmptyFieldError: it says nowhere that it is inside.
      ValueError: the decoder is of another grid or other latents, or the asset has no voxels.
    """
    side, c = design.latent_flow.config.resolution, net.config
    if (c.resolution, c.latent_channels) != (side, design.latent_flow.config.in_channels):
        raise ValueError("the decoder of meshes is of another model than the sample")
    count = int(jnp.sum(z.place < side**3))
    if not count or not np.isfinite(z.latent).all():
        raise ValueError("the asset has no voxels, or more than there was room for: no mesh")
    # Few programs for assets of all sizes.
    room = min(1 << (count - 1).bit_length(), len(z.place))
    latent = z.latent[:room] * params["std"] + params["mean"]
    coords, raw = jax.jit(_decode, static_argnums=0)(net, own, z.place[:room], latent)
    there = np.repeat(np.arange(room) < count, FINER**3)
    found = lattice(np.asarray(coords)[there], np.asarray(raw)[there], FINER * side)
    return extract(found, FINER * side)


def _decode(net: MeshDecoder, own: Params, place, latent) -> tuple[Array, Array]:
    found = sparse.voxels(place, net.config.resolution)
    raw, fine = net.apply({"params": own}, latent[None], found)
    return fine.coords, raw[0]


def lattice(coords: Int[np.ndarray, "n 3"], raw: Float[np.ndarray, "n o"], side: int) -> Lattice:
    """The points and cubes of a grid of `side`^3 of what its voxels say."""
    ends = np.cumsum(list(NUMBERS.values()))
    sdf, deform, weight, color = np.split(raw, ends[:-1], axis=-1)
    said = [(sdf - 1 / side).reshape(-1, 8, 1), deform.reshape(-1, 8, 3)]
    if color.size:
        said.append(color.reshape(-1, 8, 6)[..., :3])
    said = np.concatenate(said, axis=-1).reshape(8 * len(coords), -1)
    g = side + 1
    corner = np.arange(8)[:, None] >> np.arange(3) & 1
    at = ((coords[:, None] + corner) @ [g * g, g, 1]).reshape(-1)
    shared = np.bincount(at, minlength=g**3)
    mean = [np.bincount(at, v, minlength=g**3) / np.maximum(shared, 1) for v in said.T]
    mean = np.stack(mean, axis=-1).astype(np.float32)
    points = np.stack(np.unravel_index(np.arange(g**3), (g, g, g)), axis=-1)
    row = np.zeros(side**3, np.int64)
    row[coords @ [side**2, side, 1]] = 1 + np.arange(len(coords))
    return Lattice(
        x=np.float32(points / side - 0.5 + 0.5 / side * np.tanh(mean[:, 1:4])),
        sdf=np.where(shared > 0, mean[:, 0], np.float32(1)),
        rgb=1 / (1 + np.exp(-mean[:, 4:])) if color.size else None,
        weights=np.concatenate([np.zeros_like(weight[:1]), weight]),
        row=row,
    )


def extract(found: Lattice, side: int) -> Mesh:
    """The mesh of a lattice, in our world."""
    topology = flexicubes.topology(found.sdf.reshape((side + 1,) * 3))
    by_row = topology._replace(cube=found.row[topology.cube], home=found.row[topology.home])
    weight = flexicubes.activated(found.weights, WEIGHT_SCALE)

    def between(values):
        return np.asarray(flexicubes.vertices(by_row, values, found.sdf, weight))

    return Mesh(
        vertices=between(found.x) @ np.array(TURN, np.float32).T,
        faces=flexicubes.faces(by_row, np.asarray(weight.gamma)),
        colors=None if found.rgb is None else np.clip(between(found.rgb), 0.0, 1.0),
    )
