"""Shap-E's assets: from latents to the network that is one, and from it to a mesh.

Each latent becomes a row of the first matrices of a small network (`fields.nerstf`). In Shap-E's
world +z is up and the first of its authors' cameras stands at -y, where fronts are; our front is
+x, a quarter turn on: our (x, y, z) are its (-y, x, z). The weights are turned, once.

Letters: n latents, d their width, v rows and c columns of a matrix that is made, e numbers that the
network reads of a point, g points of the mesh's grid along an axis.
"""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax3d import bounds, weights
from jax3d.fields import nerstf
from jax3d.fields.nerstf import ENCODED, OUTPUTS, NerstfConfig
from jax3d.mesh import EmptyFieldError, cubes
from jax3d.mesh.extract import evaluate
from jax3d.nn import dino
from jax3d.types import Mesh, Params
from jax3d.weights import Flat, WeightsError

MESH = 128
"""Points of the mesh's grid along an axis, as its authors take."""


class Renderer(NamedTuple):
    """What a `shap_e_renderer/config.json` says of the asset's network."""

    field: NerstfConfig
    latent: int
    """d"""
    made: int
    """The first so many layers' matrices are made from latents, each from as many."""
    direction_at: int
    """Before which layer directions join in. They are never told, so their columns are left out."""

    @property
    def latents(self) -> tuple[int, int]:
        """n and d."""
        return self.made * self.field.hidden, self.latent


class Tables(NamedTuple):
    """Of marching cubes; see `mesh.cubes`."""

    cases: Int[np.ndarray, "256 5 3"]
    masks: Bool[np.ndarray, "256 5"]


# From latents to the asset.

TURN = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
"""From Shap-E's world to ours."""


def decode(params: Params, latents: Float[Array, "n d"]) -> Params:
    """An asset's parameters, of `fields.nerstf` and in our frame."""
    made = matrices(params["made"], latents)
    made = [turned(made[0]), *made[1:]]
    layers = [{"w": w, "b": b} for w, b in zip(made, params["bias"], strict=True)]
    return {"mlp": layers + [dict(layer) for layer in params["rest"]]}


def matrices(made: list[Params], latents: Float[Array, "n d"]) -> list[Float[Array, "c v"]]:
    """The matrices that latents become, inputs first; each takes its share of the latents."""
    parts = jnp.split(latents, len(made))
    return [_matrix(layer, x) for layer, x in zip(made, parts, strict=True)]


def _matrix(layer: Params, x: Float[Array, "v d"]) -> Float[Array, "c v"]:
    v, d = x.shape
    kernel = layer["proj"]["kernel"].reshape(d, v, -1)
    h = jnp.einsum("vd,dvc->vc", x, kernel, precision="highest")
    mean, variance = jnp.mean(h, -1, keepdims=True), jnp.var(h, -1, keepdims=True)
    h = (h - mean) * jax.lax.rsqrt(variance + 1e-5)
    h = h * layer["norm"]["scale"] + layer["norm"]["bias"]
    return (h + layer["proj"]["bias"].reshape(v, -1)).T


