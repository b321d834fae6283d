"""Time of an asset's rendering step as assets are added to one program, by `map` and by `vmap`.

python benchmarks/scaling_assets.py [--json FILE] [--repeats 5]
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path

import timing

timing.pin()

import jax
import jax.numpy as jnp
import tyro

from jax3d import camera
from jax3d.fields.triplane import TriplaneConfig, triplane
from jax3d.types import Look


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    repeats: int = 5
    counts: tuple[int, ...] = (1, 4, 16)
    size: int = 64
    views: int = 1
    blob_density: float = 200.0


def main(args: Args) -> None:
    """Measure and print."""
    rep = triplane(TriplaneConfig(blob_density=args.blob_density))
    cam = camera.orbit(jnp.linspace(0.0, 6.0, args.views), 0.3, 2.6, 0.75)

    def loss(params):
        out = rep.render(params, None, cam, Look.albedo(), (args.size, args.size))
        return jnp.mean((out.rgb - 0.5) ** 2)

    one = jax.value_and_grad(loss)
    programs = {}
    for count in args.counts:
        params = jax.vmap(rep.init)(jax.random.split(jax.random.key(0), count))
        for name, program in {
            "map": jax.jit(lambda params: jax.lax.map(one, params)),
            "vmap": jax.jit(jax.vmap(one)),
        }.items():
            programs[name, count] = lambda f=program, p=params: jax.block_until_ready(f(p))
    seconds = timing.alternate(programs, args.repeats)
    first = args.counts[0]
    base = seconds["map", first] / first
    each = {(name, count): s / count for (name, count), s in seconds.items()}
    timing.show(
        "CPU time of an asset's step",
        ["program", "assets", "ms an asset", f"over map at A={first} (bar 1.2)"],
        [
            [name, str(count), timing.spread(1e3 * s, 1), timing.spread(s / base)]
            for (name, count), s in each.items()
        ],
    )
    timing.save(
        args.json,
        {
            f"{name} {count}": {
                "milliseconds": timing.figure(1e3 * s),
                "over_one": timing.figure(s / base),
            }
            for (name, count), s in each.items()
        },
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
