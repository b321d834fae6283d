"""Assets distilled from the embedded critic, in minutes on a laptop.

jax3d generate "a red chair with armrests" "a striped green mug" --recipe distil
"""

from jax3d.recipe import Recipe

recipe = Recipe()
