"""Assets from pictures of props, by the embedded reconstructor, in seconds on a laptop.

jax3d reconstruct chair.png pictures/ --out out
"""

from jax3d.data.prop_fields import HALF
from jax3d.fields.grid import GridConfig
from jax3d.knobs import KnobValues
from jax3d.models.props_lrm import LrmConfig
from jax3d.optimize.asset import AssetConfig
from jax3d.recipe import Recipe

recipe = Recipe(
    maker=LrmConfig(),
    field=GridConfig(resolution=64, bound=HALF),
    # `--refine K` goes on from what the model made: small steps, under little noise.
    optimize=AssetConfig(stages=(), rates=(("sdf", 1e-3), ("rgb", 3e-2))),
    knobs=KnobValues(t_min=(0.02,), t_max=(0.4, 0.1)),
)
