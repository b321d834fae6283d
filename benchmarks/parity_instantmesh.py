"""InstantMesh's golden vectors, for `parity_golden.py`.

The network is asked as it is, points and pictures of the assets that it leaves, pictures by their
own quadrature (`parity_lrm`). The mesh is made of the file's distances, as theirs was, with what
our networks say of deformation and weights. Each check is a value of ours, a tolerance, whether
that is relative, and how far the greatest half percent of errors may go instead, if further.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity_lrm
from parity_lrm import POINTS, TOKENS, Asset, captured, shown

from jax3d import camera as cameras
from jax3d import weights
from jax3d.mesh import flexicubes
from jax3d.models import instantmesh, instantmesh_surface, lrm
from jax3d.nn.dino import DinoConfig
from jax3d.types import Camera

Arrays = dict[str, np.ndarray]
Checks = dict[str, tuple]

PLACES = 1e-5
"""Of vertices, metres."""


def check(split: Path, path: Path, io: Arrays) -> Checks:
    """Network, both variants' assets, cameras, pictures and meshes."""
    del path
    vit = json.loads((split / "vit_config.json").read_text())
    encoder = DinoConfig(
        patch_size=vit["patch_size"],
        grid=vit["image_size"] // vit["patch_size"],
        hidden_size=vit["hidden_size"],
        num_hidden_layers=vit["num_hidden_layers"],
        num_attention_heads=vit["num_attention_heads"],
        intermediate_size=vit["intermediate_size"],
        layer_norm_eps=vit["layer_norm_eps"],
    )
    config = json.loads((split / "instant_nerf_config.json").read_text())
    variant = instantmesh.design(config, encoder=encoder, side=io["in_images"].shape[-1])
    tensors = weights.load(split / "instant_nerf.ckpt")
    params = instantmesh.fill(instantmesh.names(tensors), variant, split)
    images = np.moveaxis(io["in_images"], 2, -1)
    out, layers = captured(variant.design.network, params, images, io["in_cameras"])
    told = shown(layers, "camera_embedder_2")
    checks = {
        "all6_input_cameras": (np.asarray(instantmesh.cameras())[None], 1e-6),
        "mid_camera_embedding": (told.reshape(io["mid_camera_embedding"].shape), TOKENS),
        "mid_vit_layer0": (shown(layers, "encoder", "blocks_0"), TOKENS),
        "image_feats": (shown(layers, "encoder"), TOKENS),
        "planes": (np.moveaxis(out, -1, 2), TOKENS),
    }
    planes = instantmesh.turned(jnp.asarray(out[0]))
    checks |= check_field(Asset(variant.design, params, planes), io, variant.design.field)
    return checks | check_surface(split, config, encoder, tensors, planes, io)


def check_field(asset: Asset, io: Arrays, field) -> Checks:
    """The radiance field, its grid and its pictures."""
    axis = np.linspace(-1, 1, io["grid_sigma"].shape[1])
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    size, flat = io["images_rgb"].shape[-1], io["render_cameras"].reshape(-1, 25)
    rest = jnp.zeros(len(flat))
    fovy = jnp.asarray(2 * np.arctan(0.5 / flat[:, 20]))
    c2w = jnp.asarray(flat[:, :16].reshape(-1, 4, 4))
    rays = cameras.rays(Camera(c2w, fovy, rest, rest, rest), (size, size))
    told = {
        "rays_o": np.asarray(rays.origins).reshape(len(flat), -1, 3),
        "rays_d": np.asarray(rays.directions).reshape(len(flat), -1, 3),
        "render_noise_stratified": io["noise_stratified"],
        "render_noise_pdf": io["noise_pdf"],
    }
    checks = parity_lrm.of_points("grid", [(asset, lattice)], io)
    pictures = parity_lrm.check_pictures([asset], io | told, field.samples // 2, mean=False)
    return checks | pictures


def check_surface(split: Path, config, encoder, tensors, planes, io: Arrays) -> Checks:
    """The mesh variant's networks of points, and FlexiCubes with what they say."""
    n = round(len(io["fc_cube_indices"]) ** (1 / 3))
    section = config["model_config"]
    more = {"grid_res": n, "grid_scale": 2.1}
    config = {"model_config": {"target": "InstantMesh", "params": section["params"] | more}}
    variant = instantmesh.design(config, encoder=encoder)
    inner = {k: v for k, v in tensors.items() if "synthesizer" not in k}
    inner |= weights.load(split / "mesh_synthesizer.safetensors")
    params = instantmesh.fill(instantmesh.names(inner), variant, split)
    asset = lrm.model(variant.design, params, "").decode(params, planes)
    x, field = flexicubes.lattice(*variant.lattice), variant.design.field
    distance = instantmesh_surface.distance(asset, x, field=field)
    moved = instantmesh_surface.deformation(asset, params["deformation"], x, field=field)
    cell, cubes = variant.lattice.side / n, flexicubes.cubes(n)
    raw = instantmesh_surface.raw_weights(
        asset, params["weight"], x[cubes[:, 0]], field=field, cell=cell
    )
    color = instantmesh_surface.color(asset, x[:200], field=field)
    checks = {
        "fc_grid_verts": (x, 1e-7),
        "fc_cube_indices": (cubes, 0),
        "fc_sdf_net": (np.asarray(distance)[None, :, None], POINTS),
        "fc_deform_raw": (np.arctanh(np.asarray(moved, np.float64))[None], POINTS),
        "fc_weight": (np.asarray(raw)[None], POINTS),
        "fc_tex_rgb200": (np.asarray(color)[None], POINTS),
        "fc_v_deformed": (x + np.asarray(moved) / (4 * n), PLACES),
    }
    sdf, shifted = io["fc_sdf_used"], x + np.asarray(moved) / (4 * n)
    checks |= meshed("fc", sdf, shifted, raw)
    plain = meshed("fc0", sdf, x, jnp.zeros_like(raw))
    return checks | {k: v for k, v in plain.items() if k in io}


def meshed(name: str, sdf, x, raw) -> Checks:
    """Vertices and faces in their order, and the regulariser of vertices."""
    side = round(len(sdf) ** (1 / 3))
    found = flexicubes.topology(sdf.reshape(side, side, side))
    chosen = flexicubes.activated(raw)
    placed = jax.jit(lambda *a: flexicubes.vertices(found, *a))(x, sdf, chosen)
    away = flexicubes.deviation(found, x, sdf, placed)
    return {
        f"{name}_mesh_verts": (np.asarray(placed), PLACES),
        f"{name}_mesh_faces": (flexicubes.faces(found, np.asarray(chosen.gamma)), 0),
        f"{name}_reg": (np.asarray(away), PLACES),
    }
