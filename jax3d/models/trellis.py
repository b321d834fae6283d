"""TRELLIS (https://arxiv.org/abs/2412.01506) from its folders: text or a picture to 3D Gaussians.

Two rectified flows, one after the other: the first samples dense latents, of which a decoder says
which voxels of a grid are occupied; the second samples latents on these voxels, which another
decoder makes 32 Gaussians each. There is room for a fixed number of voxels: an asset with more ends
as one whose numbers are not finite, and its neighbours in a batch are none the wiser.

Letters: r places along an axis of the dense latents, i their channels, n voxels there is room for,
c channels of theirs, l tokens that tell, e their width.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax3d import diffusion, hub, weights
from jax3d.fields import gaussians
from jax3d.models import trellis_gaussians, trellis_prompts
from jax3d.models.base import Model
from jax3d.models.trellis_gaussians import Splats
from jax3d.models.trellis_prompts import Reader
from jax3d.nn import sparse, trellis, trellis_latents
from jax3d.nn.trellis import StructureDecoder, StructureFlow
from jax3d.nn.trellis_latents import GaussianDecoder, LatentFlow
from jax3d.render.sparse import largest_of_batch
from jax3d.types import Condition, Key, Params
from jax3d.weights import WeightsError

ROOMS = (32768, 8192)
"""Voxels of the grid of 64 and of the next coarser one that there is room for: as many as TRELLIS
learnt with, and of those the quarter that a surface has at half the resolution."""


class Sampler(NamedTuple):
    """The steps of a flow; time goes from 1, noise, to 0."""

    t: Float[np.ndarray, " N"]
    drop: Float[np.ndarray, " N"]
    """How far each step goes down."""
    guided: Bool[np.ndarray, " N"]
    """At which steps there is guidance."""
    strength: float
    """Of the guidance by its authors: the scale is one more."""


class Design(NamedTuple):
    """A model before its weights."""

    structure_flow: StructureFlow
    structure_decoder: StructureDecoder
    latent_flow: LatentFlow
    gaussian_decoder: GaussianDecoder
    splats: Splats
    structure_sampler: Sampler
    latent_sampler: Sampler
    rooms: tuple[int, ...]
    """Voxels of the grid and of each coarser one of the latents' flow that there is room for."""


class State(NamedTuple):
    """How far the sampling of an asset has come; it goes on from here."""

    structure: Float[Array, "r r r i"]
    place: Int[Array, " n"]
    """Occupied voxels, as `sparse.Voxels.place`; nobody before the first flow has ended."""
    latent: Float[Array, "n c"]
    lost: Int[Array, ""]
    """Voxels for which there was no room."""


def sampler(
    steps: int,
    strength: float,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale_t: float = 1.0,
) -> Sampler:
    """Steps that are even in s, t = k s / (1 + (k - 1) s) with k = `rescale_t`.

    Args:
      steps: N.
      strength: of guidance.
      interval: times in which there is guidance, both ends included.
      rescale_t: above 1 more of the steps are noisy ones.
    """
    s = np.linspace(1, 0, steps + 1)
    t = rescale_t * s / (1 + (rescale_t - 1) * s)
    guided = (interval[0] <= t[:-1]) & (t[:-1] <= interval[1])
    return Sampler(np.float32(t[:-1]), np.float32(-np.diff(t)), guided, strength)


def model(design: Design, params: Params, reader: Reader, name: str) -> Model:
    """Of as many steps as both samplers have.

    Its guidance is `knobs.model_scale`, that of the first flow; the second's strength (the scale
    less 1) has to the first's the ratio that the samplers' have.

    Args:
      design: what it is made of.
      params: of each network by its name in `pipeline.json`, and `mean` and `std` of the latents.
      reader: of its prompts.
      name: for people.
    """
    field = trellis_gaussians.field(design.splats, design.rooms[0])
    facts = [dataclasses.asdict(net.config) for net in design[:4]]
    facts += [design.splats, design.rooms, reader.digest]
    facts += [design.structure_sampler.strength, design.latent_sampler.strength]
    samplers = (design.structure_sampler, design.latent_sampler)
    return Model(
        field=field,
        representation=gaussians.gaussians(field),
        params=params,
        condition=reader.condition,
        begin=partial(begin, design),
        advance=partial(advance, design),
        steps=sum(len(s.t) for s in samplers),
        decode=partial(decode, design),
        name=name,
        digest=weights.digest([params, [s[:3] for s in samplers]], facts),
        scale=1.0 + design.structure_sampler.strength,
    )


