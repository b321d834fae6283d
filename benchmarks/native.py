"""How good is the native generator? All held-out combinations, beside the truth and a copy.

    python benchmarks/native.py [--guidance 1 3 4 15] [--run DIR] [--json FILE] [--sheet FILE]

Rows: ground truth; the truth through the latents (what the decoder loses); a training object of the
class and, where one is allowed, the colour (what copying would get); samples by guidance scale. All
are lit alike and judged from the same eight cameras. `--run` is a folder of `jax3d train native`,
whose shapes give the distance to the nearest training latent, beside a fresh draw of the truth's,
and the spread over seeds beside the truth's.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jax3d import camera, image
from jax3d.data import prop_bank, prop_fields, props
from jax3d.knobs import KnobValues
from jax3d.metrics import scorer
from jax3d.models import props_latents, props_native
from jax3d.models.base import Model
from jax3d.models.props_latents import Features
from jax3d.train import native as training
from jax3d.types import Camera, Look, Prompt

SEED = 500
"""Of the ground truth's proportions."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options."""

    weights: Path = props_native.WEIGHTS
    guidance: tuple[float, ...] = (1.0, 3.0, 4.0, 15.0)
    seed: int = 0
    every: int = 1
    """Of the held-out combinations, every so manyth."""
    run: Path | None = None
    json: Path | None = None
    sheet: Path | None = None
    """Where to draw samples at the first guidance scale, four views each."""


def draw(model: Model, specs: list[props.Spec], scale: float, seed: int) -> np.ndarray:
    """A latent for each spec's caption, `[n, d]`; all in one program."""
    asked = KnobValues(model_scale=(scale,))
    knobs = [asked.traced(seed + k, model.steps) for k in range(len(specs))]
    conds = [model.condition(Prompt(props.caption(s))) for s in specs]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def sample(params, cond, knobs):
        z = model.begin(jax.random.key(knobs.seed), cond)

        def take(i, z):
            return model.advance(params, z, i, cond, knobs)

        return jax.lax.fori_loop(0, model.steps, take, z)

    stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *trees) for trees in (conds, knobs)]
    return np.asarray(sample(model.params, *stacked))


def pictures(model: Model, latents: np.ndarray, around: Camera, seed: int) -> np.ndarray:
    """`[n, v, H, W, 3]`, lit as `prop_bank.ground_truth` lights its pictures."""
    n, v = len(latents), len(around.fovy)
    keys = jax.random.split(jax.random.key(seed), n * v).reshape(n, v)

    @jax.jit
    def show(params, z, keys):
        field, look = model.decode(params, z), lights(keys, around)
        size = (scorer.SIZE, scorer.SIZE)
        return model.representation.render(field, None, around, look, size).over(1.0)

    return np.stack(
        [np.asarray(show(model.params, z, k)) for z, k in zip(latents, keys, strict=True)]
    )


def lights(keys, around: Camera) -> Look:
    """Of each view, as in a bank's pictures."""

    def one(key, camera):
        k_light, k_ambient = jax.random.split(key)
        ambient = jax.random.uniform(k_ambient, minval=0.35, maxval=0.6)
        return props.sample_light(k_light, camera), ambient

    light, ambient = jax.vmap(one)(keys, around)
    v = len(around.fovy)
    return Look(background=jnp.ones((v, 3)), ambient=ambient, textureless=jnp.zeros(v), light=light)


def judge(scorer_params, views: np.ndarray, specs: list[props.Spec], around: Camera) -> dict:
    """The scorer's figures of `[n, v, H, W, 3]` against all held-out captions."""
    captions = [props.caption(s) for s in props.specs() if props.is_held_out(s)]
    n, v = views.shape[:2]
    each = [s for s in specs for _ in range(v)]
    flat = views.reshape(n * v, *views.shape[2:])
    verdict = scorer.judge(scorer_params, flat, captions, [s.name for s in each])
    own = np.array([captions.index(props.caption(s)) for s in specs]).repeat(v)
    found = scorer.scores(verdict, own, each, np.tile(np.asarray(around.azimuth), n))
    return found._asdict()


def held_out(every: int) -> list[props.Spec]:
    """The combinations that no training caption named."""
    return [s for s in props.specs() if props.is_held_out(s)][::every]


def encoded(codec, specs: list[props.Spec], seed: int) -> np.ndarray:
    """Fresh objects of the specs through the encoder, `[n, d]`."""
    scene, labels = prop_fields.build([(s.name, s.attribute) for s in specs], seed)

    @jax.jit
    def encode(codec, scene, labels, paint):
        flat = props_latents.flatten(*prop_fields.describe(scene, labels))
        return jnp.concatenate(
            [
                props_latents.encode_shape(codec, flat[codec.cells]),
                props_latents.paint_latents(paint),
            ]
        )

    paints = np.stack([prop_fields.paints(s.color) for s in specs])
    objects = (scene, labels, paints)
    each = [jax.tree.map(lambda leaf, k=k: leaf[k], objects) for k in range(len(specs))]
    return np.stack([np.asarray(encode(codec, *one)) for one in each])


