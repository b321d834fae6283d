"""Training of the embedded critic (`jax3d train prior`).

Every batch mixes turntable views, whose camera or view word is told, with front-heavy "photographs"
of which no view is told; text is dropped independently of both, so one set of weights serves all
three modes and classifier-free guidance. The learning rate warms up, stays, and decays to zero
over the last part, so a run can be prolonged from any checkpoint before its decay.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax3d import diffusion
from jax3d.bounds import Count, Natural, NonNegative, Positive, Range, Seed, Share
from jax3d.data import prop_bank, props
from jax3d.data.prop_bank import BankConfig
from jax3d.nn.props_unet import UNetConfig
from jax3d.priors import embedded as critic
from jax3d.train import loop
from jax3d.types import Camera, Key


@dataclasses.dataclass(frozen=True)
class PriorTraining:
    """A recipe: `configs/prior_cpu.py` and `configs/prior_gpu.py` hold two."""

    network: UNetConfig = dataclasses.field(default_factory=UNetConfig)
    turntable: BankConfig = dataclasses.field(default_factory=lambda: BankConfig(60_000, seed=1))
    photographs: BankConfig = dataclasses.field(
        default_factory=lambda: BankConfig(12_000, seed=2, front_heavy=True)
    )
    steps: Count = 7800
    batch: Count = 32
    photograph_share: Share = 0.0625
    lr: NonNegative = 1e-3
    warmup: Natural = 200
    decay: Share = 0.25
    """Share of the steps, at the end, over which the rate falls to zero."""
    ema: Annotated[float, Range(0, below=1)] = 0.998
    time_power: Positive = 0.3
    """Timesteps are T u^time_power for uniform u: below 1 it favours noisy ones, where shape and
    view are decided."""
    drop_text: Share = 0.12
    tell_camera: Share = 0.85
    """Share of turntable views whose camera is told; the others are told a view word."""
    tell_both: Share = 0.3
    """Share of views with a camera that are told the view word as well."""
    short_captions: Share = 0.2
    """Share of captions that leave something out."""
    start_from: Path | None = None
    """Weights to begin with, such as the shipped ones, under a fresh optimiser."""
    seed: Seed = 0
    save_every: Count = 500

    def mistake(self) -> str | None:
        """What does not fit together, for `bounds.check`."""
        if self.warmup > self.steps - int(self.decay * self.steps):
            return f"warmup is {self.warmup}; it must end before the decay begins"
        return None


def make(config: PriorTraining):
    """The pure pieces of the training: `(init() -> state, step(state, *batch) -> (state, loss))`.

    `batch` is `(rgba u8[b, S, S, 4], spec[b], Camera[b], photograph bool[b])`.
    """
    fall = optax.schedules.linear_schedule(config.lr, 0.0, loop.falling(config))
    adam = loop.optimizer(config, fall)
    captions = jnp.asarray(props.caption_table())
    alphas_cumprod = diffusion.cosine()

    def init() -> loop.TrainState:
        return loop.start(critic.init(jax.random.key(config.seed), config.network), adam)

    def loss(params, key, rgba, spec, camera, photograph):
        k_text, k_view, k_ground, k_time, k_noise, k_order = jax.random.split(key, 6)
        ids = captions[spec, prop_bank.draw_wordings(k_text, spec.shape[0], config.short_captions)]
        ids, camera_known = _tell(k_view, config, ids, camera, photograph)
        words = params["words"]["embedding"][ids] * (ids > 0)[..., None]
        z = 2.0 * prop_bank.over_random_ground(k_ground, rgba) - 1.0
        b = z.shape[0]
        spread = (jnp.arange(b) + jax.random.uniform(k_time)) / b
        t = jnp.floor(spread**config.time_power * alphas_cumprod.shape[0]).astype(jnp.int32)
        t = jax.random.permutation(k_order, t)
        noise = jax.random.normal(k_noise, z.shape)
        z_t = diffusion.q_sample(alphas_cumprod, z, t, noise)
        x0 = critic.predict_x0(
            params, config.network, z_t, t.astype(jnp.float32), words, camera, camera_known
        )
        # Divided by sigma^2 this is the loss of v-prediction; the floor spares the steps without
        # noise, where it would blow up.
        variance = jnp.maximum(1.0 - alphas_cumprod[t], 0.1)[:, None, None, None]
        return jnp.mean((x0 - z) ** 2 / variance)

    return init, loop.stepper(loss, adam, config)


def _tell(key: Key, config: PriorTraining, ids, camera: Camera, photograph):
    """Adds view words, drops texts; returns the ids and whose camera is told."""
    b = ids.shape[0]
    k_camera, k_both, k_text = jax.random.split(key, 3)
    known = (jax.random.uniform(k_camera, (b,)) < config.tell_camera) & ~photograph
    worded = (~known | (jax.random.uniform(k_both, (b,)) < config.tell_both)) & ~photograph
    first = len(props.vocabulary()) - len(props.VIEW_WORDS) + 1
    word = first + props.view_word(camera.azimuth, camera.elevation)
    end = jnp.sum(ids > 0, -1, keepdims=True) == jnp.arange(ids.shape[1])
    ids = jnp.where(end & worded[:, None], word[:, None], ids)
    kept = jax.random.uniform(k_text, (b,)) >= config.drop_text
    return jnp.where(kept[:, None], ids, 0), known


def batches(config: PriorTraining, folder: Path, first: int, report: Callable[[str], None]):
    """Yields the batches of steps `first`, `first + 1`, ...: a pure function of the step."""

    def progress(name, bank):
        return lambda done: report(f"rendering {name}: {done} of {bank.images} images")

    turntable, photographs = (
        prop_bank.open_bank(folder / name, bank, progress(name, bank))
        for name, bank in (("turntable", config.turntable), ("photographs", config.photographs))
    )
    few = round(config.photograph_share * config.batch)
    photograph = np.arange(config.batch) < few
    for step in range(first, config.steps):
        rng = np.random.default_rng((config.seed, step))
        rows = [
            (bank, np.sort(rng.integers(len(bank.images), size=n)))
            for bank, n in ((photographs, few), (turntable, config.batch - few))
        ]
        rgba = np.concatenate([bank.images[i] for bank, i in rows])
        spec = np.concatenate([bank.spec[i] for bank, i in rows])
        camera = jax.tree.map(
            lambda *leaves: np.concatenate(leaves),
            *[jax.tree.map(lambda x, i=i: x[i], bank.camera) for bank, i in rows],
        )
        yield rgba, spec, camera, photograph


def train(config: PriorTraining, folder: Path, report: Callable[[str], None] = print) -> Path:
    """Trains the critic and returns the path of its weights.

    `folder` holds the rendered banks, the checkpoint (from which a second call goes on) and the
    weights (`props.safetensors`), written with every checkpoint. All devices share each batch,
    whose size must divide by their number.
    """
    folder = Path(folder)
    init, step = make(config)
    state = loop.resumed(folder, jax.eval_shape(init), report)
    if state is None:
        state = jax.jit(init)()
        if config.start_from is not None:
            state = loop.starting_from(state, critic.load(config.start_from))
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    shares = NamedSharding(mesh, PartitionSpec("batch"))
    found = batches(config, folder, int(state.step), report)
    path = folder / "props.safetensors"
    loop.run(
        step,
        state,
        (jax.device_put(batch, shares) for batch in found),
        config,
        folder,
        lambda params: critic.save(path, params, config.network),
        report,
    )
    return path
