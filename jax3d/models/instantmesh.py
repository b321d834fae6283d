"""InstantMesh (https://arxiv.org/abs/2404.07191): pictures with known cameras to an asset.

Its world is ours: +z up, azimuths from +x. It reads six views as Zero123++ draws them on one sheet,
three rows of two, or any others with their cameras (`Views`). The NeRF variant leaves a triplane.
The mesh variant says signed distances at the points of a lattice; its assets are a `fields.grid` of
these, and `mesh` is the authors' own way to a mesh, by FlexiCubes. Where no point is inside, the
authors put one there; here that is an `EmptyFieldError` of `mesh`.

Letters: v views, s side of each, r texels, c channels, n points, g lattice points along an axis.
"""

import dataclasses
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import bounds, interp, resample, weights
from jax3d.camera import orbit
from jax3d.fields.grid import GridConfig, grid
from jax3d.mesh import flexicubes
from jax3d.mesh.extract import evaluate
from jax3d.models import lrm
from jax3d.models.base import Model
from jax3d.models.lrm import Design
from jax3d.nn import dino
from jax3d.nn.dino import DinoConfig
from jax3d.nn.lrm import MOST_LAYERS, InstantMesh, InstantMeshConfig
from jax3d.nn.lrm import abstract_params as network_params
from jax3d.types import Camera, Mesh, Numbers, Params
from jax3d.weights import Flat, WeightsError

AZIMUTHS, ELEVATIONS = (30, 90, 150, 210, 270, 330), (20, -10, 20, -10, 20, -10)
"""Of the views of a sheet, row by row, degrees."""
RADIUS, FOVY = 4.0, 30.0
"""Of their cameras, metres and degrees."""
SIDE = 320
"""Of a view, pixels."""
HIDDEN, LAYERS, PADDING = 64, 3, 0.001
"""Of the decoders, and by how much their colours go beyond [0, 1]."""
SIZES = {
    "base": {"transformer_layers": 12, "triplane_dim": 40, "rendering_samples_per_ray": 96},
    "large": {"transformer_layers": 16, "triplane_dim": 80, "rendering_samples_per_ray": 128},
}
"""What differs between the released checkpoints, which come without their configs."""
COMMON = {
    "transformer_dim": 1024,
    "transformer_heads": 16,
    "triplane_low_res": 32,
    "grid_res": 128,
    "grid_scale": 2.1,
}
"""What does not."""
HEADS = ("sdf", "rgb", "deformation", "weight")
"""Decoders of the mesh variant."""


class Views(NamedTuple):
    """What the network is told."""

    images: Float[Numbers, "v s s 3"]
    """sRGB in [0, 1], the object on white."""
    cameras: Float[Numbers, "v 16"]
    """As `told` has them."""


class MeshDesign(NamedTuple):
    """The mesh variant before its weights."""

    inner: Design
    """The network, and planes as the NeRF variant has them."""
    field: GridConfig
    """Of the assets."""


def told(camera: Camera) -> Float[Array, "v 16"]:
    """Cameras as the network reads them: upper rows of the pose, focal lengths and principal point
    as shares of the picture's side."""
    focal = 0.5 / jnp.tan(camera.fovy / 2)
    inside = jnp.stack([focal, focal, 0 * focal + 0.5, 0 * focal + 0.5], -1)
    return jnp.concatenate([camera.c2w[:, :3].reshape(-1, 12), inside], -1)


def sheet(image: Float[np.ndarray, "H W c"], side: int) -> Views:
    """The six views on a sheet of three rows of two, transparency laid over white.

    Raises:
      ValueError: the picture is no such sheet.
    """
    height, width = image.shape[:2]
    cell = width // 2
    if (height, width) != (3 * cell, 2 * cell):
        raise ValueError(
            f"the picture has {width} x {height} pixels; InstantMesh reads a sheet of six square "
            "views, three rows of two, as Zero123++ draws it (such as 640 x 960)"
        )
    alpha = image[..., 3:] if image.shape[-1] == 4 else np.ones((), image.dtype)
    image = image[..., :3] * alpha + (1 - alpha)
    cells = image.reshape(3, cell, 2, cell, 3).swapaxes(1, 2).reshape(6, cell, cell, 3)
    matrix = resample.antialiased(cell, side, "cubic")
    images = np.clip([resample.grid(matrix, matrix, view) for view in cells], 0.0, 1.0)
    fovy = jnp.full(6, math.radians(FOVY))
    camera = orbit(np.radians(AZIMUTHS), np.radians(ELEVATIONS), jnp.full(6, RADIUS), fovy)
    return Views(images, np.asarray(told(camera)))


