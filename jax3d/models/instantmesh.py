"""InstantMesh (https://arxiv.org/abs/2404.07191): six views, as Zero123++ draws them, to an asset.

Its world is ours: +z up, and the picture from which the views were drawn is taken from azimuth 0,
at +x. Both variants make a triplane: that of `instant_nerf_*` is a radiance field, that of
`instant_mesh_*` a surface (`instantmesh_surface`), as a field a little soft.

Letters: s side of a view, r texels along a plane, c channels.
"""

import dataclasses
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import camera, resample, weights
from jax3d.mesh import flexicubes
from jax3d.models import instantmesh_surface, lrm
from jax3d.models.base import Model
from jax3d.models.instantmesh_surface import Lattice
from jax3d.models.lrm import Design
from jax3d.nn import dino
from jax3d.nn.dino import DinoConfig
from jax3d.nn.lrm import MOST_LAYERS, InstantMesh, InstantMeshConfig
from jax3d.nn.lrm import abstract_params as network_params
from jax3d.types import Params, Prompt
from jax3d.weights import Flat, WeightsError

VIEWS = 6
AZIMUTH, ELEVATION = (30, 90, 150, 210, 270, 330), (20, -10, 20, -10, 20, -10)
"""Of the views, degrees."""
RADIUS, FOVY = 4.0, 30.0
"""Distance of their cameras, metres, and field of view, degrees."""
SIDE = 320
"""Of a view, pixels."""
SHEET = (960, 640)
"""Height and width of Zero123++'s picture of the six, three rows of two."""
HIDDEN, LAYERS = 64, 3
"""Of each decoder."""
MOST_CELLS = 512
"""Of the lattice, along an axis; the released models have 128."""
_HEADS = {"sdf": 1, "rgb": 3, "deformation": 3, "weight": flexicubes.RAW}
"""The networks of the mesh variant and how many numbers each tells."""


class Variant(NamedTuple):
    """One of the two before its weights."""

    design: Design
    lattice: Lattice | None
    """Of the mesh variant."""


# The network.


def planes(
    network: InstantMesh, params: Params, images: Float[Array, "6 s s 3"]
) -> Float[Array, "3 r r c"]:
    """Planes of six views, in our layout."""
    return turned(network.apply({"params": params}, images[None], cameras()[None])[0])


def cameras() -> Float[Array, "6 16"]:
    """What the network is told of each view: upper rows of its pose, focal lengths, centre."""
    fovy = math.radians(FOVY)
    focal = 0.5 / math.tan(fovy / 2)
    seen = camera.orbit(np.radians(AZIMUTH), np.radians(ELEVATION), RADIUS, fovy)
    lens = jnp.tile(jnp.array([focal, focal, 0.5, 0.5]), (VIEWS, 1))
    return jnp.concatenate([seen.c2w[:, :3].reshape(VIEWS, 12), lens], axis=-1)


def turned(planes: Float[Array, "3 r r c"]) -> Float[Array, "3 r r c"]:
    """Its planes in our layout: its own are [y, x], [z, x] and [y, z], rows first."""
    yx, zx, yz = planes
    return jnp.stack([yx.swapaxes(0, 1), zx.swapaxes(0, 1), yz])


# Views.


def demand_views(prompt: Prompt, name: str) -> Float[np.ndarray, "6 H W c"]:
    """A prompt's six views.

    Raises:
      ValueError: there are none, or they are no six square views in [0, 1], nor their sheet.
    """
    asked = (
        f"six views of the object, from azimuths {', '.join(map(str, AZIMUTH))} and elevations "
        f"{ELEVATION[0]}, {ELEVATION[1]} in turn, as Zero123++ draws them: [6, H, H, 3 or 4], or "
        f"their sheet of {SHEET[1]} x {SHEET[0]} pixels"
    )
    if prompt.image is None:
        raise ValueError(f"{name} reads {asked}; the prompt {prompt.text!r} has no picture")
    views = np.asarray(prompt.image)
    if views.shape[:2] == SHEET and views.ndim == 3:
        cells = views.reshape(3, SIDE, 2, SIDE, -1).swapaxes(1, 2)
        views = cells.reshape(VIEWS, SIDE, SIDE, -1)
    n, *square, channels = views.shape if views.ndim == 4 else (1, 0, 0, 0)
    if n != VIEWS or square[0] != square[1] or channels not in (3, 4) or not views.size:
        raise ValueError(
            f"{name} reads {asked}; the picture is an array of shape {np.shape(prompt.image)}"
        )
    return lrm.within(views)


def picture(views: Float[np.ndarray, "6 H W c"], side: int) -> Float[np.ndarray, "6 s s 3"]:
    """Views as the network learnt them, on white."""
    if views.shape[-1] == 4:
        alpha = views[..., 3:]
        views = views[..., :3] * alpha + (1.0 - alpha)
    matrix = resample.antialiased(views.shape[1], side, "cubic")
    return np.clip(np.stack([resample.grid(matrix, matrix, view) for view in views]), 0.0, 1.0)


