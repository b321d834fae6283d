"""DreamGaussian's two stages by the embedded critic, in minutes on a laptop.

jax3d generate "a red chair with armrests" "a striped green mug" --recipe dreamgaussian_props
"""

from jax3d.fields.gaussians import GaussiansConfig
from jax3d.guidance.sdedit import SDEditConfig
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.texture import TextureConfig
from jax3d.recipe import KnobValues, Recipe

FIRST, SECOND = 300, 30
SHARE = FIRST / (FIRST + SECOND)
"""Of the run that is distillation."""

recipe = Recipe(
    field=GaussiansConfig(capacity=2048, start=1024, radius=0.6),
    optimize=AssetConfig(views=4, stages=(StageConfig(200, 32), StageConfig(100, 64))),
    texture=TextureConfig(
        steps=SECOND,
        size=128,
        views=4,
        rate=0.05,
        mesh=MeshConfig(texture=256),
        guidance=SDEditConfig(steps=20),
    ),
    knobs=KnobValues(
        lr=(1.0, 0.1, SHARE, 1 - SHARE),
        guidance_scale=(10.0, 3.0, SHARE, 0.0),
        t_min=(0.2, 0.1, 0.0, SHARE),
        t_max=(0.98, 0.4, 0.0, SHARE),
        strength=(0.5, 0.15, SHARE, 1 - SHARE),
        lambda_opacity=(0.0,),
        lambda_splat_opacity=(0.01,),
        lambda_splat_scale=(0.01,),
    ),
)
