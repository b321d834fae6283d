"""Props fitted to their photographs, and Gaussians meshed: how near to views and shapes unseen.

    python benchmarks/fit.py OUT ["a red chair with armrests" ...] [--sizes 64 128] [--steps 1000]

Each prop is photographed from 48 places, and from 8 more that no fit sees; all props are fitted in
one program by `jax3d fit`, with Gaussians and with a triplane, each at each size. PSNR is over
white, the mean over the unseen views; seconds are those of the steps, per scene. The Gaussians of
the largest size are then written as PLY and meshed by `jax3d mesh`; the mesh's distance to the true
surface is the mean of both directions (Chamfer, of 20,000 points each), in percent of the diagonal
of the prop's box, 1.7 m.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import props_photographed as photographed
import tyro
from scipy.spatial import KDTree

from jax3d import cli, folder
from jax3d.data import props
from jax3d.fields import gaussians
from jax3d.image import contact_sheet, write_png
from jax3d.mesh import compare, load_glb, splats
from jax3d.types import Look, Mesh

DIAGONAL = 1.7
POINTS = 20_000
RECIPES = ("fit", "fit_triplane")


@dataclass(frozen=True)
class Args:
    """Options."""

    out: tyro.conf.Positional[Path]
    prompts: tyro.conf.Positional[tuple[str, ...]] = (
        "a red chair with armrests",
        "a blue car",
        "a striped green mug",
    )
    sizes: tuple[int, ...] = (64, 128)
    steps: int = 1000
    seed: int = 3
    """Of the props' proportions."""
    mesh: bool = True
    """Also mesh the Gaussians."""


def fitted(args: Args, recipe: str, size: int) -> list[dict]:
    """The records of all props."""
    out = args.out / f"{recipe}-{size}"
    scenes = [str(args.out / "scenes" / prompt.replace(" ", "-")) for prompt in args.prompts]
    half = args.steps // 2
    sizes = [(half, size // 2), (args.steps - half, size)]
    stages = [
        f"--optimize.stages.{i}.{name}={value}"
        for i, stage in enumerate(sizes)
        for name, value in zip(("steps", "size"), stage, strict=True)
    ]
    small = ["--pictures.frames=0", "--mesh.resolution=48", "--mesh.faces=1500"]
    assert cli.main(["fit", *scenes, f"--recipe={recipe}", f"--out={out}", *stages, *small]) == 0
    return [json.loads(path.read_text()) for path in sorted(out.glob("*/asset.json"))]


def points(mesh: Mesh) -> np.ndarray:
    """Evenly spread over a surface."""
    rng = np.random.default_rng(0)
    corner = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(*np.moveaxis(corner[:, 1:] - corner[:, :1], 1, 0)), axis=-1)
    face = rng.choice(len(area), POINTS, p=area / area.sum())
    u, w = rng.random((2, POINTS))
    root = np.sqrt(u)
    weight = np.stack([1 - root, root * (1 - w), root * w], axis=-1)
    return np.einsum("nk,nkc->nc", weight, corner[face])


def chamfer(a: Mesh, b: Mesh) -> float:
    """Mean of the mean distances of each one's points to the other's, metres."""
    x, y = points(a), points(b)
    return float(np.mean(KDTree(x).query(y)[0]) + np.mean(KDTree(y).query(x)[0])) / 2


def meshed(args: Args, place: Path, prompt: str, size: int) -> dict:
    """Of a fit by Gaussians: its file, its mesh, and how near that is to the prop."""
    asset = folder.load_asset(place)
    name = prompt.replace(" ", "-")
    ply, glb = (args.out / f"{name}.{kind}" for kind in ("ply", "glb"))
    splats.write(ply, gaussians.alive(asset.params))
    assert cli.main(["mesh", str(ply), f"--out={glb}"]) == 0
    about = asset.record["scene"]
    mesh = load_glb(glb)
    mesh = mesh.replace(vertices=mesh.vertices / np.float32(about["scale"]) + about["centre"])
    mesh = mesh.replace(vertices=mesh.vertices.astype(np.float32))
    scene = photographed.truth(props.parse(prompt), args.seed)
    camera = photographed.spread(8, -10, 60, offset=1.3)
    rgba = np.asarray(photographed.photograph(scene, camera, size))
    true = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    likeness = compare(mesh, true, camera, Look.albedo())
    write_png(args.out / f"{name}.png", contact_sheet(np.concatenate([true, likeness.rgb]), 8))
    # Where both are the object: the texture alone, without outlines.
    inside = (rgba[..., 3] > 0.99) & (np.abs(likeness.rgb - 1).max(-1) > 0.05)
    error = np.mean((likeness.rgb - true)[inside] ** 2)
    return {
        "chamfer": 100 * chamfer(mesh, photographed.surface(scene)) / DIAGONAL,
        "psnr": likeness.psnr,
        "texture_psnr": -10 * np.log10(error),
    }


def main(args: Args) -> None:
    """Measure and print."""
    args.out.mkdir(parents=True, exist_ok=True)
    for prompt in args.prompts:
        place = args.out / "scenes" / prompt.replace(" ", "-")
        if not (place / "transforms_test.json").exists():
            scene = photographed.truth(props.parse(prompt), args.seed)
            photographed.write_scene(place, scene, 2 * max(args.sizes), 48, 8)
    print(f"| prop | {' | '.join(f'{r} {s}' for s in args.sizes for r in RECIPES)} |")
    runs = {(r, s): fitted(args, r, s) for s in args.sizes for r in RECIPES}
    for i, prompt in enumerate(args.prompts):
        cells = [
            f"{run[i]['metrics']['unseen_psnr']:.1f} dB, {run[i]['seconds']['optimize']:.0f} s"
            for run in runs.values()
        ]
        print(f"| {prompt} | {' | '.join(cells)} |")
    if not args.mesh:
        return
    size = max(args.sizes)
    for place, prompt in zip(
        sorted((args.out / f"fit-{size}").glob("0*")), args.prompts, strict=True
    ):
        found = meshed(args, place, prompt, size)
        print(f"| {prompt} | " + " | ".join(f"{k} {v:.2f}" for k, v in found.items()) + " |")


if __name__ == "__main__":
    main(tyro.cli(Args))
