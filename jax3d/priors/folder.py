"""Critics from disk: looks at a checkpoint folder and opens what is there.

Known are folders in diffusers' layout (Stable Diffusion 1, 2 and XL, MVDream as converted by
ashawkey or KokeCacao, DeepFloyd IF's first stage) and MVDream's original checkpoint file.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import diffusion, weights
from jax3d.nn import clip_text, tokenizer, unet, vae
from jax3d.priors import deepfloyd, ldm, mvdream, schedulers, stable_diffusion
from jax3d.priors.base import Critic
from jax3d.types import Params
from jax3d.weights import Flat, read_config, to_flax

_UNET_WEIGHTS = "diffusion_pytorch_model"


def open_prior(path: str, dtype: Any = jnp.float32) -> Critic:
    """The critic at `path`, whatever its kind; `Critic.name` says what was found.

    Args:
      path: a folder, an MVDream checkpoint file, or `owner/name` on the Hugging Face hub.
      dtype: of the denoiser's and the text towers' weights and arithmetic; norms, softmax and
        the autoencoder are float32 always.

    Raises:
      ValueError: nothing is there, nothing known is there, or a file of it is missing, damaged
        or does not fit.
    """
    folder = _local(path)
    if folder.is_file():
        return _open_checkpoint(folder, dtype)
    if not (folder / "unet").is_dir():
        files = [
            f for f in sorted(folder.iterdir()) if f.suffix in (".pt", ".ckpt", ".safetensors")
        ]
        if len(files) == 1:
            return _open_checkpoint(files[0], dtype)
        raise ValueError(
            f"{path}: neither a folder in diffusers' layout (unet/ is missing) nor one with a "
            "single checkpoint file"
        )
    config = read_config(folder / "unet" / "config.json")
    match config.get("_class_name"):
        case "MultiViewUNetModel":
            return _open_mvdream(folder, config, dtype)
        case "UNet2DConditionModel" if (folder / "vae").is_dir():
            return _open_stable_diffusion(folder, config, dtype)
        case "UNet2DConditionModel":
            return _open_pixels(folder, dtype)
    raise ValueError(
        f"{path}: unet/config.json describes a {config.get('_class_name')}; known are "
        "UNet2DConditionModel and MultiViewUNetModel"
    )


def read_schedule(folder: Path) -> tuple[Float[Array, " T"], diffusion.Prediction]:
    """abar and the kind of prediction from a `scheduler/` folder.

    Where a schedule ends in nothing but noise, an estimate of eps would not tell the image; abar
    is there what diffusers' Euler schedulers make of it, 2^-24.

    Raises:
      ValueError: the file is missing or asks for what is not supported.
    """
    config = read_config(folder / "scheduler_config.json")
    abar = jnp.maximum(schedulers.alphas_cumprod(config), 2.0**-24)
    return abar, schedulers.prediction(config)


def _local(path: str) -> Path:
    """The folder itself, or the hub's snapshot under that name."""
    if Path(path).exists():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f"{path}: no such file or folder")
    # Imported here: nothing else needs the hub.
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.safetensors", "*.pt"]
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:  # offline, no such name, no permission: a dozen classes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: no such folder here, and the Hugging Face hub did not give it ({reason}). "
            "Fetch it on a machine with a network and pass its folder"
        ) from error


def _towers(folder: Path, dtype: Any) -> stable_diffusion.TextTowers:
    towers = []
    for suffix in ("", "_2"):
        if (folder / f"text_encoder{suffix}").is_dir() or not suffix:
            tower, params = clip_text.load(folder / f"text_encoder{suffix}", dtype)
            length = tower.config.max_position_embeddings
            tokenize = tokenizer.load(folder / f"tokenizer{suffix}", length)
            towers.append((tower, params, tokenize))
    return towers


def _demand_width(net: unet.UNet2DConditionModel, towers, source: Path) -> None:
    """Raises where the denoiser was made for other text towers than lie beside it."""
    width = net.encoder_hid_dim or net.cross_attention_dim
    width = width[0] if isinstance(width, tuple) else width
    given = sum(tower.config.hidden_size for tower, _, _ in towers)
    if given != width:
        raise ValueError(
            f"{source}: the UNet reads text embeddings of width {width}, its text encoders make "
            f"{given}: the folder mixes parts of different models"
        )


