"""The numbers of one asset that a sweep may vary without a recompile: the one list of them.

`KnobValues` is how they are written down, in recipes and manifests; `Knobs` is the same list as
traced arrays, which compiled steps read.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from flax import struct
from jaxtyping import Float, UInt

from jax3d.bounds import Items, Range, Share
from jax3d.types import Numbers, Ramp, Scalars

Values = tuple[float, ...]
"""One number is a constant, two move linearly over the whole run, four are the start, the end, and
where in the run the movement begins and how much of it it takes, as fractions in [0, 1]."""

_LENGTHS, _RUN = (1, 2, 4), (Range(0, 1), Range(0, 1))
Weight = Annotated[Values, Items(_LENGTHS, (Range(0), Range(0), *_RUN))]
"""From 0 on."""
Part = Annotated[Values, Items(_LENGTHS, (Range(0, 1), Range(0, 1), *_RUN))]
"""From 0 to 1."""


@dataclass(frozen=True)
class KnobValues:
    """The traced numbers of an asset, written down.

    One number is a constant; two move linearly over the whole run; four are start, end, and the
    fractions of the run at which the movement begins and that it takes.
    """

    lr: Weight = (1.0,)
    """Multiplies the learning rates of the config."""
    guidance_scale: Weight = (10.0,)
    """Of classifier-free guidance, in distillation."""
    model_scale: Annotated[Values, Items((1,), (Range(0),))] = (1.0,)
    """Of classifier-free guidance, in the model that makes the asset or its start."""
    t_min: Part = (0.2, 0.1)
    """Lower end of the timestep range, as a fraction of the critic's schedule."""
    t_max: Part = (0.98, 0.4)
    """Upper end of the timestep range."""
    strength: Part = (0.2, 0.05)
    """Of image-to-image refinement: the share of the critic's schedule that a render is noised by
    and denoised along."""
    lambda_sds: Weight = (1.0,)
    """Weight of the critic's opinion."""
    lambda_known: Weight = (1.0,)
    """Weight of a given picture's own view (`guidance.known_view`)."""
    lambda_opacity: Weight = (0.0, 0.05)
    """Binary entropy of alpha: pushes every pixel to opaque or empty."""
    lambda_sparsity: Weight = (0.0,)
    """Mean of sqrt(alpha^2 + 0.01): pushes the object to be small."""
    lambda_orient: Weight = (0.0,)
    """Normals that face away (Ref-NeRF, eq. 11)."""
    lambda_normal: Weight = (0.0,)
    """Smoothness of rendered normals."""
    lambda_tv: Weight = (0.0,)
    """Total variation of the representation's grids."""
    lambda_splat_opacity: Weight = (0.0,)
    """Mean opacity of Gaussians: those of no use fade, and are put elsewhere (MCMC: 0.01)."""
    lambda_splat_scale: Weight = (0.0,)
    """Mean standard deviation of Gaussians, metres (MCMC: 0.01)."""
    p_shaded: Part = (0.0,)
    """Chance that a view is lit by a random lamp; the others show the bare albedo."""
    background: tuple[Share, Share, Share] = (1.0, 1.0, 1.0)
    """Behind the object, where it is not a random grey."""

    def mistake(self) -> str | None:
        """What does not fit together, for `bounds.check`: timesteps are drawn upwards."""
        ends = [_line(name, getattr(self, name), 1.0) for name in ("t_min", "t_max")]
        # Both are straight between these parts of the run, and may jump right behind them.
        turns = [turn for *_, begin, length in ends for turn in (begin, begin + length)]
        for turn in sorted({0.0, 1.0, *turns, *(turn + 1e-5 for turn in turns)}):
            low, high = (_at(line, min(turn, 1.0)) for line in ends)
            if low > high + 1e-6:
                return (
                    f"t_min is {low:.4g} where t_max is {high:.4g}, after {turn:.0%} of the run; "
                    "timesteps are drawn from t_min to t_max"
                )
        return None

    def traced(self, seed: int, steps: int) -> "Knobs":
        """The knobs of an asset whose run takes so many steps.

        Leaves are on the host, so that thousands cost nothing. Raises `ValueError` for a knob of
        another length than 1, 2 or 4.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        background = np.asarray(values.pop("background"), np.float32)
        ramps = {
            name: Ramp(*map(np.float32, _line(name, numbers, steps)))
            for name, numbers in values.items()
        }
        run = {"seed": np.uint32(seed), "steps": np.float32(steps)}
        return Knobs(**run, background=background, **ramps)


def _line(name: str, numbers: Values, steps: int | float) -> tuple[float, float, float, float]:
    """Start, end, begin and length of the movement of a knob, in a run of so many steps."""
    match numbers:
        case (constant,):
            return constant, constant, 0.0, 0.0
        case (start, end):
            return start, end, 0.0, float(steps)
        case (start, end, begin, length):
            return start, end, begin * steps, length * steps
    raise ValueError(
        f"knobs.{name} has {len(numbers)} numbers; give 1 (constant), 2 (start and end of a line "
        "over the whole run) or 4 (start, end, and as fractions of the run where the movement "
        "begins and how long it takes)"
    )


def _at(line: tuple[float, float, float, float], step: float) -> float:
    """`Ramp.at` on the host."""
    start, end, begin, length = line
    return start + min(max((step - begin) / max(length, 1e-6), 0.0), 1.0) * (end - start)


Knobs = struct.dataclass(
    type(
        "Knobs",
        (),
        {
            "__module__": __name__,
            "__doc__": "The knobs of an asset, or of A: its seed, the steps of its whole run, and "
            "a `Ramp` for each number.",
            "__annotations__": {
                "seed": UInt[Scalars, "*A"],
                "steps": Float[Scalars, "*A"],
                "background": Float[Numbers, "*A 3"],
                **{f.name: Ramp for f in dataclasses.fields(KnobValues) if f.name != "background"},
            },
        },
    )
)