def relatives(specs: list[props.Spec]) -> list[props.Spec]:
    """For each, a training combination of its class, of its colour where there is one."""
    allowed = [s for s in props.specs() if not props.is_held_out(s)]
    found = []
    for spec in specs:
        kin = [s for s in allowed if s.name == spec.name]
        found.append(next((s for s in kin if s.color == spec.color), kin[0]))
    return found


def in_field_units(codec, latents: np.ndarray) -> np.ndarray:
    """Components of which a distance is the root mean square over the features."""
    codec = jax.tree.map(np.asarray, codec)
    length = codec.scale * np.linalg.norm(codec.basis.astype(np.float32), axis=-1)
    shape = latents[:, : len(length)]
    return shape * length / np.sqrt(codec.basis.shape[1])


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of each of `a` to the nearest of `b`."""
    return np.array([np.sqrt(((b - x) ** 2).sum(-1).min()) for x in a])


def variety(draws: np.ndarray) -> float:
    """Mean distance between two of `[seeds, n, d]` of the same prompt."""
    k = len(draws)
    pairs = [(i, j) for i in range(k) for j in range(i)]
    return float(np.mean([np.linalg.norm(draws[i] - draws[j], axis=-1).mean() for i, j in pairs]))


def novelty(model: Model, specs: list[props.Spec], scale: float, run: Path) -> dict:
    """Distance to the nearest training object and spread over seeds, beside the truth's."""
    features = Features(np.load(run / "shapes.npy", mmap_mode="r"), np.load(run / "cells.npy"))
    codec = model.params["codec"]
    trained = in_field_units(codec, training.latents(codec, features))
    few = specs[:: max(1, len(specs) // 24)]
    rows = {
        "samples": np.stack([draw(model, few, scale, 1000 * k) for k in range(4)]),
        "truth": np.stack([encoded(codec, few, SEED + k) for k in range(4)]),
    }
    found = {}
    for name, draws in rows.items():
        flat = np.stack([in_field_units(codec, d) for d in draws])
        found[f"{name}: nearest training object"] = float(nearest(flat[0], trained).mean())
        found[f"{name}: between seeds"] = variety(flat)
    return found


def seconds(model: Model, spec: props.Spec) -> float:
    """CPU seconds of one finished field, compiled."""
    cond, knobs = (
        model.condition(Prompt(props.caption(spec))),
        KnobValues(model_scale=(1.0,)).traced(0, model.steps),
    )

    @jax.jit
    def finish(params, cond, knobs):
        z = model.begin(jax.random.key(knobs.seed), cond)

        def take(i, z):
            return model.advance(params, z, i, cond, knobs)

        return model.decode(params, jax.lax.fori_loop(0, model.steps, take, z))

    jax.block_until_ready(finish(model.params, cond, knobs))
    started = time.process_time()
    for _ in range(8):
        jax.block_until_ready(finish(model.params, cond, knobs))
    return (time.process_time() - started) / 8


def main(args: Args) -> None:
    """Prints the table."""
    model, scorer_params = props_native.open_model(args.weights), scorer.load()
    around, specs, console = camera.around(8, 15.0), held_out(args.every), Console()
    codec = model.params["codec"]
    truth = prop_bank.ground_truth(specs, SEED, around, scorer.SIZE)
    views = {"ground truth": truth}
    latents = {
        "truth through the latents": encoded(codec, specs, SEED),
        "a training object of the class": encoded(codec, relatives(specs), SEED + 1),
    }
    for scale in args.guidance:
        latents[f"samples, guidance {scale:g}"] = draw(model, specs, scale, args.seed)
    for name, z in latents.items():
        views[name] = pictures(model, z, around, SEED)
    card = {name: judge(scorer_params, shown, specs, around) for name, shown in views.items()}
    table = Table("", "R-precision", "class", "colour", "azimuth")
    for name, figures in card.items():
        table.add_row(name, *(f"{x:.3f}" for x in figures.values()))
    console.print(table)
    card["cpu seconds of a field"] = seconds(model, specs[0])
    if args.run:
        card["novelty"] = novelty(model, specs, args.guidance[0], args.run)
    console.print({k: v for k, v in card.items() if k not in views})
    if args.sheet:
        first = views[f"samples, guidance {args.guidance[0]:g}"]
        names = [s.name for s in specs]
        rows = [names.index(name) for name in props.CLASSES if name in names]
        shown = np.concatenate([first[rows][:, ::2], truth[rows][:, ::2]], 1)
        image.write_png(args.sheet, image.contact_sheet(shown.reshape(-1, *shown.shape[2:]), 16))
    if args.json:
        args.json.write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
