"""Assets from the embedded native generator, in seconds on a laptop.

jax3d generate "a red chair with armrests" "a striped green mug" --recipe native
"""

from jax3d.knobs import KnobValues
from jax3d.models.props_native import FIELD, NativeConfig
from jax3d.optimize.asset import AssetConfig
from jax3d.recipe import Recipe

recipe = Recipe(
    maker=NativeConfig(),
    field=FIELD,
    # `--refine K` goes on from what the model made: small steps, under little noise.
    optimize=AssetConfig(stages=(), rates=(("sdf", 1e-3), ("rgb", 3e-2))),
    knobs=KnobValues(t_min=(0.02,), t_max=(0.4, 0.1)),
)
