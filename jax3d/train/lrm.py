"""Training of the embedded reconstructor (`jax3d train lrm`).

First the bank: objects of the prop world as latents of the native generator's codec, and pictures
of each in several colours, from cameras that the network is not told. Then the flow on the latents,
which begins with the native generator's weights and is told a picture beside the caption, or in its
place. Letters: n pictures, b of them in a batch, k noise levels of each, s pixels along a side.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from jax3d import weights
from jax3d.bounds import Count, Natural, NonNegative, Seed, Share
from jax3d.data import prop_bank, prop_fields, props
from jax3d.models import props_latents, props_lrm, props_native
from jax3d.models.props_latents import Codec
from jax3d.nn.props_encoder import EncoderConfig
from jax3d.train import loop
from jax3d.train.native import SHAPES, flow_error
from jax3d.types import Params


@dataclasses.dataclass(frozen=True)
class PicturesConfig:
    """Which objects and pictures the bank holds."""

    each: Count = 40
    """Objects of each of `SHAPES`, which take turns."""
    pictures: Count = 8
    """Of each object, each in a colour of its own."""
    size: Count = 96
    """Side of the pictures, pixels: of the network's own side or more, so that the object's box
    can be enlarged to it."""
    seed: Seed = 23


@dataclasses.dataclass(frozen=True)
class LrmTraining:
    """A recipe: `configs/lrm_cpu.py` holds the shipped one."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    bank: PicturesConfig = dataclasses.field(default_factory=PicturesConfig)
    steps: Count = 6000
    batch: Count = 64
    noises: Count = 8
    """Noise levels at which each picture of a batch is asked: the flow costs less than its eye."""
    lr: NonNegative = 7e-4
    warmup: Natural = 200
    decay: Share = 0.5
    """Share of the steps, at the end, over which the rate falls to zero."""
    ema: Share = 0.999
    paint_weight: NonNegative = 8.0
    """Of an error in the paints, nine numbers, beside one in a component."""
    drop_picture: Share = 0.1
    drop_text: Share = 0.6
    unmatted: Share = 0.3
    """Share of pictures whose coverage is not told; their ground is white or a light grey."""
    start_from: Path = props_native.WEIGHTS
    """The native generator whose codec is used and whose flow is gone on with."""
    seed: Seed = 0
    save_every: Count = 250


class Bank(NamedTuple):
    """Pictures with what they show."""

    latents: Float[np.ndarray, "m d"]
    """Of the objects, without paints."""
    pictures: UInt8[np.ndarray, "n S S 4"]
    """Straight sRGB and coverage; a memory map."""
    boxes: Float[np.ndarray, "n 3"]
    """Of the object in its picture, as `props_lrm.box` has it."""
    spec: Int[np.ndarray, " n"]
    """Indices into `props.specs()`; picture `i` shows object `i % m`."""


def open_bank(
    folder: Path, config: PicturesConfig, codec: Codec, report: Callable[[str], None]
) -> Bank:
    """The bank of `config`, made in `folder` unless it is there already; a pure function of both.

    Raises:
      ValueError: The folder holds a bank of another config or codec.
    """
    described = folder / "pictures.json"
    wanted = dataclasses.asdict(config) | {"codec": weights.digest(codec)}
    if described.exists():
        found = json.loads(described.read_text())
        if found != wanted:
            raise ValueError(
                f"{folder} holds the pictures {found}, not {wanted}: "
                "choose another folder or delete it"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "latents.npy", _encode(config, codec, report))
        _draw(folder, config, report)
        described.write_text(json.dumps(wanted))
    labels = np.load(folder / "labels.npz")
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    return Bank(np.load(folder / "latents.npy"), pictures, labels["boxes"], labels["spec"])


def _encode(config: PicturesConfig, codec: Codec, report) -> Float[np.ndarray, "n d"]:
    shapes = list(SHAPES) * config.each

    def told(n: int):
        if n % (5 * len(SHAPES)) == 0:
            report(f"objects: {n} of {len(shapes)}")

    return props_latents.encode_objects(shapes, config.seed, codec, told)


def _draw(folder: Path, config: PicturesConfig, report) -> None:
    """Renders and writes the pictures, each in a colour that is not held out."""
    index = {spec: k for k, spec in enumerate(props.specs())}
    pools = [
        [
            index[spec]
            for color in props.COLORS
            if not props.is_held_out(spec := props.Spec(name, color, attribute))
        ]
        for name, attribute in SHAPES
    ]
    count = config.each * len(SHAPES)
    rng = np.random.Generator(np.random.Philox(key=config.seed))
    shape = (count * config.pictures, config.size, config.size, 4)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, shape)
    chosen = np.array(
        [
            pools[k % len(SHAPES)][int(u * len(pools[k % len(SHAPES)]))]
            for k, u in enumerate(rng.random(len(pictures)))
        ]
    )
    key = jax.random.key(config.seed)
    for turn in range(config.pictures):
        report(f"pictures: {turn * count} of {len(pictures)}")
        rows = slice(turn * count, (turn + 1) * count)
        specs = [props.specs()[k] for k in chosen[rows]]
        pictures[rows] = prop_bank.draw(
            jax.random.fold_in(key, turn), props.build(specs, config.seed), config.size
        )
    pictures.flush()
    box = jax.jit(props_lrm.box)
    boxes = np.stack([np.asarray(box(picture[..., 3] > 25)) for picture in pictures])
    np.savez(folder / "labels.npz", spec=chosen, boxes=boxes)


