"""How close the rendering step comes to what one core can do, dense and with occupied samples.

    python benchmarks/roofline.py [--json FILE] [--repeats 5]

Arithmetic and memory traffic are counted by a formula (2 FLOPs a multiply-add; a row read or added
is its bytes, as the table does not fit the first caches; an array over all samples is written and
read once), and a sample's FLOPs again by the compiler's cost analysis. The peaks are measured on
the same core by a matrix product and by passes in place over an array of the table's size, as that
is where rows are read from. A share of a peak is the time that the work would take at that peak
over the time that it takes. The same formula, with the accelerator's plan and the peaks of data
sheets, gives the least time on machines that were not at hand.
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import timing

timing.pin()

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from renderer import DENSE, SAMPLES, SIZE, SPARSE, ours, samples_of

from jax3d import camera
from jax3d.fields import planes
from jax3d.fields.triplane import triplane
from jax3d.render import sparse

SAMPLE_FLOATS = {"forward": 10, "forward + backward": 18}
"""Numbers kept for each sample of each ray: bounds, density and colour, optical depth, its sums
and weight, and their gradients."""


MACHINES = {
    "H200, TF32": (494e12, 4.8e12),
    "H200, float32": (67e12, 4.8e12),
    "TPU v5e, bfloat16": (197e12, 0.819e12),
}
"""FLOP/s and bytes/s by the makers' data sheets."""
PASSES = 200
"""Over the table-sized array at a time."""


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    repeats: int = 5


class Work(NamedTuple):
    """What is to be done; adds and scales."""

    flops: float
    bytes: float

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        """This and `times` the other."""
        return Work(self.flops + times * other.flops, self.bytes + times * other.bytes)


def of_sample(plan: sparse.Plan) -> dict[str, Work]:
    """The field at one sample, forward and its gradient by recomputation."""
    k, c, outputs = DENSE.hidden, DENSE.channels, 4
    width, first = (k, 0) if plan.fold else (c, 3 * c * k)
    lookup, network = 2 * 12 * width, 2 * (first + k * k + k * outputs)
    row = 12 * width * (4 if plan.dtype is None else jnp.dtype(plan.dtype).itemsize)
    # Gradient: the sample is computed again, then twice the network's products and the scatter:
    # a row of the sum, which is float32, is read, changed and written.
    return {
        "forward": Work(lookup + network, row),
        "gradient": Work(2 * lookup + 3 * network, row + 2 * 12 * 4 * width),
    }


def of_render(
    plan: sparse.Plan, shaded: float, visible: float, lattice: int, backward: bool
) -> Work:
    """A picture of which `shaded` samples are evaluated and `visible` have a gradient."""
    k, c, r = DENSE.hidden, DENSE.channels, DENSE.resolution
    sample = of_sample(plan)
    kind = "forward + backward" if backward else "forward"
    fold = Work(2 * 3 * r * r * c * k, 4 * 3 * r * r * (c + k))
    corner = Work(3 * k + 2 * (k * k + k), 4 * 3)
    total = Work(0, 2 * 4 * SAMPLE_FLOATS[kind] * SIZE * SIZE * SAMPLES)
    total = total.plus(sample["forward"], shaded).plus(corner, lattice**3)
    if backward:
        total = total.plus(sample["gradient"], visible)
    if plan.fold or lattice:
        total = total.plus(fold)
    return total.plus(fold, 2) if plan.fold and backward else total


def compiled_flops(params) -> dict[str, float]:
    """What XLA counts for the field at one sample, from one chunk without its loops."""
    m = sparse.CPU.chunk
    first, *rest = params["mlp"]
    table = planes.fold(params["planes"][0], first["w"])
    x = jnp.zeros((m, 3))

    def field(table, rest):
        h = jax.nn.relu(planes.gather(table, x / 2 + 0.5, "sum")[:, 0] + first["b"])
        for layer in rest[:-1]:
            h = jax.nn.relu(h @ layer["w"] + layer["b"])
        return h @ rest[-1]["w"] + rest[-1]["b"]

    def gradient(table, rest):
        out, pull = jax.vjp(field, table, rest)
        return pull(out)

    def count(f):
        return jax.jit(f).lower(table, rest).cost_analysis()["flops"] / m

    return {"forward": count(field), "gradient": count(gradient)}