# The model.


def design(
    config: dict[str, Any],
    dtype: Any = jnp.float32,
    encoder: DinoConfig = dino.VIT_B16,
    side: int = SIDE,
) -> Variant:
    """The variant that an official config describes.

    Args:
      config: parsed.
      dtype: of the network's weights and arithmetic.
      encoder: of the views; the config only names it.
      side: of the views, pixels; the config does not tell it.

    Raises:
      ValueError: the config lacks something, or asks for what is not supported.
    """
    meshed, c = _checked(config, encoder)
    network = InstantMesh(
        InstantMeshConfig(**{f.name: c[f.name] for f in dataclasses.fields(InstantMeshConfig)}),
        encoder,
        dtype,
    )
    samples = c["rendering_samples_per_ray"]
    field = lrm.field(
        2 * c["triplane_low_res"], c["triplane_dim"], HIDDEN, LAYERS, radius=1.0, samples=samples
    )
    # Half of its samples are placed by the other half.
    field = dataclasses.replace(field, coarse=samples // 2, rgb_padding=0.001)
    if meshed:
        # Distance and colour are two networks, joined to one.
        field = dataclasses.replace(field, hidden=2 * HIDDEN, density_activation="laplace")
    else:
        field = dataclasses.replace(field, density_bias=-1.0)
    read = demand_views, partial(picture, side=side), partial(planes, network)
    built = lrm.checked(Design(network, field, side, *read))
    return Variant(built, Lattice(c["grid_res"], c["grid_scale"]) if meshed else None)


def _checked(config: dict[str, Any], encoder: DinoConfig) -> tuple[bool, dict[str, Any]]:
    """Whether a config is of the mesh variant, and its entries that are read."""
    section = config.get("model_config")
    if not isinstance(section, dict) or not isinstance(section.get("params"), dict):
        raise WeightsError("lacks model_config with its target and params")
    kind = str(section.get("target")).rpartition(".")[2]
    if kind not in ("InstantNeRF", "InstantMesh"):
        raise WeightsError(
            f"model_config.target = {weights.shown(section.get('target'))} is not supported, only "
            "InstantNeRF and InstantMesh"
        )
    meshed = kind == "InstantMesh"
    kinds = {f.name: int for f in dataclasses.fields(InstantMeshConfig)}
    kinds |= {"rendering_samples_per_ray": int}
    kinds |= {"grid_res": int, "grid_scale": float} if meshed else {}
    told = {"encoder_feat_dim": int, "triplane_high_res": int, "encoder_model_name": str}
    c = weights.checked(section["params"], kinds | told)
    if lost := sorted(set(kinds) - set(c)):
        raise WeightsError(f"model_config.params lacks {', '.join(lost)}")
    fixed = (encoder.hidden_size, 2 * c["triplane_low_res"], "facebook/dino-vitb16")
    for name, only in zip(told, fixed, strict=True):
        if c.get(name, only) != only:
            raise WeightsError(
                f"{name} = {weights.shown(c[name])} is not supported here, only {only}"
            )
    if c["transformer_layers"] > MOST_LAYERS:
        raise WeightsError(f"transformer_layers = {c['transformer_layers']} cannot be meant")
    if meshed and not (2 <= c["grid_res"] <= MOST_CELLS and c["grid_scale"] > 0):
        raise WeightsError(
            f"a lattice of {c['grid_res']} cells over {c['grid_scale']:g} m; expected 2 to "
            f"{MOST_CELLS} cells over more than 0"
        )
    return meshed, c


def model(variant: Variant, params: Params, name: str) -> Model:
    """The model of one step; its weights are those of `fill`."""
    (design, lattice), made = variant, lrm.model(variant.design, params, name)
    if lattice is None:
        return made
    heads = {head: params[head] for head in ("deformation", "weight")}
    mesh = partial(instantmesh_surface.mesh, heads=heads, field=design.field, lattice=lattice)

    def decode(params, z):
        return instantmesh_surface.in_metres(made.decode(params, z), design.field)

    return made._replace(
        decode=decode,
        representation=made.representation._replace(mesh=mesh),
        digest=weights.digest({}, [made.digest, *lattice]),
    )


# Weights.


def abstract_params(variant: Variant) -> Params:
    """The shapes of a variant's weights under one roof: the network's, and each decoder's."""
    design, lattice = variant
    if lattice is None:
        return lrm.abstract_params(design)
    tree, read = network_params(design.network), 3 * design.field.channels
    for name, count in _HEADS.items():
        corners = 8 if name == "weight" else 1
        tree |= lrm.abstract_perceptron(name, (corners * read, *(HIDDEN,) * LAYERS, count))
    return tree


def fill(tensors: Flat, variant: Variant, source: Any) -> Params:
    """A variant's weights, `{"network", "decoder"[, "deformation", "weight"]}`.

    Arguments and errors are those of `weights.to_flax`.
    """
    return split(weights.to_flax(tensors, abstract_params(variant), source), variant)


def split(tree: Params, variant: Variant) -> Params:
    """What `abstract_params` describes, as the model has it."""
    if variant.lattice is None:
        return lrm.split(tree)
    heads = {name: lrm.perceptron(tree, name) for name in _HEADS}
    network = {k: v for k, v in tree.items() if k.rpartition("_")[0] not in _HEADS}
    decoder = instantmesh_surface.joined(heads.pop("sdf"), heads.pop("rgb"))
    return {"network": network, "decoder": decoder, **heads}


_PREFIX, _ENCODER = "lrm_generator.", "encoder.model."
_RULES = (
    (r"^encoder\.camera_embedder\.", "camera_embedder."),
    (r"^transformer\.", ""),
    (r"^synthesizer\.decoder\.net\.(\d{0,3}[02468])\.", lrm.every_other),
    (
        r"^synthesizer\.decoder\.net_([a-z]+)\.(\d{0,3}[02468])\.",
        lambda match: f"{match[1]}.{int(match[2]) // 2}.",
    ),
)


def names(tensors: Flat) -> Flat:
    """A checkpoint's tensors of the generator under our names; others are of its training."""
    inner = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)}
    own = {k: v for k, v in inner.items() if not k.startswith(_ENCODER)}
    own = {dino.renamed(k, _RULES): v for k, v in lrm.attention_names(own).items()}
    return own | lrm.encoder_names(inner, _ENCODER, dino.from_transformers)


