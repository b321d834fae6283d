"""Multi-view critics: four views of one object in one denoising, each told its camera.

MVDream (https://arxiv.org/abs/2308.16512): Stable Diffusion 2.1 whose self-attention spans the
views and whose time embedding is joined by an embedding of the camera's pose.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import diffusion, weights
from jax3d.nn import clip_text, tokenizer, unet, vae
from jax3d.nn.unet import UNet2DConditionModel
from jax3d.nn.vae import AutoencoderKL
from jax3d.priors import ldm, schedulers, stable_diffusion
from jax3d.priors.base import Critic, Prior
from jax3d.priors.stable_diffusion import Network, TextTower
from jax3d.types import Params
from jax3d.weights import Flat, WeightsError, to_flax

VIEWS = 4


def view_network(unet: UNet2DConditionModel) -> Network:
    """A UNet with joint attention over `unet.views` consecutive images and their cameras."""

    def network(params, z_t, t, text, camera):
        poses = None if camera is None else camera_vectors(camera.c2w)
        return unet.apply({"params": params}, z_t, t, text.tokens, poses)

    return network


def view_prior(
    network: Network, vae: AutoencoderKL, size: int
) -> tuple[Prior, schedulers.Schedule]:
    """A critic of `VIEWS` views of `size` pixels that is told cameras, and its schedule."""
    schedule = schedulers.Schedule(diffusion.scaled_linear(), "eps", None)
    prior = stable_diffusion.latent_prior(
        network,
        vae,
        schedule.alphas_cumprod,
        schedule.prediction,
        size,
        VIEWS,
        reads_camera=True,
    )
    return prior, schedule


def camera_vectors(c2w: Float[Array, "*v 4 4"]) -> Float[Array, "*v 16"]:
    """Poses as the network learnt them: row by row, with the position at distance 1.

    MVDream's world is ours (+z up, OpenGL cameras), and its demonstrations put an object's front
    at +x as we do.
    """
    position = c2w[..., :3, 3]
    distance = jnp.linalg.norm(position, axis=-1, keepdims=True)
    unit = c2w.at[..., :3, 3].set(position / jnp.maximum(distance, 1e-8))
    return unit.reshape(*c2w.shape[:-2], 16)


def orbit_vectors(
    n: int, elevation: float, azimuth_start: float = 0.0, span: float = 2 * np.pi
) -> Float[np.ndarray, "n 16"]:
    """`camera_vectors` of n cameras around the object, as MVDream's own tables count them.

    Its azimuth 0 is at world -y, a quarter turn before ours. Angles in radians.
    """
    azimuth = azimuth_start + np.arange(n) * span / n
    ce, se = np.full(n, np.cos(elevation)), np.full(n, np.sin(elevation))
    ca, sa = np.cos(azimuth), np.sin(azimuth)
    zero, one = np.zeros(n), np.ones(n)
    right = [ca, sa, zero]
    up = [-se * sa, se * ca, ce]
    back = [ce * sa, -ce * ca, se]
    columns = [[*right, zero], [*up, zero], [*back, zero], [*back, one]]
    c2w = np.array(columns).transpose(2, 1, 0)
    return c2w.reshape(n, 16).astype(np.float32)


# Folders and files.


def recognises(path: Path) -> bool:
    """Whether it is a folder in diffusers' layout with MVDream's UNet, or a single checkpoint."""
    if path.is_file():
        return path.suffix in _CHECKPOINTS
    if (kind := stable_diffusion.unet_class(path)) is not None:
        return kind == "MultiViewUNetModel"
    return len(_checkpoints(path)) == 1


def open(path: Path, dtype: Any = jnp.float32) -> Critic:
    """MVDream from a folder as ashawkey or KokeCacao converted it, or from its original file.

    Args:
      path: the folder, the file, or a folder that holds one such file.
      dtype: of the denoiser's and the text tower's weights and arithmetic; norms, softmax and the
        autoencoder are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others.
    """
    if path.is_file():
        return _open_checkpoint(path, dtype)
    if not (path / "unet").is_dir():
        return _open_checkpoint(_checkpoints(path)[0], dtype)
    file = weights.find_weights(path / "unet", "diffusion_pytorch_model")
    tensors = weights.load(file)
    if all(name.startswith("unet.") for name in tensors):
        tensors = ldm.part(tensors, "unet.")
    net, like = weights.described(
        path / "unet" / "config.json", partial(_network, dtype=dtype), unet.abstract_params
    )
    net_params = _named(tensors, net, like, file)
    coder, coder_params = vae.load(path / "vae")
    towers = stable_diffusion.read_towers(path, dtype)
    return _critic(net, net_params, coder, coder_params, towers, path)


_CHECKPOINTS = (".pt", ".ckpt", ".safetensors")


def _checkpoints(folder: Path) -> list[Path]:
    return [f for f in sorted(folder.iterdir()) if f.suffix in _CHECKPOINTS]


def _network(config: dict[str, Any], dtype: Any) -> UNet2DConditionModel:
    if config.get("ip_dim"):
        raise WeightsError("ImageDream's image conditioning is not supported")
    return unet.from_config(ldm.unet_config(config)).clone(views=VIEWS, dtype=dtype)


def _named(tensors: Flat, net: UNet2DConditionModel, like: Params, source: Path) -> Params:
    layers = net.layers_per_block
    return to_flax(ldm.unet_names(tensors, layers), like, source)


def _critic(
    net: UNet2DConditionModel,
    net_params: Params,
    coder: AutoencoderKL,
    coder_params: Params,
    towers: list[TextTower],
    source: Path,
) -> Critic:
    size = stable_diffusion.demand_fit(net, coder, towers, source)
    prior, schedule = view_prior(view_network(net), coder, size)
    params = {"unet": net_params, "vae": coder_params}
    return Critic(
        prior,
        params,
        stable_diffusion.text_encoder(towers),
        f"MVDream, {VIEWS} views of {size} px, from {source}",
        stable_diffusion.digest(params, towers, schedule, net, coder),
    )


def _open_checkpoint(path: Path, dtype: Any) -> Critic:
    """The original file: three networks under ldm's names, sizes told by the shapes."""
    tensors = weights.load(path)
    denoiser = ldm.part(tensors, "model.diffusion_model.")
    if "camera_embed.0.weight" not in denoiser:
        raise WeightsError(
            f"{path}: holds no denoiser that knows cameras; of single files only MVDream's are "
            "read, others in diffusers' layout"
        )
    net, like = _told_by_shapes(
        path,
        lambda: _network(ldm.infer_unet_config(denoiser), dtype),
        unet.abstract_params,
    )
    net_params = _named(denoiser, net, like, path)
    coded = ldm.part(tensors, "first_stage_model.")
    coder, like = _told_by_shapes(
        path, lambda: vae.from_config(ldm.infer_vae_config(coded)), vae.abstract_params
    )
    renamed = ldm.vae_names(coded, len(coder.block_out_channels))
    coder_params = to_flax(renamed, like, path)
    tower = _openclip(ldm.part(tensors, "cond_stage_model.model."), path, dtype)
    return _critic(net, net_params, coder, coder_params, [tower], path)


def _told_by_shapes(
    path: Path, network: Callable[[], Any], abstract_params: Callable[[Any], Params]
) -> tuple[Any, Params]:
    """A network and the shapes of its weights, where the file's tensors tell what it is."""
    try:
        net = network()
        return net, abstract_params(net)
    except Exception as error:  # tensors that are missing, or of shapes that make no network
        raise WeightsError(
            f"{path}: its tensors are not those of MVDream ({weights.first_line(error)})"
        ) from error


def _openclip(tensors: Flat, path: Path, dtype: Any) -> TextTower:
    """The text tower of a checkpoint file; its tokenizer lies beside the file."""
    tower, like = _told_by_shapes(
        path,
        lambda: clip_text.from_config(ldm.infer_openclip_config(tensors), dtype),
        clip_text.abstract_params,
    )
    named = ldm.openclip_names(tensors, tower.config.num_hidden_layers)
    params = to_flax(named, like, path)
    length, words = tower.config.max_position_embeddings, tower.config.vocab_size
    # OpenCLIP pads with zeros, whichever tower the tokenizer's files came with.
    reader = tokenizer.load(path.parent / "tokenizer", length, pad="!", words=words)
    return TextTower(tower, params, reader)
