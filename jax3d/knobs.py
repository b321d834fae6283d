"""The numbers of one asset that a sweep may vary without a recompile: the one list of them.

`KnobValues` is how they are written down, in recipes and manifests; `Knobs` is the same list as
traced arrays, which compiled steps read.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from flax import struct
from jaxtyping import Float, UInt

from jax3d.types import Numbers, Ramp, Scalars

Values = tuple[float, ...]
"""One number is a constant, two move linearly over the whole run, four are the start, the end, and
where in the run the movement begins and how much of it it takes, as fractions in [0, 1]."""


@dataclass(frozen=True)
class KnobValues:
    """The traced numbers of an asset, written down.

    One number is a constant; two move linearly over the whole run; four are start, end, and the
    fractions of the run at which the movement begins and that it takes.
    """

    lr: Values = (1.0,)
    """Multiplies the learning rates of the config."""
    guidance_scale: Values = (10.0,)
    """Of classifier-free guidance."""
    t_min: Values = (0.2, 0.1)
    """Lower end of the timestep range, as a fraction of the critic's schedule."""
    t_max: Values = (0.98, 0.4)
    """Upper end of the timestep range."""
    lambda_sds: Values = (1.0,)
    """Weight of the critic's opinion."""
    lambda_opacity: Values = (0.0, 0.05)
    """Binary entropy of alpha: pushes every pixel to opaque or empty."""
    lambda_sparsity: Values = (0.0,)
    """Mean of sqrt(alpha^2 + 0.01): pushes the object to be small."""
    lambda_orient: Values = (0.0,)
    """Normals that face away (Ref-NeRF, eq. 11)."""
    lambda_normal: Values = (0.0,)
    """Smoothness of rendered normals."""
    lambda_tv: Values = (0.0,)
    """Total variation of the representation's grids."""
    p_shaded: Values = (0.0,)
    """Chance that a view is lit by a random lamp; the others show the bare albedo."""
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Behind the object, where it is not a random grey."""

    def traced(self, seed: int, steps: int) -> "Knobs":
        """The knobs of an asset whose run takes so many steps.

        Leaves are on the host, so that thousands cost nothing. Raises `ValueError` for a knob of
        another length than 1, 2 or 4.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        background = np.asarray(values.pop("background"), np.float32)
        ramps = {name: _ramp(name, numbers, steps) for name, numbers in values.items()}
        return Knobs(seed=np.uint32(seed), background=background, **ramps)


def _ramp(name: str, numbers: Values, steps: int) -> Ramp:
    match numbers:
        case (constant,):
            written = (constant, constant, 0.0, 0.0)
        case (start, end):
            written = (start, end, 0.0, steps)
        case (start, end, begin, duration):
            written = (start, end, begin * steps, duration * steps)
        case _:
            raise ValueError(
                f"knobs.{name} has {len(numbers)} numbers; give 1 (constant), 2 (start and end of "
                "a line over the whole run) or 4 (start, end, and as fractions of the run where "
                "the movement begins and how long it takes)"
            )
    return Ramp(*(np.float32(number) for number in written))


Knobs = struct.dataclass(
    type(
        "Knobs",
        (),
        {
            "__module__": __name__,
            "__doc__": "The knobs of an asset, or of A: its seed, and a `Ramp` for each number.",
            "__annotations__": {
                "seed": UInt[Scalars, "*A"],
                "background": Float[Numbers, "*A 3"],
                **{f.name: Ramp for f in dataclasses.fields(KnobValues) if f.name != "background"},
            },
        },
    )
)