def _open_stable_diffusion(folder: Path, config: dict[str, Any], dtype: Any) -> Critic:
    net, net_params = unet.load(folder / "unet", dtype)
    coder, coder_params = vae.load(folder / "vae")
    abar, prediction = read_schedule(folder / "scheduler")
    size = net.sample_size * 2 ** (len(coder.block_out_channels) - 1)
    towers = _towers(folder, dtype)
    _demand_width(net, towers, folder)
    network = stable_diffusion.text_network(net, size)
    params = {"unet": net_params, "vae": coder_params}
    kind = "Stable Diffusion XL" if config.get("addition_embed_type") else "Stable Diffusion"
    return Critic(
        stable_diffusion.latent_prior(network, coder, abar, prediction, size),
        params,
        stable_diffusion.text_encoder(towers),
        f"{kind}, {size} px, {prediction}-prediction, from {folder}",
        weights.digest((params, [tower_params for _, tower_params, _ in towers])),
    )


def _open_mvdream(folder: Path, config: dict[str, Any], dtype: Any) -> Critic:
    path = weights.find_weights(folder / "unet", _UNET_WEIGHTS)
    tensors = weights.load(path)
    if all(name.startswith("unet.") for name in tensors):
        tensors = ldm.part(tensors, "unet.")
    net, net_params = _mvdream_unet(tensors, config, dtype, path)
    coder, coder_params = vae.load(folder / "vae")
    towers = _towers(folder, dtype)
    return _mvdream(net, net_params, coder, coder_params, towers, folder)


def _mvdream_unet(
    tensors: Flat, config: dict[str, Any], dtype: Any, source: Path
) -> tuple[unet.UNet2DConditionModel, Params]:
    if config.get("ip_dim"):
        raise ValueError(f"{source}: ImageDream's image conditioning is not supported")
    net = unet.from_config(ldm.unet_config(config)).clone(views=mvdream.VIEWS, dtype=dtype)
    renamed = ldm.unet_names(tensors, config["num_res_blocks"])
    return net, to_flax(renamed, unet.abstract_params(net), source)


def _mvdream(net, net_params, coder, coder_params, towers, source: Path) -> Critic:
    _demand_width(net, towers, source)
    size = net.sample_size * 2 ** (len(coder.block_out_channels) - 1)
    prior = stable_diffusion.latent_prior(
        mvdream.view_network(net),
        coder,
        diffusion.scaled_linear(),
        "eps",
        size,
        mvdream.VIEWS,
        reads_camera=True,
    )
    params = {"unet": net_params, "vae": coder_params}
    return Critic(
        prior,
        params,
        stable_diffusion.text_encoder(towers),
        f"MVDream, {mvdream.VIEWS} views of {size} px, from {source}",
        weights.digest((params, [tower_params for _, tower_params, _ in towers])),
    )


def _open_checkpoint(path: Path, dtype: Any) -> Critic:
    """MVDream's original file: three networks under ldm's names, sizes told by the shapes."""
    tensors = weights.load(path)
    denoiser = ldm.part(tensors, "model.diffusion_model.")
    if "camera_embed.0.weight" not in denoiser:
        raise ValueError(
            f"{path}: holds no denoiser that knows cameras; of single files only MVDream's are "
            "read, others in diffusers' layout"
        )
    net, net_params = _mvdream_unet(denoiser, ldm.infer_unet_config(denoiser), dtype, path)
    coded = ldm.part(tensors, "first_stage_model.")
    coder = vae.from_config(ldm.infer_vae_config(coded))
    renamed = ldm.vae_names(coded, len(coder.block_out_channels))
    coder_params = to_flax(renamed, vae.abstract_params(coder), path)
    towers = [_openclip(ldm.part(tensors, "cond_stage_model.model."), path, dtype)]
    return _mvdream(net, net_params, coder, coder_params, towers, path)


def _openclip(tensors: Flat, path: Path, dtype: Any):
    """The text tower of a checkpoint file; its tokenizer lies beside the file."""
    width = tensors["ln_final.weight"].shape[0]
    layers = sum(name.endswith(".ln_1.weight") for name in tensors) - 1
    tower = clip_text.CLIPTextModel(
        clip_text.CLIPTextConfig(
            vocab_size=len(tensors["token_embedding.weight"]),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=len(tensors["positional_embedding"]),
            hidden_act="gelu",
            dtype=dtype,
        )
    )
    named = ldm.openclip_names(tensors, layers)
    params = to_flax(named, clip_text.abstract_params(tower), path)
    length = tower.config.max_position_embeddings
    # OpenCLIP pads with zeros, whichever tower the tokenizer's files came with.
    return tower, params, tokenizer.load(path.parent / "tokenizer", length, pad="!")


def _open_pixels(folder: Path, dtype: Any) -> Critic:
    net, params = unet.load(folder / "unet", dtype)
    abar, prediction = read_schedule(folder / "scheduler")
    return Critic(
        deepfloyd.pixel_prior(net, abar, prediction),
        {"unet": params},
        deepfloyd.embeddings_from_file(folder / deepfloyd.EMBEDDINGS),
        f"pixel-space critic, {net.sample_size} px, {prediction}-prediction, from {folder}",
        weights.digest({"unet": params}),
    )