def measure(names, params, cam, repeats: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Seconds of each program, and this core's FLOP/s and bytes/s, alternated in one run."""

    def program(name):
        cfg = DENSE if name.startswith("dense") else SPARSE
        run = jax.jit(ours(cfg, cam, name.endswith("backward")))
        return lambda: jax.block_until_ready(run(params))

    a, table = jnp.ones((1024, 1024)), jnp.ones(3 * DENSE.resolution**2 * DENSE.hidden)
    product = jax.jit(lambda a: a @ a)
    stream = jax.jit(lambda x: jax.lax.fori_loop(0, PASSES, lambda i, x: x + 1, x))
    seconds = timing.alternate(
        {
            "product": lambda: product(a).block_until_ready(),
            "stream": lambda: stream(table).block_until_ready(),
        }
        | {name: program(name) for name in names},
        repeats,
    )
    return seconds, 2 * 1024**3 / seconds["product"], 2 * PASSES * table.nbytes / seconds["stream"]


def shares_of(work: dict, seconds: dict, flops, bandwidth) -> tuple[list, dict]:
    """Of each program a row of the table, and its figures."""
    rows, figures = [], {}
    for name, (arithmetic, traffic) in work.items():
        shares = [arithmetic / flops / seconds[name], traffic / bandwidth / seconds[name]]
        rows.append(
            [
                name,
                f"{arithmetic / 1e9:.2f}",
                f"{traffic / 1e9:.2f}",
                timing.spread(1e3 * seconds[name], 1),
                *(timing.spread(100 * share, 0) for share in shares),
            ]
        )
        figures[name] = {
            "gflop": arithmetic / 1e9,
            "gigabytes": traffic / 1e9,
            "milliseconds": timing.figure(1e3 * seconds[name]),
            "share_of_arithmetic_peak": timing.figure(shares[0]),
            "share_of_memory_peak": timing.figure(shares[1]),
        }
    return rows, figures


def by_data_sheets(work: dict) -> dict[str, dict[str, float]]:
    """The least milliseconds of each program on machines that were not at hand."""
    return {
        machine: {k: 1e3 * max(w.flops / f, w.bytes / b) for k, w in work.items()}
        for machine, (f, b) in MACHINES.items()
    }


def main(args: Args) -> None:
    """Measure and print."""
    cam = camera.orbit(jnp.array([0.4]), jnp.array([0.3]), 2.6, 0.75)
    params = triplane(DENSE).init(jax.random.key(0))
    x, edges, occupied = samples_of(cam)
    sigma = jax.jit(triplane(DENSE).density)(params, x).reshape(SIZE * SIZE, SAMPLES)
    kept = float(jax.jit(occupied)(params).sum())
    visible = float(sparse.visible(sigma, sigma, edges, SPARSE.cull).sum())
    every, lattice = SIZE * SIZE * SAMPLES, SPARSE.lattice

    def count(plan):
        return {
            "dense, forward": of_render(plan, every, every, 0, False),
            "dense, forward + backward": of_render(plan, every, every, 0, True),
            "occupied, forward": of_render(plan, kept, visible, lattice, False),
            "occupied, forward + backward": of_render(plan, kept, visible, lattice, True),
        }

    work = count(sparse.CPU)
    seconds, flops, bandwidth = measure(work, params, cam, args.repeats)
    rows, figures = shares_of(work, seconds, flops, bandwidth)
    formula = {k: w.flops for k, w in of_sample(sparse.CPU).items()}
    counted, estimates = compiled_flops(params), by_data_sheets(count(sparse.ACCELERATOR))
    timing.show(
        f"Peak of one core: {timing.spread(flops / 1e9, 0)} GFLOP/s, "
        f"{timing.spread(bandwidth / 1e9, 0)} GB/s",
        ["64^3", "GFLOP", "GB", "ms", "% of arithmetic peak", "% of memory peak"],
        rows,
    )
    timing.show(
        "Least time by data sheets, not measured, ms",
        ["machine", *work],
        [[name, *(f"{t:.3f}" for t in each.values())] for name, each in estimates.items()],
    )
    print(
        f"samples: {every}, kept {kept / every:.1%}, visible {visible / every:.1%}; FLOPs of a "
        f"sample by formula {formula}, by the compiler {counted}"
    )
    peaks = {
        "peak_gflops": timing.figure(flops / 1e9),
        "peak_gb_s": timing.figure(bandwidth / 1e9),
        "flops_of_a_sample": {"formula": formula, "compiler": counted},
        "samples": {"all": every, "kept": kept, "visible": visible},
        "least_milliseconds_by_data_sheets": estimates,
    }
    timing.save(args.json, peaks | figures)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