def make(config: LrmTraining, codec: Codec):
    """The pure pieces of the training: `(init(given) -> state, step(state, batch) -> ...)`.

    `given` are the native generator's weights; `step` returns `(state, loss)`.
    """
    fall = optax.schedules.cosine_decay_schedule(config.lr, max(loop.falling(config), 1))
    adam = loop.optimizer(config, fall)
    network, *_ = props_native.read_config(config.start_from)
    spread = props_native.spreads(codec)

    def init(given: Params) -> loop.TrainState:
        key = jax.random.key(config.seed)
        params = props_lrm.init(key, config.encoder, network, len(codec.scale))
        return loop.start(params | {name: given[name] for name in ("words", "flow")}, adam)

    def of_batch(params: Params, key, batch: Batch):
        return loss(params, config, network, key, batch, spread)

    return init, loop.stepper(of_batch, adam, config)


class Batch(NamedTuple):
    """What a step sees."""

    pictures: UInt8[Array, "b S S 4"]
    boxes: Float[Array, "b 3"]
    ids: Int[Array, "b L"]
    """Words of a caption each."""
    latents: Float[Array, "b e"]
    """Paints included."""


def loss(
    params: Params, config: LrmTraining, network, key, batch: Batch, spread: Float[Array, " e"]
) -> Float[Array, ""]:
    """The flow's error on a batch, at several noise levels of each picture."""
    k_look, k_drop, k_text, k_time, k_noise = jax.random.split(key, 5)
    b, k = len(batch.latents), config.noises
    pictures = look(k_look, batch.pictures, batch.boxes, config.unmatted)
    eye = props_lrm.encode(params, config.encoder, pictures)
    seen = jax.random.uniform(k_drop, (b, 1)) >= config.drop_picture
    said = jax.random.uniform(k_text, (b, 1)) >= config.drop_text
    words = props_native.gist(props_native.embed(params["words"], jnp.where(said, batch.ids, 0)))
    asked = jnp.broadcast_to(words + seen * eye, (k, *eye.shape))
    t = (jnp.arange(k * b).reshape(k, b) + jax.random.uniform(k_time)) / (k * b)
    z = jnp.broadcast_to(batch.latents, (k, *batch.latents.shape))
    noise = jax.random.normal(k_noise, z.shape)
    return flow_error(params, network, spread, z, t, noise, asked, config.paint_weight)


def look(
    key, rgba: UInt8[Array, "b S S 4"], boxes: Float[Array, "b 3"], unmatted: float
) -> Float[Array, "b s s 4"]:
    """The pictures as the encoder sees them, framed a little unevenly, as mattes are."""
    k_frame, k_ground, k_level, k_white = jax.random.split(key, 4)
    n = len(rgba)
    jitter = jax.random.uniform(k_frame, (n, 3), minval=-1.0)
    # Of the box's side: where the matte's edge falls is a matter of taste.
    boxes = boxes + boxes[:, 2:] * jnp.array([0.03, 0.03, 0.07]) * jitter
    framed = jax.vmap(props_lrm.frame)(rgba.astype(jnp.float32) / 255.0, boxes)
    plain = jax.random.uniform(k_ground, (n, 1, 1, 1)) < unmatted
    level = jax.random.uniform(k_level, (n, 1, 1, 1), minval=0.6)
    level = jnp.where(jax.random.uniform(k_white, (n, 1, 1, 1)) < 0.5, 1.0, level)
    grey = framed[..., :3] + (1.0 - framed[..., 3:]) * (level - 1.0)
    unknown = jnp.concatenate([grey, jnp.ones_like(grey[..., :1])], -1)
    return jnp.where(plain, unknown, framed)


def train(config: LrmTraining, folder: Path, report: Callable[[str], None] = print) -> Path:
    """Trains the reconstructor and returns the path of its weights.

    `folder` holds the bank, the checkpoint (from which a second call goes on) and the weights
    (`lrm.safetensors`), written with every checkpoint.
    """
    folder = Path(folder)
    given = props_native.load(config.start_from)
    codec, network = given["codec"], props_native.read_config(config.start_from)[0]
    bank = open_bank(folder, config.bank, codec, report)
    init, step = make(config, codec)
    state = loop.resumed(folder, jax.eval_shape(init, given), report)
    state = jax.jit(init)(given) if state is None else state
    path, digest = folder / "lrm.safetensors", weights.digest(codec)
    loop.run(
        step,
        state,
        ((draw_batch(bank, config, k),) for k in range(int(state.step) + 1, config.steps + 1)),
        config,
        folder,
        lambda params: props_lrm.save(path, params, config.encoder, network, digest),
        report,
    )
    return path


def draw_batch(bank: Bank, config: LrmTraining, step: int) -> Batch:
    """The batch of a step, a pure function of its number."""
    rng = np.random.Generator(np.random.Philox(key=(config.seed << 32) + step))
    rows = np.sort(rng.choice(len(bank.pictures), config.batch, replace=False))
    wording = rng.integers(0, props.WORDINGS, config.batch)
    spec = bank.spec[rows]
    own = np.stack([prop_fields.paints(props.specs()[k].color) for k in spec])
    paints = np.asarray(props_latents.paint_latents(own))
    latents = np.concatenate([bank.latents[rows % len(bank.latents)], paints], -1)
    ids = props.caption_table()[spec, wording]
    return Batch(bank.pictures[rows], bank.boxes[rows], ids, latents)
