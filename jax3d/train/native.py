"""Training of the native prop generator (`jax3d train native`).

First the bank: grids of objects, cut to the features that vary, from which the codec is fitted;
then the flow on their latents. A shape comes in every colour that is not held out with it, so an
object of the bank stands for eleven assets. The learning rate warms up, stays, and decays to zero
over the last part.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jax3d import weights
from jax3d.bounds import Count, Natural, NonNegative, Seed, Share
from jax3d.data import prop_fields, prop_shapes, props
from jax3d.models import props_latents, props_native
from jax3d.models.props_latents import Codec, Features
from jax3d.nn.props_flow import FlowConfig
from jax3d.train import loop
from jax3d.types import Params

SHAPES = tuple((name, a) for name, (_, have) in prop_shapes.BUILDERS.items() for a in have)
"""Every (class, attribute) of the world, in a fixed order."""


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
    """Which objects the bank holds."""

    each: Count = 40
    """Objects of each of `SHAPES`, which take turns."""
    seed: Seed = 11
    survey: Count = 8
    """Objects of each in which is looked for the features that vary."""
    threshold: NonNegative = 8 / 255
    """Standard deviation of a share of a label from which it is kept."""


@dataclasses.dataclass(frozen=True)
class NativeTraining:
    """A recipe: `configs/native_cpu.py` holds the shipped one."""

    network: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    shapes: ShapesConfig = dataclasses.field(default_factory=ShapesConfig)
    fit: Count = 24
    """Objects of each shape that the codec is fitted to."""
    components: Count = 192
    label_weight: NonNegative = 0.3
    """Of labels beside distances in the components."""
    steps: Count = 3600
    batch: Count = 256
    lr: NonNegative = 1e-3
    warmup: Natural = 200
    decay: Share = 0.4
    """Share of the steps, at the end, over which the rate falls to zero."""
    ema: Share = 0.999
    paint_weight: NonNegative = 8.0
    """Of an error in the paints, nine numbers that a caption settles, beside one in a component."""
    drop_text: Share = 0.12
    unsaid_color: Share = 0.1
    """Share of captions that leave the colour out; what else is not said is not there."""
    start_from: Path | None = None
    """Weights to begin with, fitted to the same codec, under a fresh optimiser."""
    seed: Seed = 0
    save_every: Count = 500


class Told(NamedTuple):
    """What the captions of each shape S in each colour C are; constants of the world."""

    allowed: Float[np.ndarray, "S C"]
    """1 where a combination is not held out."""
    ids: Int[np.ndarray, "S C W L"]
    """Word ids of the captions that say all but for the last, which leaves the colour out."""
    paints: Float[np.ndarray, "C 9"]
    """As latents."""


_WORDINGS = (0, 1, 2, 3, 5)


def told() -> Told:
    """The captions and paints of the world."""
    index = {spec: k for k, spec in enumerate(props.specs())}
    specs = [[props.Spec(name, color, a) for color in props.COLORS] for name, a in SHAPES]
    allowed = np.array([[not props.is_held_out(s) for s in row] for row in specs], np.float32)
    rows = np.array([[index[s] for s in row] for row in specs])
    paints = np.stack([prop_fields.paints(color) for color in props.COLORS])
    ids = props.caption_table()[rows][:, :, list(_WORDINGS)]
    return Told(allowed, ids, np.asarray(props_latents.paint_latents(paints)))


def make(config: NativeTraining):
    """The pure pieces of the training: `(init() -> state, step(state, latents, spread) -> ...)`.

    `step` returns `(state, loss)`; `latents` `[n, components]` are of shapes in turn.
    """
    fall = optax.schedules.linear_schedule(config.lr, 0.0, loop.falling(config))
    adam = loop.optimizer(config, fall)
    world = told()

    def init() -> loop.TrainState:
        key = jax.random.key(config.seed)
        return loop.start(props_native.init(key, config.network, config.components), adam)

    def of_batch(params: Params, key, latents, spread):
        return loss(params, config, world, key, latents, spread)

    return init, loop.stepper(of_batch, adam, config)


def loss(
    params: Params,
    config: NativeTraining,
    world: Told,
    key,
    latents: Float[Array, "n d"],
    spread: Float[Array, " e"],
) -> Float[Array, ""]:
    """The flow's error on a batch drawn by `key`: of the clean latents, by time."""
    k_row, k_color, k_wording, k_text, k_time, k_noise = jax.random.split(key, 6)
    b = config.batch
    row = jax.random.randint(k_row, (b,), 0, latents.shape[0])
    shape = row % len(SHAPES)
    color = jax.random.categorical(k_color, jnp.log(jnp.asarray(world.allowed)[shape]))
    z = jnp.concatenate([latents[row], jnp.asarray(world.paints)[color]], -1)
    full = (1.0 - config.unsaid_color) / (len(_WORDINGS) - 1)
    shares = jnp.array([full] * (len(_WORDINGS) - 1) + [config.unsaid_color])
    wording = jax.random.choice(k_wording, len(_WORDINGS), (b,), p=shares)
    ids = jnp.asarray(world.ids)[shape, color, wording]
    kept = jax.random.uniform(k_text, (b,)) >= config.drop_text
    asked = props_native.gist(props_native.embed(params["words"], jnp.where(kept[:, None], ids, 0)))
    t = (jnp.arange(b) + jax.random.uniform(k_time)) / b
    noise = jax.random.normal(k_noise, z.shape)
    return flow_error(params, config.network, spread, z, t, noise, asked, config.paint_weight)


