"""How good are the assets? One fixed recipe over held-out prompts, beside the scorer's ceiling.

    python benchmarks/quality.py [--config native] [--refine 50] [--prompts FILE] [--json FILE]

The ceiling is what the scorer makes of ground-truth renders of the same prompts from the same
cameras. `--prompts` takes one prompt a line, in words of the prop world.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jax3d import camera, image
from jax3d import recipe as recipes
from jax3d.data import prop_bank, props
from jax3d.finish import versions
from jax3d.making import generate
from jax3d.manifest import Job
from jax3d.metrics import scorer
from jax3d.optimize.engine import EngineConfig
from jax3d.priors import embedded

HERE = Path(__file__).parent
CEILING_SEEDS = range(500, 504)
SPENT = ("device", "finish")
"""What the ledger has the seconds of."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options."""

    prompts: Path = HERE / "prompts_held_out.txt"
    json: Path | None = None
    """Where to write the figures."""
    out: Path = Path("out/quality")
    config: str = "distil"
    """Of `configs/`, by name, or a file."""
    refine: int | None = None
    """Steps of distillation on top of what the recipe's model makes."""
    prior: Path = embedded.WEIGHTS
    slots: int = 4
    """Assets in one program."""
    cpu_devices: int = 1
    """Devices to split a CPU into."""
    seed: int = 100


def read_prompts(path: Path) -> tuple[list[str], list[props.Spec]]:
    """The prompts of a file and what they spell out."""
    prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    parsed = [props.parse(p) for p in prompts]
    if bad := [p for p, s in zip(prompts, parsed, strict=True) if s is None]:
        raise ValueError(f"{path}: these name no class and colour of the prop world: {bad}")
    return prompts, parsed


def score(judge, views: np.ndarray, specs: list[props.Spec], azimuth: np.ndarray) -> scorer.Scores:
    """The scorer's figures of `[n, v, H, W, 3]` against all held-out captions and their own."""
    own = [props.caption(s) for s in specs]
    others = [props.caption(s) for s in props.specs() if props.is_held_out(s)]
    captions = list(dict.fromkeys([*own, *others]))
    n, v = views.shape[:2]
    each = [s for s in specs for _ in range(v)]
    flat = views.reshape(n * v, *views.shape[2:])
    verdict = scorer.judge(judge, flat, captions, [s.name for s in each])
    index = np.array([captions.index(c) for c in own]).repeat(v)
    return scorer.scores(verdict, index, each, np.tile(azimuth, n))


def main(args: Args) -> None:
    """Prints the table."""
    jax.config.update("jax_num_cpu_devices", args.cpu_devices)
    prompts, specs = read_prompts(args.prompts)
    recipe = recipes.load(args.config)
    recipe = recipe if args.refine is None else recipe.refined(args.refine)
    critic = embedded.open(args.prior) if recipe.asks_critic else None
    judge = scorer.load()
    console = Console()
    around = camera.around(8, recipe.pictures.elevation)
    jobs = [Job(p, args.seed + k) for k, p in enumerate(prompts)]
    started = time.perf_counter()

    def finished(record: dict):
        console.print(f"{record['prompt']}: {time.perf_counter() - started:.0f} s")

    config = EngineConfig(slots=args.slots)
    rows = generate(recipe, critic, jobs, args.out, config=config, finished=finished)
    strips = [image.read_image(args.out / row["path"] / "views.png") for row in rows]
    views = [strip.reshape(strip.shape[0], 8, -1, 3).swapaxes(0, 1) for strip in strips]
    azimuth = np.asarray(around.azimuth)
    assets = score(judge, np.stack(views), specs, azimuth)
    truth = np.stack(
        [prop_bank.ground_truth(specs, seed, around, scorer.SIZE) for seed in CEILING_SEEDS]
    )
    ceilings = [score(judge, t, specs, azimuth) for t in truth]
    ceiling = scorer.Scores(*np.mean(ceilings, axis=0).tolist())

    table = Table("metric", "assets", "ceiling", "ratio")
    for name, a, c in zip(assets._fields, assets, ceiling, strict=True):
        table.add_row(name, f"{a:.3f}", f"{c:.3f}", f"{a / c:.0%}")
    psnr = [row.get("mesh_psnr", float("nan")) for row in rows]
    console.print(table)
    console.print(f"GLB against field, PSNR over 8 views: {np.nanmean(psnr):.1f} dB")
    spent = {kind: np.mean([row[f"{kind}_seconds"] for row in rows]) for kind in SPENT}
    console.print("seconds an asset: " + ", ".join(f"{k} {s:.2f}" for k, s in spent.items()))
    if args.json:
        figures = {
            "assets": assets._asdict(),
            "ceiling": ceiling._asdict(),
            "mesh_psnr": psnr,
            "prompts": prompts,
            "an_asset": spent,
            "seconds": time.perf_counter() - started,
            "versions": versions(),
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
