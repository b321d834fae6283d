"""Triplanes fitted to posed photographs.

jax3d fit scenes/chair scenes/car --recipe fit_triplane --out fitted
"""

from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.photometric import PhotometricConfig
from jax3d.knobs import KnobValues
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.recipe import Pictures, Recipe

recipe = Recipe(
    field=TriplaneConfig(resolution=128, channels=16, levels=4),
    optimize=AssetConfig(views=1, stages=(StageConfig(1000, 64), StageConfig(1000, 128))),
    guidance=PhotometricConfig(),
    knobs=KnobValues(lambda_opacity=(0.0,)),
    pictures=Pictures(size=128),
)
