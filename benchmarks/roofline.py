"""How close the dense rendering step comes to what one core can do.

    python benchmarks/roofline.py [--json FILE] [--repeats 5]

Arithmetic and memory traffic of a sample are counted by hand (2 FLOPs a multiply-add; a row read
or added is its bytes, as the table does not fit the first cache); the peaks are measured by a
matrix product and by a copy on the same core.
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path

import timing

timing.pin()

import jax
import jax.numpy as jnp
import tyro
from renderer import DENSE, SAMPLES, SIZE, ours

from jax3d import camera
from jax3d.fields.triplane import triplane


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    repeats: int = 5


def count(hidden: int, outputs: int) -> dict[str, tuple[float, float]]:
    """(FLOPs, bytes) of one sample, forward and forward with backward."""
    lookup, rows = 2 * 12 * hidden, 12 * 4 * hidden
    network = 2 * (hidden * hidden + hidden * outputs)
    # Backward computes the chunk again, then twice the network's products, and scatters: a row
    # is read, changed and written.
    return {
        "forward": (lookup + network, rows),
        "forward + backward": (3 * lookup + 4 * network, 4 * rows),
    }


def main(args: Args) -> None:
    """Measure and print."""
    a = jnp.ones((1024, 1024))
    long = jnp.ones((1 << 26,))
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1)
    cam = camera.orbit(jnp.array([0.4]), jnp.array([0.3]), 2.6, 0.75)
    params = triplane(DENSE).init(jax.random.key(0))
    forward, both = (jax.jit(ours(DENSE, cam, gradient)) for gradient in (False, True))
    seconds = timing.alternate(
        {
            "product": lambda: product(a).block_until_ready(),
            "copy": lambda: copy(long).block_until_ready(),
            "forward": lambda: forward(params).block_until_ready(),
            "forward + backward": lambda: jax.block_until_ready(both(params)),
        },
        args.repeats,
    )
    flops = 2 * 1024**3 / seconds["product"]
    bandwidth = 2 * long.nbytes / seconds["copy"]
    samples = SIZE * SIZE * SAMPLES
    rows, figures = [], {"peak_gflops": timing.figure(flops / 1e9)}
    figures["peak_gb_s"] = timing.figure(bandwidth / 1e9)
    for name, (work, traffic) in count(DENSE.hidden, 4).items():
        arithmetic = samples * work / flops / seconds[name]
        memory = samples * traffic / bandwidth / seconds[name]
        rows.append(
            [
                name,
                f"{samples * work / 1e9:.1f}",
                f"{samples * traffic / 1e9:.1f}",
                timing.spread(1e3 * seconds[name], 0),
                timing.spread(100 * arithmetic, 0),
                timing.spread(100 * memory, 0),
            ]
        )
        figures[name] = {
            "gflop": samples * work / 1e9,
            "gigabytes": samples * traffic / 1e9,
            "share_of_arithmetic_peak": timing.figure(arithmetic),
            "share_of_memory_peak": timing.figure(memory),
        }
    timing.show(
        f"Peak of one core: {timing.spread(flops / 1e9, 0)} GFLOP/s, "
        f"{timing.spread(bandwidth / 1e9, 0)} GB/s",
        ["dense 64^3", "GFLOP", "GB", "ms", "% of arithmetic peak", "% of memory peak"],
        rows,
    )
    timing.save(args.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Args))
