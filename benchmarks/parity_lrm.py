"""OpenLRM's and TripoSR's golden vectors, for `parity_golden.py`.

Their networks are asked as they are. What they say of points is asked of the assets that ours leave
(in our frame and by the metre), and turned back. Their pictures follow by their own quadratures,
which are here: jax3d renders by its own. Each check is a value of ours, a tolerance, whether that
is relative, and how far the greatest half percent of errors may go instead, if further.
"""

import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from triposr import OFFICIAL

from jax3d import camera as cameras
from jax3d.models import lrm, openlrm, triposr
from jax3d.nn.dino import DinoConfig
from jax3d.types import Camera

Arrays = dict[str, np.ndarray]
Checks = dict[str, tuple]

TOKENS, POINTS = 2e-4, 5e-4
PICTURES = (5e-4, False, 1e-2)
"""Few rays may take another bin of the importance sampling."""


def captured(network, params, *inputs):
    """A network's output and its layers', batch first."""
    run = jax.jit(partial(network.apply, capture_intermediates=True))
    out, aside = run({"params": params["network"]}, *map(jnp.asarray, inputs))
    return np.asarray(out), aside["intermediates"]


def shown(layers, *path) -> np.ndarray:
    """The output of a layer."""
    for name in path:
        layers = layers[name]
    return np.asarray(layers["__call__"][0])


STRAIGHT = np.eye(3)


class Asset:
    """Density and colour of points, float64 in and out, evaluated in float32.

    `turn` goes from the world of the points to ours.
    """

    def __init__(self, design, params, planes, turn=STRAIGHT):
        model = lrm.model(design, params, "")
        self.turn = turn
        self.params = jax.jit(model.decode)(params, jnp.asarray(planes))
        self._density = jax.jit(model.representation.density)
        self._color = jax.jit(model.representation.color)

    def density(self, x):
        """By the metre."""
        return np.asarray(self._density(self.params, self._ours(x)), np.float64)

    def color(self, x):
        """In [0, 1]."""
        return np.asarray(self._color(self.params, self._ours(x)), np.float64)

    def _ours(self, x):
        return jnp.asarray(x @ self.turn.T, jnp.float32)


# OpenLRM.

TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""From its world to ours."""


def check_openlrm(split: Path, path: Path, io: Arrays) -> Checks:
    """Network, assets, cameras and pictures."""
    vit = json.loads((split / "dinov2_config.json").read_text())
    encoder = DinoConfig(
        patch_size=vit["patch"],
        grid=vit["img_size"] // vit["patch"],
        hidden_size=vit["dim"],
        num_hidden_layers=vit["depth"],
        num_attention_heads=vit["heads"],
        intermediate_size=4 * vit["dim"],
        layer_norm_eps=1e-6,
        registers=vit["reg"],
        layer_scale=True,
        antialias=vit["aa"],
    )
    design, params = openlrm.load(split, encoder=encoder)
    images = np.moveaxis(io["in_image"], 1, -1)
    out, layers = captured(design.network, params, images, io["in_source_camera"])
    seen = shown(layers, "encoder")
    checks = {
        "image_feats": (np.delete(seen, np.s_[1 : 1 + vit["reg"]], axis=1), TOKENS),
        "mid_vit_block0": (shown(layers, "encoder", "blocks_0"), TOKENS),
        "mid_camera_embedding": (shown(layers, "camera_embedder_2"), TOKENS),
        "mid_modln_layer0_norm1": (shown(layers, "layers_0", "norm1"), TOKENS),
        "mid_transformer_layer0": (shown(layers, "layers_0"), TOKENS),
        "mid_transformer_out": (shown(layers, "norm"), TOKENS),
        "planes": (np.moveaxis(out, -1, 2), TOKENS),
    }
    assets = [Asset(design, params, openlrm.turned(jnp.asarray(planes)), TURN) for planes in out]
    axis = np.linspace(-1, 1, io["grid_sigma"].shape[1])
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    checks |= of_points("grid", [(assets[0], lattice)], io)
    checks |= of_points("points", list(zip(assets, io["points"], strict=True)), io)
    return checks | check_cameras(io) | check_pictures(assets, io, design.field.samples // 2)


def of_points(name: str, asked, io: Arrays) -> Checks:
    """Density and colour; theirs goes a little beyond [0, 1], where ours ends."""
    theirs = io[f"{name}_rgb"]
    sigma = np.stack([asset.density(x)[..., None] for asset, x in asked])
    rgb = np.stack([asset.color(x) for asset, x in asked])
    rgb = np.where((theirs < 0) | (theirs > 1), theirs, rgb)
    return {f"{name}_sigma": (sigma, POINTS), f"{name}_rgb": (rgb, POINTS)}


def check_cameras(io: Arrays) -> Checks:
    """Rays of given poses, whole pictures and windows of them; the poses of their video."""
    n, m = io["render_cameras"].shape[:2]
    size = io["images_rgb"].shape[-1]
    flat = io["render_cameras"].reshape(n * m, 25)
    c2w = flat[:, :16].reshape(-1, 4, 4).astype(np.float64)
    c2w[:, :3] = TURN @ c2w[:, :3]
    fovy = 2 * np.arctan(0.5 / flat[:, 20])
    rest = jnp.zeros(n * m)
    seen = cameras.rays(Camera(jnp.asarray(c2w), jnp.asarray(fovy), rest, rest, rest), (size, size))
    origins, directions = (
        np.asarray(x, np.float64) @ TURN for x in (seen.origins, seen.directions)
    )
    side = math.isqrt(io["crop_rays_d"].shape[1])
    windows = [
        whole[int(y) : int(y) + side, int(x) : int(x) + side]
        for whole, (y, x) in zip(directions, io["crop_anchors"].reshape(-1, 2), strict=True)
    ]
    around = len(io["surrounding_views_4"])
    azimuth = np.linspace(0, 2 * np.pi, around)
    orbit = np.asarray(cameras.orbit(azimuth, np.arcsin(0.8 / 2), 2.0, 1.0).c2w, np.float64)
    return {
        "rays_o": (origins.reshape(n * m, -1, 3), 1e-5),
        "rays_d": (directions.reshape(n * m, -1, 3), 1e-5),
        "crop_rays_d": (np.stack(windows).reshape(n * m, -1, 3), 1e-5),
        "surrounding_views_4": (TURN.T @ orbit[:, :3], 1e-5),
    }


def check_pictures(assets: list[Asset], io: Arrays, half: int, mean: bool = True) -> Checks:
    """Renders by EG3D's marcher, with the file's draws for its two placements of samples.

    Depth is divided by opacity, or it is no `mean`.
    """
    n, m, _, size, _ = io["images_rgb"].shape
    rays = size * size
    o, d = io["rays_o"].astype(np.float64), io["rays_d"].astype(np.float64)
    near, far = limits(o.reshape(n, m * rays, 3), d.reshape(n, m * rays, 3))
    stratified = io["render_noise_stratified"].reshape(n, m * rays, half)
    importance = io["render_noise_pdf"].reshape(n, m * rays, half)
    maps, ends = [], []
    for i, asset in enumerate(assets):
        lines = o.reshape(n, -1, 3)[i], d.reshape(n, -1, 3)[i]
        step = (far[i] - near[i]) / (half - 1)
        t = near[i][:, None] + (np.arange(half) + stratified[i]) * step[:, None]
        weights = march(t, *asked(asset, *lines, t))[0]
        t = np.sort(np.concatenate([t, resampled(t, weights, importance[i])], 1), 1)
        maps.append(march(t, *asked(asset, *lines, t)))
        ends.append((t.min(), t.max()))
    total = np.stack([w.sum(-1) for w, _, _ in maps])
    rgb = np.stack([color + (1 - w.sum(-1, keepdims=True)) for w, color, _ in maps])
    depth = np.stack([depth for _, _, depth in maps])
    with np.errstate(invalid="ignore"):
        depth = np.nan_to_num(depth / (total if mean else 1), nan=np.inf)
    depth = np.clip(depth, min(low for low, _ in ends), max(high for _, high in ends))

    def picture(x):
        return np.moveaxis(x.reshape(n, m, size, size, -1), -1, 2)

    return {
        "images_rgb": (picture(rgb), *PICTURES),
        "images_depth": (picture(depth), *PICTURES),
        "images_weight": (picture(total), *PICTURES),
    }


def limits(o, d):
    """Where rays enter and leave the cube; those that miss it get ends of those that do not."""
    with np.errstate(divide="ignore"):
        first, second = (-1 - o) / d, (1 - o) / d
    near = np.minimum(first, second).max(-1)
    far = np.maximum(first, second).min(-1)
    hit = far > near
    return np.where(hit, near, near[hit].min()), np.where(hit, far, near[hit].max())


def asked(asset: Asset, o, d, t):
    """Raw densities (before softplus(x - 1)) and colours of samples, none outside of the cube."""
    x = o[:, None] + t[..., None] * d[:, None]
    inside = (np.abs(x) <= 1).all(-1)
    raw = 1 + np.log(np.expm1(np.maximum(asset.density(x), 1e-30)))
    nothing = -np.finfo(np.float32).max / 8
    return np.where(inside, raw, nothing), np.where(inside[..., None], asset.color(x), 0)


def march(t, raw, rgb):
    """Weights of the intervals, blended colours, and depth times opacity."""
    middle = partial(np.convolve, [0.5, 0.5], mode="valid")
    raw = np.apply_along_axis(middle, 1, raw)
    rgb = (rgb[:, 1:] + rgb[:, :-1]) / 2
    alpha = 1 - np.exp(-np.logaddexp(0, raw - 1) * np.diff(t))
    left = np.cumprod(1 - alpha + 1e-10, 1)
    w = alpha * np.concatenate([np.ones_like(left[:, :1]), left[:, :-1]], 1)
    depth = (w * (t[:, 1:] + t[:, :-1]) / 2).sum(-1)
    return w, (w[..., None] * rgb).sum(1), depth


def resampled(t, w, u):
    """More samples by a blurred histogram, with bins as the original pairs them."""
    padded = np.pad(w, ((0, 0), (1, 1)), constant_values=-np.inf)
    high = np.maximum(padded[:, 1:], padded[:, :-1])
    w = (high[:, 1:] + high[:, :-1]) / 2 + 0.01
    bins, w = (t[:, 1:] + t[:, :-1]) / 2, w[:, 1:-1] + 1e-5
    cdf = np.pad(np.cumsum(w / w.sum(1, keepdims=True), 1), ((0, 0), (1, 0)))
    found = np.stack([np.searchsorted(c, row, "right") for c, row in zip(cdf, u, strict=True)])
    below, above = np.maximum(found - 1, 0), np.minimum(found, w.shape[1])
    take = partial(np.take_along_axis, axis=1)
    low, high = take(cdf, below), take(cdf, above)
    width = np.where(high - low < 1e-5, 1.0, high - low)
    return take(bins, below) + (u - low) / width * (take(bins, above) - take(bins, below))


def full_openlrm(config: dict, flat: Arrays) -> tuple[object, Arrays]:
    """The parameters that a manifest's config is of, and its tensors under our names."""
    # Manifests name no encoder; widths tell it.
    letter = {384: "s", 768: "b"}[config["encoder_feat_dim"]]
    named = config | {"encoder_model_name": f"dinov2_vit{letter}14_reg"}
    return lrm.abstract_params(openlrm.design(named)), openlrm.names(flat)


