"""How near does a picture's asset come to its object? Beside the words alone and a search.

    python benchmarks/reconstruct.py [--weights FILE] [--run DIR] [--json FILE] [--sheet FILE]

Every held-out combination of the prop world, with proportions that no training saw, from one
picture by a camera that nobody is told. Rows: the true object through the latents (what the decoder
loses); the nearest training picture's object (`--run`, a folder of `jax3d train lrm`); the caption
alone, by the native generator; the reconstructor in one step (the mean of what it deems possible),
sampled, and told the caption too. Figures: intersection over union on 64^3 points, Chamfer distance
(mean of both ways, metres), F-score at 2% of the cube's side, PSNR of four unseen views by one
renderer, and the correlation of the box's sides with the truth's, beyond what the class tells.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from native import draw as draw_native
from native import encoded, held_out
from rich.console import Console
from rich.table import Table
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from jax3d import camera, image
from jax3d.data import prop_bank, prop_fields, props
from jax3d.knobs import KnobValues
from jax3d.models import props_latents, props_lrm, props_native
from jax3d.render import sdf
from jax3d.types import Look, Prompt

SEED = 900
"""Of the true objects' proportions."""
POINTS, SHARE = 4000, 0.02
"""On each surface; the F-score's distance, of the cube's side."""
FIGURES = ("iou", "chamfer", "f_score", "psnr", "proportions")


@dataclasses.dataclass(frozen=True)
class Args:
    """Options."""

    weights: Path = props_lrm.WEIGHTS
    steps: int = props_lrm.STEPS
    every: int = 1
    """Of the held-out combinations, every so manyth."""
    run: Path | None = None
    json: Path | None = None
    sheet: Path | None = None
    """Where to draw a row of an object: its picture, and four views of the asset and of it."""


def truths(specs: list[props.Spec]) -> dict[str, np.ndarray]:
    """The objects' own grids, at the decoder's points: `sdf` metres, `rgb` logits."""
    scenes = props.build(specs, SEED)
    r = props_latents.RESOLUTION
    axis = np.linspace(-prop_fields.HALF, prop_fields.HALF, r, dtype=np.float32)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3))

    @jax.jit
    def describe(scene):
        d = sdf.distance(scene, x)
        near = x - d[:, None] * sdf.normal(scene, x)
        rgb = jnp.clip(sdf.albedo(scene, near), 5e-3, 1 - 5e-3)
        return d.reshape(r, r, r), (jnp.log(rgb) - jnp.log1p(-rgb)).reshape(r, r, r, 3)

    each = [jax.tree.map(lambda leaf, k=k: leaf[k], scenes) for k in range(len(specs))]
    found = [jax.tree.map(np.asarray, describe(scene)) for scene in each]
    return {"sdf": np.stack([d for d, _ in found]), "rgb": np.stack([c for _, c in found])}


def pictures(specs: list[props.Spec]) -> np.ndarray:
    """One picture of each true object, `[n, S, S, 4]`, from all around and as photographs are."""
    return prop_bank.draw(jax.random.key(SEED), props.build(specs, SEED), 96) / np.float32(255)


def reconstruct(model, shown: np.ndarray, captions: list[str]) -> np.ndarray:
    """Latents `[n, d]` of pictures, all in one program."""
    asked = [
        model.condition(Prompt(text, image=picture))
        for text, picture in zip(captions, shown, strict=True)
    ]
    knobs = [KnobValues().traced(k, 1) for k in range(len(shown))]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def sample(params, asked, knobs):
        z = model.begin(jax.random.key(knobs.seed), asked)
        take = lambda i, z: model.advance(params, z, i, asked, knobs)  # noqa: E731
        return jax.lax.fori_loop(0, model.steps, take, z).z

    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # noqa: E731
    return np.asarray(sample(model.params, stack(asked), stack(knobs)))


def found_by_search(run: Path, shown: np.ndarray) -> np.ndarray:
    """Latents of the training pictures that are nearest, framed and reduced to 16 pixels."""
    spec = np.load(run / "labels.npz")["spec"]
    boxes = np.load(run / "labels.npz")["boxes"]
    bank, latents = np.load(run / "pictures.npy", mmap_mode="r"), np.load(run / "latents.npy")

    @jax.jit
    def small(rgba, box):
        seen = props_lrm.frame(rgba.astype(jnp.float32) / 255.0, box)
        return seen.reshape(16, 4, 16, 4, 4).mean((1, 3)).reshape(-1)

    known = np.stack([np.asarray(small(p, b)) for p, b in zip(bank, boxes, strict=True)])
    asked = np.stack([props_lrm.prepare(p) for p in shown])
    asked = asked.reshape(len(shown), 16, 4, 16, 4, 4).mean((2, 4)).reshape(len(shown), -1)
    rows = np.array([((known - a) ** 2).sum(-1).argmin() for a in asked])
    paints = [prop_fields.paints(props.specs()[k].color) for k in spec[rows]]
    return np.concatenate(
        [latents[rows % len(latents)], props_latents.paint_latents(np.stack(paints))], -1
    )