def begin(design: Design, key: Key, cond: Condition) -> State:
    """Noise."""
    del cond
    dense, latent = design.structure_flow.config, design.latent_flow.config
    for_dense, for_latent = jax.random.split(key)
    room = design.rooms[0]
    return State(
        jax.random.normal(for_dense, (*(dense.resolution,) * 3, dense.in_channels)),
        jnp.full(room, latent.resolution**3, jnp.int32),
        jax.random.normal(for_latent, (room, latent.in_channels)),
        jnp.zeros((), jnp.int32),
    )


def advance(design: Design, params: Params, z: State, i, cond: Condition, knobs) -> State:
    """A step of the flow of structures, then of that of latents; between them voxels are found."""
    first, second = design.structure_sampler, design.latent_sampler
    count = len(first.t)
    scale = knobs.model_scale.at(i)
    ratio = second.strength / first.strength if first.strength else 1.0

    def structure(z: State) -> State:
        def velocity(x, t, told):
            net = design.structure_flow
            return net.apply({"params": params["sparse_structure_flow_model"]}, x, t, told)

        return z._replace(structure=euler(velocity, z.structure, i, first, cond, scale))

    def latent(z: State) -> State:
        found = levels(design, z.place)

        def velocity(x, t, told):
            net = design.latent_flow
            return net.apply({"params": params["slat_flow_model"]}, x, found, t, told)

        scaled = 1 + ratio * (scale - 1)
        return z._replace(latent=euler(velocity, z.latent, i - count, second, cond, scaled))

    z = where(i < count, structure, z)
    z = where(i == count - 1, partial(settle, design, params), z)
    return where(i >= count, latent, z)


def where(wanted: Bool[Array, ""], step: Callable[[State], State], z: State) -> State:
    """`step(z)` where it is wanted; in a batch it is computed if any asset wants it."""
    anyone = largest_of_batch(jnp.asarray(wanted, jnp.int32)) > 0
    changed = lax.cond(anyone, step, lambda z: z, z)
    return jax.tree.map(lambda new, old: jnp.where(wanted, new, old), changed, z)


def euler(
    velocity: Callable[[Array, Array, Array], Array],
    x: Float[Array, "..."],
    i: Int[Array, ""],
    steps: Sampler,
    cond: Condition,
    scale: Float[Array, ""],
) -> Float[Array, "..."]:
    """Euler's step `i` under classifier-free guidance, both halves in one batch.

    Args:
      velocity: of copies of `x` at times in [0, 1000], told tokens.
      x: where the sample is.
      i: the step; others than the sampler's stand for the next that it has.
      steps: the sampler.
      cond: what it is told.
      scale: of guidance, where the sampler has any.
    """
    t, drop, guided = (jnp.asarray(a)[jnp.clip(i, 0, len(steps.t) - 1)] for a in steps[:3])
    times = jnp.broadcast_to(1000 * t, (2,))
    told = jnp.stack([cond.plain.tokens, cond.null.tokens])

    def both(x):
        plain, null = velocity(jnp.broadcast_to(x, (2, *x.shape)), times, told)
        return jnp.where(guided, diffusion.cfg(null, plain, scale), plain)

    def plain(x):
        return velocity(x[None], times[:1], told[:1])[0]

    if steps.guided.all():
        return x - drop * both(x)
    anyone = largest_of_batch(jnp.asarray(guided, jnp.int32)) > 0
    return x - drop * lax.cond(anyone, both, plain, x)


def levels(design: Design, place: Int[Array, " n"]) -> sparse.Levels:
    """The voxels as the latents' flow has them."""
    return sparse.levels(place, design.latent_flow.config.resolution, design.rooms[1:])


def settle(design: Design, params: Params, z: State) -> State:
    """Finds the occupied voxels; where there are none, or too many, latents are not finite."""
    net = design.structure_decoder
    logits = net.apply({"params": params["sparse_structure_decoder"]}, z.structure[None])
    place, lost = sparse.occupied(logits[0, ..., 0] > 0, design.rooms[0])
    found = levels(design, place)
    lost += found.overflow
    sound = found.voxels[0].there[0] & (lost == 0)
    return z._replace(place=place, lost=lost, latent=jnp.where(sound, z.latent, jnp.nan))


