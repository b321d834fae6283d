"""Networks (NeRF) fitted to posed photographs.

jax3d fit scenes/chair scenes/car --recipe fit_mlp --out fitted
"""

from jax3d.fields.mlp import MlpConfig
from jax3d.guidance.photometric import PhotometricConfig
from jax3d.knobs import KnobValues
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.recipe import Pictures, Recipe

recipe = Recipe(
    field=MlpConfig(frequencies=6),
    optimize=AssetConfig(
        views=1, stages=(StageConfig(1000, 64), StageConfig(1000, 128)), rate=0.002
    ),
    guidance=PhotometricConfig(),
    knobs=KnobValues(lambda_opacity=(0.0,)),
    pictures=Pictures(size=128),
)