# TripoSR.


def full_triposr(shapes: dict[str, tuple[int, ...]]) -> tuple[object, Arrays]:
    """The official model's parameters, and tensors of the given shapes under our names."""
    flat = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    return lrm.abstract_params(triposr.design(OFFICIAL)), triposr.names(flat)


def check_triposr(split: Path, path: Path, io: Arrays) -> Checks:
    """Picture, network, assets, cameras and pictures."""
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
    design, params = triposr.load(split, encoder=encoder)
    pictures = np.stack([design.picture(image) for image in io["in_image_hwc"]])
    out, layers = captured(design.network, params, pictures)
    tokens = np.asarray(params["network"]["embeddings"])
    tokens = tokens.swapaxes(0, 1).reshape(1, tokens.shape[1], -1)
    backbone = shown(layers, "backbone")
    checks = {
        "preprocessed_image_hwc": (pictures, 1e-5),
        "mid_vit_embeddings": (shown(layers, "encoder", "embeddings"), TOKENS),
        "mid_vit_layer0": (shown(layers, "encoder", "blocks_0"), TOKENS),
        "mid_image_tokens_BNvCNt": (shown(layers, "encoder").swapaxes(1, 2)[:, None], TOKENS),
        "mid_triplane_tokens_BCN": (tokens, 1e-6),
        "mid_backbone_block0": (shown(layers, "backbone", "transformer_blocks_0"), TOKENS),
        "mid_backbone_out_BCN": (
            backbone.reshape(len(out), -1, backbone.shape[-1]).swapaxes(1, 2),
            TOKENS,
        ),
        "scene_codes": (np.moveaxis(out, -1, 2), TOKENS),
    }
    asset = Asset(design, params, out[0].swapaxes(1, 2))
    radius, samples = design.field.bound, design.field.samples
    crossing = 2 * radius  # what our densities are by the metre, theirs are by this
    points = io["query_points"]
    density, color = asset.density(points)[:, None], asset.color(points)
    axis = np.linspace(-radius, radius, len(io["grid_density_act"]))
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    checks |= {
        "query_density_raw": (np.log(density) - design.field.density_bias, TOKENS),
        "query_features_raw": (np.log(color) - np.log1p(-color), 1e-3),
        "query_density_act": (density * crossing, 1e-3, True),
        "query_color": (color, 1e-4),
        "grid_density_act": (asset.density(lattice) * crossing, 1e-3, True),
    }
    size, fovy = io["cam_rays_o"].shape[1], np.radians(io["cam_fovy_deg"])
    around = cameras.orbit(np.arange(4) * np.pi / 2, 0.0, 1.9, fovy)
    checks |= rays_of("cam", around, size)
    o, d = checks["cam_rays_o"][0], checks["cam_rays_d"][0]
    checks["render_rgb"] = (quadrature(asset, o, d, radius, samples)[0], 1e-4)
    return checks | check_misses(asset, io, radius, samples)