def decode(design: Design, params: Params, z: State) -> Params:
    """Parameters of the Gaussians."""
    side = design.latent_flow.config.resolution
    voxels = sparse.voxels(z.place, side)
    latent = z.latent * params["std"] + params["mean"]
    own = params["slat_decoder_gs"]
    raw = design.gaussian_decoder.apply({"params": own}, latent[None], voxels)[0]
    return trellis_gaussians.parameters(
        raw, own["offset_perturbation"], voxels, design.splats, side
    )


# Folders.

_READS = {"TrellisImageTo3DPipeline": "image_cond_model", "TrellisTextTo3DPipeline": None}
"""Pipelines, and what names their encoder of pictures."""


def recognises(path: Path) -> bool:
    """Whether it is a folder of TRELLIS."""
    config = path / "pipeline.json"
    return config.is_file() and str(weights.read_config(config).get("name")) in _READS


def open(
    path: Path,
    dtype: Any = jnp.float32,
    steps: tuple[int, int] | None = None,
    rooms: tuple[int, ...] = ROOMS,
) -> Model:
    """The model of a folder in the official layout, of texts or of pictures as it says.

    Args:
      path: with `pipeline.json`, the networks' files that it names (where it names another
        checkpoint of the hub, they are fetched from there), and what reads prompts: DINOv2's
        weights, or `text_encoder/` and `tokenizer/`.
      dtype: of the transformers', the decoders' and the encoder's weights and arithmetic; norms,
        softmax, residuals, latents and assets are float32 always.
      steps: of both samplers; by default those of `pipeline.json`.
      rooms: voxels of the grid, and of each coarser one, that there is room for.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others.
    """
    pipeline = weights.read_config(path / "pipeline.json")
    args, kind = pipeline.get("args"), str(pipeline.get("name"))
    if not isinstance(args, dict) or kind not in _READS:
        raise WeightsError(f"{path / 'pipeline.json'}: no pipeline of TRELLIS with its args")
    named = _READS[kind]
    if named:
        reader = trellis_prompts.read_pictures(path, str(args.get(named)), dtype)
    else:
        reader = trellis_prompts.read_texts(path, dtype)
    design, params = load(path, dtype, steps, rooms)
    widths = {net.config.cond_channels for net in (design.structure_flow, design.latent_flow)}
    if widths != {reader.width}:
        raise WeightsError(
            f"{path}: its flows are told tokens of width {sorted(widths)}, its encoder makes "
            f"{reader.width}: the folder mixes parts of different models"
        )
    what = "pictures" if named else "texts"
    counts = [len(s.t) for s in (design.structure_sampler, design.latent_sampler)]
    name = f"TRELLIS of {what}, {counts[0]} + {counts[1]} steps, from {path}"
    return model(design, params, reader, name)


def load(
    path: Path,
    dtype: Any = jnp.float32,
    steps: tuple[int, int] | None = None,
    rooms: tuple[int, ...] = ROOMS,
) -> tuple[Design, Params]:
    """All but the reader; arguments and errors are those of `open`."""
    source = path / "pipeline.json"
    args = weights.read_config(source)["args"]
    try:
        names = ("sparse_structure_sampler", "slat_sampler")
        counts = zip(names, steps or (None, None), strict=True)
        samplers = [read_sampler(args.get(name), count) for name, count in counts]
        params = read_normalization(args.get("slat_normalization"))
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    networks = {}
    for name, (build, abstract) in _NETWORKS.items():
        stem = network_files(path, args.get("models"), name)
        networks[name], params[name] = read_network(stem, partial(build, dtype=dtype), abstract)
    *others, (gaussian, splats) = networks.values()
    design = Design(*others, gaussian, splats, *samplers, rooms)
    return checked(design, len(params["mean"]), path), params


