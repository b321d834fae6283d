"""Assets from pictures of props, by the embedded reconstructor, in seconds on a laptop.

jax3d reconstruct chair.png pictures/ --out out
"""

import dataclasses

from jax3d.models.props_lrm import LrmConfig
from jax3d.recipe import load

recipe = dataclasses.replace(load("native"), maker=LrmConfig())