def rays_of(name: str, camera: Camera, size: int) -> Checks:
    """Their names for our rays."""
    seen = cameras.rays(camera, (size, size))
    return {
        f"{name}_rays_o": (np.asarray(seen.origins), 1e-5),
        f"{name}_rays_d": (np.asarray(seen.directions), 1e-5),
    }


def check_misses(asset: Asset, io: Arrays, radius: float, samples: int) -> Checks:
    """Views of which some rays miss the cube."""
    eye = io["cam2_rays_o"][:, 0, 0].astype(np.float64)
    distance = np.linalg.norm(eye, axis=-1)
    around = cameras.orbit(
        np.arctan2(eye[:, 1], eye[:, 0]), np.arcsin(eye[:, 2] / distance), distance, np.radians(58)
    )
    checks = rays_of("cam2", around, io["cam2_rays_o"].shape[1])
    o, d = checks["cam2_rays_o"][0], checks["cam2_rays_d"][0]
    rgb, near, far, hit = quadrature(asset, o, d, radius, samples)
    return checks | {
        "cam2_valid": (hit, 0),
        "cam2_t_near": (near, 1e-5),
        "cam2_t_far": (far, 1e-5),
        "cam2_rgb_intended": (rgb, 1e-4),
    }


def quadrature(asset: Asset, o, d, radius: float, samples: int):
    """TripoSR's renders over white, where rays enter and leave, and which do.

    Steps count as 1 / samples whatever their length; rays that miss the cube are white.
    """
    shape, o, d = o.shape[:-1], *(x.reshape(-1, 3).astype(np.float64) for x in (o, d))
    safe = np.where(np.abs(d) < 1e-6, 1e-6, d)
    first, second = (0.999 * radius - o) / safe, (-0.999 * radius - o) / safe
    near = np.maximum(np.minimum(first, second).max(-1), 0)
    far = np.maximum(first, second).min(-1)
    hit = far - near > 0.01
    near, far = np.where(hit, near, 0), np.where(hit, far, 0)
    share = (np.arange(samples) + 0.5) / samples
    x = o[:, None] + (near[:, None] + (far - near)[:, None] * share)[..., None] * d[:, None]
    alpha = 1 - np.exp(-asset.density(x) * 2 * radius / samples)
    left = np.cumprod(1 - alpha + 1e-10, 1)
    w = alpha * np.concatenate([np.ones_like(left[:, :1]), left[:, :-1]], 1)
    rgb = (w[..., None] * asset.color(x)).sum(1) + 1 - w.sum(1, keepdims=True)
    rgb = np.where(hit[:, None], rgb, 1.0)
    return rgb.reshape(*shape, 3), near.reshape(shape), far.reshape(shape), hit.reshape(shape)