def turned(w: Float[Array, "e v"]) -> Float[Array, "e v"]:
    """The first layer's matrix for points of our world.

    Sines change their sign with the axis, cosines (those after pi / 2) do not.
    """
    turn = jnp.asarray(TURN)
    odd, even = w[: (ENCODED + 3) // 2], w[(ENCODED + 3) // 2 :]
    both = [
        jnp.einsum("ij,fjv->fiv", t, part.reshape(-1, 3, w.shape[1]), precision="highest")
        for t, part in ((turn, odd), (jnp.abs(turn), even))
    ]
    return jnp.concatenate(both).reshape(w.shape)


# The mesh.


def mesh(params: Params, tables: Tables, resolution: int = MESH) -> Mesh:
    """An asset's surface with a colour at each vertex, on the host.

    As its authors have it: the grid is framed by points that are outside and brought back into the
    cube with them, by (g - 1) / (g + 1), and there its vertices are coloured.

    Raises:
      ValueError: there is no surface.
    """
    params = jax.device_put(params)
    axis = np.linspace(-nerstf.BOUND, nerstf.BOUND, resolution, dtype=np.float32)
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    values = evaluate(partial(_sdf, params), lattice @ np.float32(TURN).T)
    framed = np.pad(values, 1, constant_values=-1.0)
    found, faces = cubes.march(framed, *tables)
    if not len(faces):
        raise EmptyFieldError(
            f"the asset has no surface: its signed distances lie between {values.min():.3g} and "
            f"{values.max():.3g}"
        )
    vertices = (found * (2 * nerstf.BOUND / (resolution + 1)) - nerstf.BOUND).astype(np.float32)
    vertices = vertices @ np.float32(TURN).T
    return Mesh(vertices, faces.astype(np.int64), evaluate(partial(_texture, params), vertices))


_sdf, _texture = jax.jit(nerstf.sdf), jax.jit(nerstf.texture)


# Folders.

_FIXED = {"act_fn": ("swish", "silu"), "n_output": (OUTPUTS,)}
"""Settings that are read here only at these values."""
_KINDS = {
    "d_latent": int,
    "d_hidden": int,
    "n_hidden_layers": int,
    "insert_direction_at": int,
    "param_names": tuple[str, ...],
}
_DIRECTION = 3 + 3 * 2 * 8
"""Numbers by which the network would be told a direction."""


def load(folder: Path) -> tuple[Renderer, Params, Tables]:
    """What a `shap_e_renderer/` folder says, its weights (of `split`), and its table.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the other.
    """
    renderer, like = weights.described(folder / "config.json", from_config, abstract_params)
    file = weights.find_weights(folder, "diffusion_pytorch_model")
    tree = weights.to_flax(rename(weights.load(file)), like, file)
    tables = Tables(np.asarray(tree["tables"]["cases"]), np.asarray(tree["tables"]["masks"]))
    if wrong := cubes.mistake(*tables):
        raise WeightsError(f"{file}: the table of marching cubes: {wrong}")
    return renderer, split(tree, renderer), tables


def from_config(config: dict[str, Any]) -> Renderer:
    """What a parsed `shap_e_renderer/config.json` says.

    Raises:
      ValueError: it lacks something, or asks for what is not supported.
    """
    found = weights.checked(config, _KINDS)
    if lost := sorted(set(_KINDS) - set(found)):
        raise WeightsError(f"lacks {', '.join(lost)}")
    for name, known in _FIXED.items():
        if config.get(name, known[0]) not in known:
            raise WeightsError(
                f"{name} = {weights.shown(config[name])} is not supported, only {known}"
            )
    names = found["param_names"]
    at, layers = found["insert_direction_at"], found["n_hidden_layers"]
    usual = tuple(f"nerstf.mlp.{k}.weight" for k in range(len(names)))
    if not names or names != usual or not len(names) <= at <= layers:
        raise WeightsError(
            f"{weights.shown(names)} are made from latents, and directions join in at {at} of "
            f"{layers} layers; supported are nerstf.mlp.0.weight and on, all before the directions"
        )
    field = NerstfConfig(hidden=found["d_hidden"], layers=layers)
    bounds.check(field, "field")
    return Renderer(field, found["d_latent"], len(names), at)


def abstract_params(renderer: Renderer) -> Params:
    """The shapes of a renderer's weights under one roof: `made_0`, ..., `layers_0`, ..., tables."""
    hidden, depth = renderer.field.hidden, renderer.field.layers

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    tree = {
        "void": {"background": of(3)},
        "tables": {
            "cases": of(cubes.CASES, cubes.SLOTS, 3, dtype=jnp.int32),
            "masks": of(cubes.CASES, cubes.SLOTS, dtype=jnp.bool_),
        },
    }
    widths = (ENCODED, *(hidden,) * depth, OUTPUTS)
    for k, (a, b) in enumerate(pairwise(widths)):
        if k < renderer.made:
            tree[f"made_{k}"] = {
                "proj": {"kernel": of(renderer.latent, a * b), "bias": of(a * b)},
                "norm": {"scale": of(a), "bias": of(a)},
            }
        a += _DIRECTION * (k == renderer.direction_at)
        tree[f"layers_{k}"] = {"kernel": of(a, b), "bias": of(b)}
    return tree


_RULES = (
    (r"^params_proj\.projections\.nerstf__mlp__(\d+)__weight\.", r"made.\1."),
    (r"^mlp\.mlp\.", "layers."),
    (r"^mesh_decoder\.", "tables."),
)


def rename(tensors: Flat) -> Flat:
    """A renderer's tensors under our names."""
    return {dino.renamed(name, _RULES): tensor for name, tensor in tensors.items()}


def split(tree: Params, renderer: Renderer) -> Params:
    """What `abstract_params` describes, as `decode` reads it: `{"made", "bias", "rest"}`.

    The matrices that latents replace, the background and the tables are left out.
    """
    made, hidden = range(renderer.made), renderer.field.hidden
    rest = [tree[f"layers_{k}"] for k in range(renderer.made, renderer.field.layers + 1)]
    return {
        "made": [tree[f"made_{k}"] for k in made],
        "bias": [tree[f"layers_{k}"]["bias"] for k in made],
        "rest": [{"w": layer["kernel"][:hidden], "b": layer["bias"]} for layer in rest],
    }
