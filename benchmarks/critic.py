"""The embedded critic's report card: class, colour and view of its samples, in its three modes.

    python benchmarks/critic.py [--json FILE] [--grid docs/critic_samples.png]

Samples are drawn for training and for held-out combinations apart, and judged by the scorer beside
ground-truth renders of the same objects from the same cameras.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jax3d import camera, image, prompts
from jax3d.data import prop_bank, prop_shapes, props
from jax3d.metrics import scorer
from jax3d.priors import embedded, sampling
from jax3d.types import Camera, Prompt


@dataclasses.dataclass(frozen=True)
class Args:
    """Options."""

    prior: Path = embedded.WEIGHTS
    json: Path | None = None
    grid: Path | None = None
    """Where to draw one row a class, one column a view, in camera mode."""
    per_class: int = 2
    """Objects a class, of training and of held-out combinations each."""
    steps: int = 30
    guidance_scale: float = 3.0


def choose(held_out: bool, per_class: int) -> list[props.Spec]:
    """The same number of combinations of each class, spread over its colours."""
    chosen = []
    for name in props.CLASSES:
        pool = [s for s in props.specs() if s.name == name and props.is_held_out(s) == held_out]
        chosen += [pool[k * len(pool) // per_class] for k in range(min(per_class, len(pool)))]
    return chosen


def view_accuracy(seen: np.ndarray, around: Camera, specs: list[props.Spec]) -> float:
    """Share of pictures whose azimuth lies in the quarter that the view's word names."""
    word = np.asarray(jnp.argmax(prompts.hard_weights(around), -1))
    guess = dataclasses.replace(around, azimuth=jnp.asarray(seen), elevation=0.0 * seen)
    guessed = np.asarray(jnp.argmax(prompts.hard_weights(guess), -1))
    front = np.array([s.name not in prop_shapes.FRONTLESS for s in specs])
    return float(np.mean((guessed == word)[front]))


def figures(judge, pictures: np.ndarray, around: Camera, specs: list[props.Spec]) -> dict:
    """The scorer's figures of `[n, v, H, W, 3]`."""
    n, v = pictures.shape[:2]
    each = [s for s in specs for _ in range(v)]
    names = [s.name for s in each]
    flat = pictures.reshape(n * v, *pictures.shape[2:])
    verdict = scorer.judge(judge, flat, ["a chair"], names)
    cameras = jax.tree.map(lambda x: jnp.tile(x, (n,) + (1,) * (x.ndim - 1)), around)
    found = scorer.scores(verdict, np.zeros(n * v, int), each, np.asarray(cameras.azimuth))
    return {
        "class": found.name,
        "colour": found.color,
        "azimuth": found.azimuth,
        "view word": view_accuracy(verdict.azimuth, cameras, each),
    }


def main(args: Args) -> None:
    """Prints the card."""
    critic, judge = embedded.open(args.prior), scorer.load()
    around = camera.around(8, 15.0)
    card, table = {}, Table("objects", "asked by", "class", "colour", "azimuth", "view word")
    for label, held_out in (("training", False), ("held out", True)):
        specs = choose(held_out, args.per_class)
        rows = {"ground truth": prop_bank.ground_truth(specs, 900, around, embedded.SIZE)}
        for mode in ("camera", "words", "text"):
            sample = sampling.sampler(critic, mode, args.guidance_scale, args.steps)
            keys = jax.random.split(jax.random.key(0), len(specs))
            rows[mode] = np.stack(
                [
                    sample(k, Prompt(props.caption(s)), around)
                    for k, s in zip(keys, specs, strict=True)
                ]
            )
        for name, pictures in rows.items():
            card[f"{label}, {name}"] = found = figures(judge, pictures, around, specs)
            table.add_row(label, name, *(f"{x:.2f}" for x in found.values()))
        if args.grid and held_out:
            names = [s.name for s in specs]
            first = rows["camera"][[names.index(name) for name in props.CLASSES]]
            image.write_png(args.grid, image.contact_sheet(first.reshape(-1, 64, 64, 3), 16))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