# Files.

_FILE = re.compile(r"instant_(nerf|mesh)\w*\.(ckpt|safetensors)")


def recognises(path: Path) -> bool:
    """Whether it is a checkpoint by its official name, or a folder with such."""
    return bool(_checkpoints(path))


def _checkpoints(path: Path) -> list[Path]:
    there = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in there if _FILE.fullmatch(file.name) and file.is_file()]


def open(path: Path, dtype: Any = jnp.float32) -> Model:
    """The model of `instant_{nerf,mesh}_{base,large}.ckpt` or `.safetensors`.

    Args:
      path: the file, or a folder with no other; the official config may lie beside
        (`instant-mesh-large.yaml`), and has to where the name is another.
      dtype: of the network's weights and arithmetic; norms, softmax, positions, planes and the
        assets are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the other.
    """
    variant, params = load(path, dtype)
    made = "a surface" if variant.lattice else "a radiance field"
    name = f"InstantMesh to {made}, six views of {variant.design.side} px, from {path}"
    return model(variant, params, name)


def load(
    path: Path,
    dtype: Any = jnp.float32,
    encoder: DinoConfig = dino.VIT_B16,
    side: int = SIDE,
) -> tuple[Variant, Params]:
    """A file's variant and its weights; arguments and errors are those of `open` and `design`."""
    found = _checkpoints(path)
    if len(found) != 1:
        there = ", ".join(file.name for file in found) or "no instant_{nerf,mesh}_*.ckpt"
        raise WeightsError(f"{path} holds {there}: give the path of one checkpoint")
    (file,), read = found, partial(design, dtype=dtype, encoder=encoder, side=side)
    beside = [file.with_name(f"{s}.yaml") for s in (file.stem.replace("_", "-"), file.stem)]
    config = next((path for path in beside if path.is_file()), None)
    if config is not None:
        variant, _ = weights.described(config, read, abstract_params)
    elif (match := _RELEASED_NAME.fullmatch(file.stem)) is not None:
        variant = read(released(*match.groups()))
    else:
        raise WeightsError(f"{file}: its config, {beside[0].name}, is not beside it")
    return variant, fill(names(weights.load(file)), variant, file)


_RELEASED_NAME = re.compile(r"instant_(nerf|mesh)_(base|large)")


def released(kind: str, size: str) -> dict[str, Any]:
    """The config of a released model, of which the hub has the checkpoint alone.

    Args:
      kind: "nerf" or "mesh".
      size: "base" or "large".
    """
    layers, channels, samples = {"base": (12, 40, 96), "large": (16, 80, 128)}[size]
    params = {
        "transformer_dim": 1024,
        "transformer_layers": layers,
        "transformer_heads": 16,
        "triplane_low_res": 32,
        "triplane_dim": channels,
        "rendering_samples_per_ray": samples,
    }
    if kind == "mesh":
        params |= {"grid_res": 128, "grid_scale": 2.1}
    target = {"nerf": "InstantNeRF", "mesh": "InstantMesh"}[kind]
    return {"model_config": {"target": target, "params": params}}
