"""Assets from the embedded critic, in minutes on a laptop.

    jax3d generate "a red chair with armrests" "a snowman with a blue scarf" --config configs/props.py
"""

from jax3d.recipe import Recipe

recipe = Recipe()
