"""Assets by way of a picture that the embedded critic draws, in seconds on a laptop.

jax3d generate "a red chair with armrests" "a striped green mug" --recipe fast
"""

import dataclasses

from jax3d.models.pictured import PicturedConfig
from jax3d.recipe import load

recipe = dataclasses.replace(load("native"), maker=PicturedConfig())
