"""3D Gaussians fitted to posed photographs.

jax3d fit scenes/chair scenes/car --out fitted
"""

from jax3d.fields.densify import Mcmc
from jax3d.fields.gaussians import GaussiansConfig
from jax3d.guidance.photometric import PhotometricConfig
from jax3d.knobs import KnobValues
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.recipe import Pictures, Recipe

recipe = Recipe(
    field=GaussiansConfig(capacity=8192, start=2048, degree=1, densify=Mcmc()),
    optimize=AssetConfig(views=1, stages=(StageConfig(1000, 64), StageConfig(1000, 128))),
    guidance=PhotometricConfig(),
    knobs=KnobValues(
        lambda_opacity=(0.0,), lambda_splat_opacity=(0.01,), lambda_splat_scale=(0.01,)
    ),
    pictures=Pictures(size=128),
)
