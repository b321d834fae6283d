"""InstantMesh's golden vectors, for `parity_golden.py`.

Checks are those of `parity_lrm`. The NeRF variant's pictures follow by its own quadrature, which is
OpenLRM's; the mesh variant's decoders lie in a file of their own and read the same planes.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from parity_lrm import POINTS, TOKENS, TURN, Arrays, Asset, Checks, captured, check_pictures, shown

from jax3d import camera as cameras
from jax3d import weights
from jax3d.mesh import flexicubes
from jax3d.models import instantmesh, lrm
from jax3d.nn.dino import DinoConfig
from jax3d.types import Camera


class Turned(Asset):
    """An asset for OpenLRM's quadrature, which turns the points that it asks of."""

    def density(self, x):
        """By the metre."""
        return super().density(x @ TURN)

    def color(self, x):
        """In [0, 1]."""
        return super().color(x @ TURN)


def check(split: Path, path: Path, io: Arrays) -> Checks:
    """Network, cameras, assets, pictures and FlexiCubes."""
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
    config = split / "instant_nerf_config.json"
    design, params = instantmesh.load(split / "instant_nerf.ckpt", encoder=encoder, config=config)
    images = np.moveaxis(io["in_images"], 2, -1)
    out, layers = captured(design.network, params, images, io["in_cameras"])
    blank = np.zeros((6, 4, 3), np.float32)
    checks = {
        "all6_input_cameras": (instantmesh.sheet(blank, encoder.patch_size).cameras[None], 1e-5),
        "image_feats": (shown(layers, "encoder"), TOKENS),
        "mid_vit_layer0": (shown(layers, "encoder", "blocks_0"), TOKENS),
        "mid_camera_embedding": (shown(layers, "camera_embedder_2")[None], TOKENS),
        "planes": (np.moveaxis(out, -1, 2), TOKENS),
    }
    planes = instantmesh.turned(jnp.asarray(out[0]))
    asset = Asset(design, params, planes)
    axis = np.linspace(-1, 1, io["grid_sigma"].shape[1])
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    checks["grid_sigma"] = (asset.density(lattice)[None, ..., None], POINTS)
    checks["grid_rgb"] = (asset.color(lattice)[None], POINTS)
    checks |= pictures(Turned(design, params, planes), io, design.field.samples // 2)
    return checks | decoders(split, encoder, planes, io) | flexi(io)


def pictures(asset: Asset, io: Arrays, half: int) -> Checks:
    """Its renders, by the file's draws."""
    flat = io["render_cameras"].reshape(-1, 25)
    size = io["images_rgb"].shape[-1]
    fovy, rest = 2 * np.arctan(0.5 / flat[:, 20]), jnp.zeros(len(flat))
    pose = jnp.asarray(flat[:, :16].reshape(-1, 4, 4))
    rays = cameras.rays(Camera(pose, jnp.asarray(fovy), rest, rest, rest), (size, size))
    told = {
        "images_rgb": io["images_rgb"],
        "rays_o": np.asarray(rays.origins),
        "rays_d": np.asarray(rays.directions),
        "render_noise_stratified": io["noise_stratified"],
        "render_noise_pdf": io["noise_pdf"],
    }
    return check_pictures([asset], told, half)


def decoders(split: Path, encoder: DinoConfig, planes, io: Arrays) -> Checks:
    """The mesh variant's decoders at the points of its lattice."""
    config = json.loads((split / "instant_nerf_config.json").read_text())
    cells = round(len(io["fc_cube_indices"]) ** (1 / 3))
    side = 2 * float(np.abs(io["fc_grid_verts"]).max())
    config["model_config"]["params"] |= {"grid_res": cells, "grid_scale": side}
    design = instantmesh.design(config, "mesh", encoder=encoder)
    like = instantmesh.abstract_params(design)
    like = {k: v for k, v in like.items() if k.rsplit("_", 1)[0] in instantmesh.HEADS}
    path = split / "mesh_synthesizer.safetensors"
    tree = weights.to_flax(instantmesh.names(weights.load(path)), like, path)
    params = lrm.split(tree, instantmesh.HEADS)
    x, cubes = flexicubes.lattice(cells, side), flexicubes.cubes(cells)

    @jax.jit
    def run(x):
        h = instantmesh.features(design, planes, x)
        corners = h[cubes].reshape(len(cubes), -1)
        return (
            -instantmesh.distance(params, h)[None, :, None],
            instantmesh.head(params["deformation"], h)[None],
            0.1 * instantmesh.head(params["weight"], corners)[None],
            instantmesh.color(params, h[:200])[None],
            x + instantmesh.shift(params, h, cells),
        )

    names = ("fc_sdf_net", "fc_deform_raw", "fc_weight", "fc_tex_rgb200", "fc_v_deformed")
    checks = {name: (np.asarray(y), TOKENS) for name, y in zip(names, run(x), strict=True)}
    return checks | {"fc_grid_verts": (x, 1e-6), "fc_cube_indices": (cubes, 0)}


def flexi(io: Arrays) -> Checks:
    """FlexiCubes on the file's distances, points and weights, vertices and faces in order."""
    sdf, count = io["fc_sdf_used"], len(io["fc_cube_indices"])
    side = round(len(sdf) ** (1 / 3))
    found = flexicubes.topology(sdf.reshape(side, side, side))
    checks = {}
    for name, x, raw in (
        ("fc0_mesh", io["fc_grid_verts"], np.zeros((count, 21), np.float32)),
        ("fc_mesh", io["fc_v_deformed"], io["fc_weight"][0]),
    ):
        chosen = flexicubes.activated(jnp.asarray(raw))
        placed = flexicubes.vertices(found, x, sdf, chosen)
        checks[f"{name}_verts"] = (np.asarray(placed), 1e-5)
        checks[f"{name}_faces"] = (flexicubes.faces(found, chosen.gamma), 0)
    checks["fc_reg"] = (np.asarray(flexicubes.deviation(found, x, sdf, placed)), 1e-5)
    return checks