def surface(distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points spread evenly over the zero level, metres; empty where there is none."""
    if distance.min() >= 0 or distance.max() <= 0:
        return np.zeros((0, 3))
    spacing = (2 * prop_fields.HALF / (len(distance) - 1),) * 3
    vertices, faces, *_ = marching_cubes(distance, 0.0, spacing=spacing)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = rng.choice(len(faces), POINTS, p=area / area.sum())
    u, v = np.sqrt(rng.random(POINTS)), rng.random(POINTS)
    weights = np.stack([1 - u, u * (1 - v), u * v])[..., None]
    return weights[0] * a[chosen] + weights[1] * b[chosen] + weights[2] * c[chosen]


def compare(made: np.ndarray, true: np.ndarray, k: int) -> tuple[float, float, float]:
    """IoU, Chamfer distance and F-score of two grids of distances."""
    inside, truly = made < 0, true < 0
    iou = (inside & truly).sum() / max((inside | truly).sum(), 1)
    a, b = (surface(d, np.random.default_rng(k)) for d in (made, true))
    if not len(a):
        return float(iou), 2 * prop_fields.HALF, 0.0
    there, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
    near = SHARE * 2 * prop_fields.HALF
    precision, recall = (there < near).mean(), (back < near).mean()
    f = 2 * precision * recall / max(precision + recall, 1e-9)
    return float(iou), float((there.mean() + back.mean()) / 2), float(f)


def sides(distance: np.ndarray) -> np.ndarray:
    """The box's sides, metres."""
    if distance.min() >= 0 or distance.max() <= 0:
        return np.zeros(3)
    spacing = 2 * prop_fields.HALF / (len(distance) - 1)
    return spacing * np.ptp(marching_cubes(distance, 0.0)[0], axis=0)


def proportions(made: np.ndarray, true: np.ndarray, specs: list[props.Spec]) -> float:
    """Correlation of boxes' sides with the truth's, each less the true mean of its class."""
    mine, theirs = (np.stack([sides(d) for d in grids]) for grids in (made, true))
    names = np.array([s.name for s in specs])
    for name in set(names):
        mean = theirs[names == name].mean(0)
        mine[names == name] -= mean
        theirs[names == name] -= mean
    return float(np.corrcoef(mine.ravel(), theirs.ravel())[0, 1])


def rows_of(args: Args, model, specs: list[props.Spec], shown: np.ndarray) -> dict[str, np.ndarray]:
    """The latents of each row of the table."""
    captions, silent = [props.caption(s) for s in specs], [""] * len(specs)
    rows = {"the true object through the latents": encoded(model.params["codec"], specs, SEED)}
    if args.run:
        rows["the nearest training picture's"] = found_by_search(args.run, shown)
    rows["the caption alone"] = draw_native(props_native.open_model(), specs, 1.0, SEED)
    one_step = props_lrm.open_model(args.weights, 1)
    rows["the picture, in one step"] = reconstruct(one_step, shown, silent)
    rows["the picture"] = reconstruct(model, shown, silent)
    rows["the picture and the caption"] = reconstruct(model, shown, captions)
    return rows


def figures_of(fields: list, seen: list, true: dict, truly: list, specs: list[props.Spec]) -> dict:
    """A row of the table, by `FIGURES`."""
    made = np.stack([field["sdf"] for field in fields])
    shapes = [compare(d, t, k) for k, (d, t) in enumerate(zip(made, true["sdf"], strict=True))]
    errors = [np.mean((a - b) ** 2) for a, b in zip(seen, truly, strict=True)]
    psnr = np.mean(-10 * np.log10(np.maximum(errors, 1e-9)))
    values = [*np.mean(shapes, 0), psnr, proportions(made, true["sdf"], specs)]
    return dict(zip(FIGURES, map(float, values), strict=True))


def main(args: Args) -> None:
    """Prints the table."""
    model, specs, console = (
        props_lrm.open_model(args.weights, args.steps),
        held_out(args.every),
        Console(),
    )
    shown, true = pictures(specs), truths(specs)
    around = jax.jit(lambda: camera.around(4, 20.0))()

    @jax.jit
    def render(field):
        size = (props_lrm.SIZE,) * 2
        return model.representation.render(field, None, around, Look.albedo(), size).over(1.0)

    decode = jax.jit(functools.partial(props_latents.decode, model.params["codec"]))
    truly = [np.asarray(render(jax.tree.map(lambda x, k=k: x[k], true))) for k in range(len(specs))]
    card, table = {}, Table("", *FIGURES)
    for name, latents in rows_of(args, model, specs, shown).items():
        fields = [jax.tree.map(np.asarray, decode(z)) for z in latents]
        seen = [np.asarray(render(field)) for field in fields]
        card[name] = figures_of(fields, seen, true, truly, specs)
        table.add_row(name, *(f"{card[name][f]:.3f}" for f in FIGURES))
        if args.sheet and name == "the picture":
            rows = {s.name: k for k, s in reversed([*enumerate(specs)])}.values()
            framed = [props_lrm.prepare(shown[k])[..., :3] for k in rows]
            strips = [
                np.concatenate([picture[None], seen[k], truly[k]])
                for picture, k in zip(framed, rows, strict=True)
            ]
            sheet = image.contact_sheet(np.concatenate(strips), 18)
            image.write_png(args.sheet, sheet)
    console.print(table)
    console.print(f"{len(specs)} objects")
    if args.json:
        args.json.write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