def flow_error(
    params: Params,
    network: FlowConfig,
    spread: Float[Array, " e"],
    z: Float[Array, "*b e"],
    t: Float[Array, "*b"],
    noise: Float[Array, "*b e"],
    told: Float[Array, "*b w"],
    paint_weight: float,
) -> Float[Array, ""]:
    """How far the flow is from clean latents `z` at times `t`, an error of the paints weighted."""
    z_t = (1.0 - t)[..., None] * z + t[..., None] * noise
    x0 = props_native.predict(params["flow"], network, spread, z_t, t, told)
    components = z.shape[-1] - props_latents.PAINT_NUMBERS
    weight = jnp.where(jnp.arange(z.shape[-1]) < components, 1.0, paint_weight)
    # Divided by t^2 this is the velocity's error; the floor spares the steps without noise.
    return jnp.mean(weight * (x0 - z) ** 2 / (t**2 + 0.05)[..., None])


def open_shapes(folder: Path, config: ShapesConfig, report: Callable[[str], None]) -> Features:
    """The bank of `config`, made in `folder` unless it is there already; a pure function of it.

    Raises:
      ValueError: The folder holds a bank of another config.
    """
    wanted, described = dataclasses.asdict(config), folder / "shapes.json"
    if described.exists():
        found = json.loads(described.read_text())
        if found != wanted:
            raise ValueError(
                f"{folder} holds the shapes {found}, not {wanted}: "
                "choose another folder or delete it"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _make_shapes(folder, config, report)
        described.write_text(json.dumps(wanted))
    return Features(np.load(folder / "shapes.npy", mmap_mode="r"), np.load(folder / "cells.npy"))


def _make_shapes(folder: Path, config: ShapesConfig, report: Callable[[str], None]) -> None:
    count = config.each * len(SHAPES)
    flatten = jax.jit(
        lambda scene, labels: props_latents.flatten(*prop_fields.describe(scene, labels))
    )
    objects = prop_fields.build(list(SHAPES) * config.each, config.seed)

    def grids(first: int, last: int):
        for n in range(first, last):
            if n % len(SHAPES) == 0:
                report(f"shapes: {n} of {count}")
            yield np.asarray(flatten(*jax.tree.map(lambda leaf, n=n: leaf[n], objects)))

    surveyed = min(config.survey, config.each) * len(SHAPES)
    head = np.stack(list(grids(0, surveyed)))
    cells = props_latents.choose_cells(head, config.threshold)
    np.save(folder / "cells.npy", cells)
    shape = (count, len(cells))
    values = np.lib.format.open_memmap(folder / "shapes.npy", "w+", np.uint8, shape)
    values[:surveyed] = head[:, cells]
    for n, grid in enumerate(grids(surveyed, count), surveyed):
        values[n] = grid[cells]
    values.flush()


def open_codec(folder: Path, config: NativeTraining, features: Features, report) -> Codec:
    """The codec of the config, fitted unless `folder` has it."""
    path = folder / "codec.safetensors"
    if path.exists():
        like = props_native.codec_like(config.components, len(features.cells))
        return weights.load_tree(path, like)
    report(f"fitting {config.components} components")
    some = Features(features.values[: config.fit * len(SHAPES)], features.cells)
    codec = props_latents.fit(some, config.components, config.label_weight)
    weights.save_safetensors(codec, path)
    return codec


def latents(codec: Codec, features: Features) -> Float[np.ndarray, "n d"]:
    """Every object's components, without paints."""
    encode = jax.jit(props_latents.encode_shape)
    chunks = range(0, len(features.values), len(SHAPES))
    return np.concatenate(
        [np.asarray(encode(codec, features.values[k : k + len(SHAPES)])) for k in chunks]
    )


def _given(path: Path, codec: Codec) -> Params:
    """The network of a weight file, which must have the same codec."""
    found = props_native.load(path)
    theirs = found.pop("codec")
    if theirs.basis.shape != codec.basis.shape or np.any(theirs.basis != codec.basis):
        raise ValueError(
            f"{path} was trained on latents of another codec; start from weights of "
            "the same shapes, fit, components and label_weight"
        )
    return found


def train(config: NativeTraining, folder: Path, report: Callable[[str], None] = print) -> Path:
    """Trains the generator and returns the path of its weights.

    `folder` holds the shapes, the codec, the checkpoint (from which a second call goes on) and the
    weights (`native.safetensors`), written with every checkpoint.
    """
    folder = Path(folder)
    features = open_shapes(folder, config.shapes, report)
    codec = open_codec(folder, config, features, report)
    z, spread = jnp.asarray(latents(codec, features)), props_native.spreads(codec)
    init, step = make(config)
    state = loop.resumed(folder, jax.eval_shape(init), report)
    if state is None:
        state = jax.jit(init)()
        if config.start_from is not None:
            state = loop.starting_from(state, _given(config.start_from, codec))
    path = folder / "native.safetensors"
    loop.run(
        step,
        state,
        itertools.repeat((z, spread), config.steps - int(state.step)),
        config,
        folder,
        lambda params: props_native.save(path, {**params, "codec": codec}, config.network),
        report,
    )
    return path