def checked(design: Design, channels: int, source: Any) -> Design:
    """The same, once its parts are known to fit each other and a normalisation of so many channels.

    Raises:
      WeightsError: they do not.
    """
    flow, decoder = design.structure_flow.config, design.structure_decoder.config
    latent, last = design.latent_flow.config, design.gaussian_decoder.config
    side = flow.resolution * 2 ** (len(decoder.channels) - 1)
    pairs = {
        "channels of dense latents": (flow.in_channels, flow.out_channels, decoder.latent_channels),
        "voxels along an axis": (side, latent.resolution, last.resolution),
        "channels of latents": (
            latent.in_channels,
            latent.out_channels,
            last.latent_channels,
            channels,
        ),
        "levels and rooms": (len(latent.io_block_channels) + 1, len(design.rooms)),
    }
    for what, numbers in pairs.items():
        if len(set(numbers)) > 1:
            raise WeightsError(f"{source}: its parts have {numbers} {what}: they do not fit")
    if side > _MOST_SIDE or min(design.rooms) < 1:
        raise WeightsError(f"{source}: a grid of {side} with rooms {design.rooms}")
    return design


def network_files(folder: Path, models: Any, name: str) -> Path:
    """Where a network's files are, without their suffixes."""
    value = models.get(name) if isinstance(models, dict) else None
    if not isinstance(value, str) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", value):
        raise WeightsError(f"{folder / 'pipeline.json'}: models.{name} = {weights.shown(value)}")
    if Path(f"{folder / value}.json").is_file() or value.count("/") < 2:
        return folder / value
    owner, repository, rest = value.split("/", 2)
    return hub.find(f"{owner}/{repository}", [f"{rest}.*"], "TRELLIS's text models need it") / rest


def read_network(stem: Path, build: Callable, abstract: Callable) -> tuple[Any, Params]:
    """The network of `stem.json` and its weights, of `stem.safetensors`.

    Args:
      stem: a path without its suffix.
      build: the network of parsed settings.
      abstract: the shapes of a network's weights.

    Raises:
      WeightsError: a file is missing, damaged, unsupported or does not fit the other.
    """
    file = Path(f"{stem}.safetensors")
    net, like = weights.described(Path(f"{stem}.json"), build, abstract)
    return net, weights.to_flax(trellis_latents.rename(weights.load(file)), like, file)


_NETWORKS = {
    "sparse_structure_flow_model": (trellis.structure_flow, trellis.abstract_structure_flow),
    "sparse_structure_decoder": (trellis.structure_decoder, trellis.abstract_structure_decoder),
    "slat_flow_model": (trellis_latents.latent_flow, trellis_latents.abstract_latent_flow),
    "slat_decoder_gs": (trellis_gaussians.decoder, trellis_gaussians.abstract_params),
}
_SAMPLERS = ("FlowEulerGuidanceIntervalSampler", "FlowEulerCfgSampler")
_PARAMS = {
    "steps": int,
    "cfg_strength": float,
    "cfg_interval": tuple[float, ...],
    "rescale_t": float,
}
_MOST_STEPS, _MOST_SIDE = 1000, 256


def read_sampler(config: Any, steps: int | None = None) -> Sampler:
    """A sampler of `pipeline.json`, in its own number of steps or another.

    Raises:
      WeightsError: it lacks something, or asks for what is not supported.
    """
    config = config if isinstance(config, dict) else {}
    if (kind := config.get("name")) not in _SAMPLERS:
        raise WeightsError(f"a sampler is a {weights.shown(kind)}, not one of {_SAMPLERS}")
    params = config.get("params")
    params = weights.checked(params if isinstance(params, dict) else {}, _PARAMS)
    if lost := sorted({"steps", "cfg_strength"} - set(params)):
        raise WeightsError(f"a sampler's params lack {', '.join(lost)}")
    found = steps or params["steps"]
    interval = tuple(map(float, params.get("cfg_interval", (0.0, 1.0))))
    rescale_t, strength = (float(params.get(k, 1.0)) for k in ("rescale_t", "cfg_strength"))
    if not 1 <= found <= _MOST_STEPS or len(interval) != 2 or not rescale_t > 0:
        raise WeightsError(f"a sampler of {found} steps with {weights.shown(params)}")
    return sampler(found, strength, interval, rescale_t)


def read_normalization(config: Any) -> Params:
    """`{"mean", "std"}` of the latents; raises `WeightsError`."""
    config = config if isinstance(config, dict) else {}
    found = weights.checked(config, dict.fromkeys(("mean", "std"), tuple[float, ...]))
    if len({len(found.get(name, ())) for name in ("mean", "std")}) != 1 or not found:
        raise WeightsError("slat_normalization is no mean and std of as many channels")
    return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}
