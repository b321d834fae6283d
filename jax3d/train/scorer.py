"""Training of the scorer (`jax3d train scorer`).

Pictures and captions of a batch are matched by a contrastive loss in which a caption belongs to
every picture that it is true of ("a chair" to all chairs); the azimuth head learns by
cross-entropy on the classes that have a front. Pictures are blurred, tinted and made noisy, since
the scorer has to judge renders of optimised assets too.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax3d import strict_json, weights
from jax3d.bounds import Count, NonNegative, Seed, Share
from jax3d.data import prop_bank, prop_shapes, props
from jax3d.metrics import scorer
from jax3d.nn.props_scorer import Scorer, ScorerConfig
from jax3d.types import Key


@dataclasses.dataclass(frozen=True)
class ScorerTraining:
    """The recipe of the shipped scorer."""

    renders: prop_bank.BankConfig = dataclasses.field(
        default_factory=lambda: prop_bank.BankConfig(36_000, seed=11)
    )
    held_out: prop_bank.BankConfig = dataclasses.field(
        default_factory=lambda: prop_bank.BankConfig(2_400, seed=12, held_out=True)
    )
    """Ground truth of its report card: objects, combinations and cameras it never saw."""
    steps: Count = 2400
    batch: Count = 64
    lr: NonNegative = 1e-3
    short_captions: Share = 0.4
    seed: Seed = 7


def make(config: ScorerTraining):
    """The pure pieces: `(init() -> state, step(state, k, batch) -> (state, losses))`.

    `batch` is `(rgba u8[b, S, S, 4], spec[b], azimuth[b])`; state is `(params, opt_state)`.
    """
    net = ScorerConfig()
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        0.0, config.lr, min(100, config.steps // 10), config.steps
    )
    optimizer = optax.adamw(schedule, weight_decay=0.02)
    captions = jnp.asarray(props.caption_table())
    frontless = jnp.array([s.name in prop_shapes.FRONTLESS for s in props.specs()])

    def init():
        params = scorer.init(jax.random.key(config.seed), net)
        return params, optimizer.init(params)

    def loss(params, key, rgba, spec, azimuth):
        k_text, k_look = jax.random.split(key)
        wording = prop_bank.draw_wordings(k_text, len(spec), config.short_captions)
        ids = captions[spec, wording]
        logits, bins = Scorer(net).apply({"params": params}, _disturb(k_look, rgba), ids)
        true = _is_true(ids, captions[spec, 0])
        both = _match(logits, true.T) + _match(logits.T, true)
        turn = optax.losses.softmax_cross_entropy(bins, _near(azimuth, net.azimuth_bins))
        return both + jnp.mean(jnp.where(frontless[spec], 0.0, turn)), (both, turn)

    def step(state, k, batch):
        params, opt_state = state
        key = jax.random.fold_in(jax.random.key(config.seed + 1), k)
        (_, parts), grad = jax.value_and_grad(loss, has_aux=True)(params, key, *batch)
        updates, opt_state = optimizer.update(grad, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), jax.tree.map(jnp.mean, parts)

    return init, step


def _near(azimuth, bins: int):
    """[b, bins] target that falls off over the neighbouring bins, so near misses teach too."""
    centers = 2 * jnp.pi * jnp.arange(bins) / bins
    return jax.nn.softmax(12.0 * jnp.cos(azimuth[:, None] - centers))


def _is_true(ids, full):
    """[texts, pictures] whether every word of a caption is among the picture's words."""
    said = (ids[:, None, :, None] == full[None, :, None, :]).any(-1)
    return (said | (ids == 0)[:, None, :]).all(-1)


def _match(logits, true):
    """Cross-entropy of rows against the set of true columns."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jax.nn.logsumexp(jnp.where(true, log_p, -1e9), axis=-1))


def _disturb(key: Key, rgba):
    """Random ground, blur, tint and noise."""
    k_ground, k_blur, k_tint, k_sigma, k_noise = jax.random.split(key, 5)
    rgb = prop_bank.over_random_ground(k_ground, rgba)
    per_image = (len(rgb), 1, 1, 1)
    small = jax.image.resize(rgb, (len(rgb), 24, 24, 3), "linear")
    blurred = jax.image.resize(small, rgb.shape, "linear")
    mix = jnp.maximum(jax.random.uniform(k_blur, per_image, minval=-0.8, maxval=0.8), 0.0)
    rgb = rgb + mix * (blurred - rgb)
    rgb = rgb * jax.random.uniform(k_tint, (len(rgb), 1, 1, 3), minval=0.85, maxval=1.1)
    sigma = jax.random.uniform(k_sigma, per_image, maxval=0.08)
    return jnp.clip(rgb + sigma * jax.random.normal(k_noise, rgb.shape), 0.0, 1.0)


def evaluate(params, bank: prop_bank.Bank) -> dict:
    """The report card on a bank of ground truth, over a white ground."""
    specs = props.specs()
    captions = sorted({int(i) for i in bank.spec})
    texts = [props.caption(specs[i]) for i in captions]
    shown = [specs[i] for i in bank.spec]
    rgba = np.asarray(bank.images, np.float32) / 255.0
    rgb = rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:]
    verdict = scorer.judge(params, rgb, texts, [s.name for s in shown])
    own = np.array([captions.index(int(i)) for i in bank.spec])
    result = scorer.scores(verdict, own, shown, bank.camera.azimuth)
    return {"pictures": len(own), "captions": len(captions), **result._asdict()}


def train(config: ScorerTraining, folder: Path, report: Callable[[str], None] = print) -> Path:
    """Trains the scorer and returns the path of its weights; the report card lies beside them."""
    folder = Path(folder)
    bank, held_out = (
        prop_bank.open_bank(
            folder / name, c, lambda done, c=c: report(f"rendering {done} of {c.images} images")
        )
        for name, c in (("renders", config.renders), ("held_out", config.held_out))
    )
    init, step = make(config)
    state, step = init(), jax.jit(step, donate_argnums=0)
    for k in range(config.steps):
        rng = np.random.default_rng((config.seed, k))
        i = np.sort(rng.integers(len(bank.images), size=config.batch))
        state, losses = step(state, k, (bank.images[i], bank.spec[i], bank.camera.azimuth[i]))
        if (k + 1) % 100 == 0:
            match, turn = (float(part) for part in losses)
            report(f"step {k + 1} of {config.steps}: match {match:.3f}, azimuth {turn:.3f}")
    path = folder / "scorer.safetensors"
    weights.save_safetensors(state[0], path, dtype=np.float16)
    card = evaluate(state[0], held_out)
    report(str(card))
    path.with_suffix(".json").write_text(strict_json.dumps(card) + "\n")
    return path