def planes(network: InstantMesh, params: Params, views: Views) -> Float[Array, "3 r r c"]:
    """Planes of one asset's views, in the frame and order of `fields.triplane`."""
    return turned(network.apply({"params": params}, views.images[None], views.cameras[None])[0])


def turned(planes: Float[Array, "3 r r c"]) -> Float[Array, "3 r r c"]:
    """The network's planes with the first axis first: its own are [y, x], [z, x] and [y, z]."""
    return jnp.stack([planes[0].swapaxes(0, 1), planes[1].swapaxes(0, 1), planes[2]])


def design(
    config: dict[str, Any],
    variant: str = "nerf",
    dtype: Any = jnp.float32,
    encoder: DinoConfig = dino.VIT_B16,
) -> Design | MeshDesign:
    """The model that a config describes.

    Args:
      config: parsed; its `model_config.params` are read.
      variant: "nerf" or "mesh".
      dtype: of the network's weights and arithmetic.
      encoder: of the images; the config only names it.

    Raises:
      ValueError: the config lacks something, or asks for what is not supported.
    """
    kinds = {f.name: int for f in dataclasses.fields(InstantMeshConfig)}
    wanted = {**kinds, "rendering_samples_per_ray": int}
    if variant == "mesh":
        wanted |= {"grid_res": int, "grid_scale": float}
    inner = config.get("model_config")
    inner = inner.get("params") if isinstance(inner, dict) else None
    c = weights.checked(inner if isinstance(inner, dict) else {}, wanted)
    if lost := sorted(set(wanted) - set(c)):
        raise WeightsError(f"model_config.params lacks {', '.join(lost)}")
    if c["transformer_layers"] > MOST_LAYERS:
        raise WeightsError(f"transformer_layers = {c['transformer_layers']} cannot be meant")
    network = InstantMesh(InstantMeshConfig(**{k: c[k] for k in kinds}), encoder, dtype)
    texels, samples = 2 * c["triplane_low_res"], c["rendering_samples_per_ray"]
    field = lrm.field(texels, c["triplane_dim"], HIDDEN, LAYERS, radius=1.0, samples=samples)
    # Half of its samples are placed by the other half.
    field = dataclasses.replace(field, coarse=samples // 2, density_bias=-1.0, rgb_padding=PADDING)
    side = SIDE if encoder == dino.VIT_B16 else encoder.grid * encoder.patch_size
    nerf = lrm.checked(
        Design(network, field, side, partial(planes, network), partial(sheet, side=side))
    )
    if variant == "nerf":
        return nerf
    made = MeshDesign(nerf, GridConfig(c["grid_res"] + 1, bound=c["grid_scale"] / 2, normals=False))
    bounds.check(made.field, "field")
    return made


# The mesh variant's decoders.


def features(
    design: MeshDesign, planes: Float[Array, "3 r r c"], x: Float[Array, "n 3"]
) -> Float[Array, "n d"]:
    """What the decoders read of points, metres; planes end in zero."""
    padded = jnp.pad(planes, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return interp.triplane(padded, x / (2 * design.inner.field.span) + 0.5).reshape(len(x), -1)


def head(layers: list[dict], h: Float[Array, "n d"]) -> Float[Array, "n o"]:
    """A decoder's raw numbers."""
    for layer in layers[:-1]:
        h = jax.nn.relu(h @ layer["w"] + layer["b"])
    return h @ layers[-1]["w"] + layers[-1]["b"]


def distance(params: Params, h: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Signed distances of a scale of their own, negative inside; the network's are positive."""
    return -head(params["sdf"], h)[:, 0]


def color(params: Params, h: Float[Array, "n d"]) -> Float[Array, "n 3"]:
    """sRGB, up to `PADDING` beyond [0, 1]."""
    return jax.nn.sigmoid(head(params["rgb"], h)) * (1 + 2 * PADDING) - PADDING


def shift(params: Params, h: Float[Array, "n d"], cells: int) -> Float[Array, "n 3"]:
    """By how much lattice points move, metres."""
    return jnp.tanh(head(params["deformation"], h)) / (4 * cells)


def decode(
    design: MeshDesign, params: Params, planes: Float[Array, "3 r r c"]
) -> dict[str, Float[Array, "..."]]:
    """A `fields.grid` of distances and colours.

    Distances are divided by their mean slope at the surface: by the metre they then are where it
    matters, and the surface stays where it is.
    """
    f = design.field
    axis = jnp.linspace(-f.bound, f.bound, f.resolution)
    yz = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)

    def layer(x):
        h = features(design, planes, jnp.concatenate([jnp.full((len(yz), 1), x), yz], -1))
        rgb = jnp.clip(color(params, h), 1e-4, 1 - 1e-4)
        return distance(params, h), jnp.log(rgb) - jnp.log1p(-rgb)

    sdf, rgb = jax.lax.map(layer, axis)
    sdf = sdf.reshape((f.resolution,) * 3)
    total = crossings = 0.0
    for along in range(3):
        steps = jnp.abs(jnp.diff(sdf, axis=along))
        crossed = jnp.diff(sdf < 0, axis=along)
        total, crossings = total + jnp.sum(steps * crossed), crossings + jnp.sum(crossed)
    slope = total / jnp.maximum(crossings, 1) / (axis[1] - axis[0])
    sdf = sdf / jnp.where(crossings > 0, slope, 1.0)
    return {"sdf": sdf, "rgb": rgb.reshape(*sdf.shape, 3)}


def mesh(design: MeshDesign, params: Params, planes: Float[Numbers, "3 r r c"]) -> Mesh:
    """The authors' mesh: FlexiCubes on moved points, with colours at its vertices; on the host.

    Args:
      design: of the mesh variant.
      params: its weights.
      planes: what the model's `advance` leaves.

    Raises:
      EmptyFieldError: there is no surface.
    """
    f = design.field
    cells = f.resolution - 1
    points = flexicubes.lattice(cells, 2 * f.bound)

    @jax.jit
    def place(x):
        h = features(design, planes, x)
        return jnp.concatenate([distance(params, h)[:, None], x + shift(params, h, cells)], -1)

    @jax.jit
    def weigh(corners):
        h = features(design, planes, corners.reshape(-1, 3))
        return 0.1 * head(params["weight"], h.reshape(len(corners), -1))

    placed = evaluate(place, points)
    found = flexicubes.topology(placed[:, 0].reshape((cells + 1,) * 3))
    used, cube = np.unique(found.cube, return_inverse=True)
    found = found._replace(cube=cube, home=np.searchsorted(used, found.home))
    chosen = flexicubes.activated(weigh(points[flexicubes.cubes(cells)[used]]))
    vertices = flexicubes.vertices(found, placed[:, 1:], placed[:, 0], chosen)
    shown = jax.jit(lambda x: jnp.clip(color(params, features(design, planes, x)), 0.0, 1.0))
    faces = flexicubes.faces(found, chosen.gamma)
    return Mesh(np.asarray(vertices), faces, np.asarray(shown(vertices)))


# Files.


def model(design: Design | MeshDesign, params: Params, name: str) -> Model:
    """The model of one step; its weights are those of `fill`."""
    if isinstance(design, Design):
        return lrm.model(design, params, name)
    made = lrm.model(design.inner, params, name)
    return made._replace(
        field=design.field,
        representation=grid(design.field),
        decode=partial(decode, design),
        digest=weights.digest({}, [made.digest, dataclasses.asdict(design.field)]),
    )


def abstract_params(design: Design | MeshDesign) -> Params:
    """The shapes of a model's weights under one roof: the network's and the decoders'."""
    if isinstance(design, Design):
        return lrm.abstract_params(design)
    shapes, read = network_params(design.inner.network), 3 * design.inner.field.channels
    for name, reads, says in zip(HEADS, (read, read, read, 8 * read), (1, 3, 3, 21), strict=True):
        shapes |= lrm.perceptron(name, (reads, *(HIDDEN,) * LAYERS, says))
    return shapes


def split(design: Design | MeshDesign, tree: Params) -> Params:
    """What `abstract_params` describes, as the model has it: network and decoders apart."""
    return lrm.split(tree, ("decoder",) if isinstance(design, Design) else HEADS)


_FILE = re.compile(r"instant[_-](nerf|mesh)(?:[_-](\w+))?\.(ckpt|safetensors)")


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.iterdir())
    return [file for file in found if _FILE.fullmatch(file.name)]


def recognises(path: Path) -> bool:
    """Whether it is a checkpoint named as the authors name theirs, or a folder with some."""
    return bool(_files(path))


def open(path: Path, dtype: Any = jnp.float32) -> Model:
    """The model of `instant_{nerf,mesh}_{base,large}.ckpt` or `.safetensors`, or of its folder.

    Args:
      path: the file, or a folder with one such file.
      dtype: of the network's weights and arithmetic; norms, softmax, positions, planes, decoders
        and the assets are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit; or there are several.
    """
    file, *more = _files(path)
    if more:
        names = ", ".join(f.name for f in (file, *more))
        raise WeightsError(f"{path} holds several models ({names}): give the path of one")
    built, params = load(file, dtype)
    variant = "NeRF" if isinstance(built, Design) else "mesh"
    return model(built, params, f"InstantMesh ({variant}), from {file}")


def load(
    file: Path,
    dtype: Any = jnp.float32,
    encoder: DinoConfig = dino.VIT_B16,
    config: Path | None = None,
) -> tuple[Design | MeshDesign, Params]:
    """A checkpoint's model and its weights.

    Args:
      file: named as `open` says.
      dtype: see `open`.
      encoder: see `design`.
      config: of other sizes than the released ones, as the authors' `configs/` have it; None looks
        for one beside the file, under its name with `.yaml`, and knows the released ones.

    Raises:
      ValueError: see `open`.
    """
    variant, size, _ = _FILE.fullmatch(file.name).groups()
    build = partial(design, variant=variant, dtype=dtype, encoder=encoder)
    beside = (file.with_name(f"{stem}.yaml") for stem in (file.stem.replace("_", "-"), file.stem))
    config = config or next((path for path in beside if path.is_file()), None)
    if config is not None:
        built, like = weights.described(config, build, abstract_params)
    elif size in SIZES:
        built = build({"model_config": {"params": COMMON | SIZES[size]}})
        like = abstract_params(built)
    else:
        raise WeightsError(
            f"{file} is not of a released size ({', '.join(SIZES)}): put the config of its "
            f"training beside it as {file.stem}.yaml"
        )
    return built, split(built, weights.to_flax(names(weights.load(file)), like, file))


_ROOT = "lrm_generator."
_ENCODER = "encoder.model."


def _decoder(match: re.Match) -> str:
    """`sdf.3.` for layer 6 of `net_sdf`, `decoder.3.` for that of `net`: others are activations."""
    return f"{match[1] or 'decoder'}.{int(match[2]) // 2}."


_RULES = (
    (r"^encoder\.camera_embedder\.", "camera_embedder."),
    (r"^transformer\.deconv\.", "upsampler."),
    (r"^transformer\.", ""),
    (r"^synthesizer\.decoder\.net(?:_(\w+))?\.(\d{0,3}[02468])\.", _decoder),
)


def names(tensors: Flat) -> Flat:
    """A checkpoint's tensors under our names; those of other networks in it (LPIPS) are left."""
    own = {k.removeprefix(_ROOT): v for k, v in tensors.items() if k.startswith(_ROOT)}
    flat = lrm.encoder_names(own, _ENCODER, dino.from_transformers)
    for name, tensor in own.items():
        if not name.startswith(_ENCODER):
            flat |= lrm.renamed(name, tensor, _RULES)
    return flat
