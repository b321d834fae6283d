"""DreamFusion's recipe with Stable Diffusion, by threestudio's numbers.

    jax3d generate "a DSLR photo of a hamburger" --config dreamfusion_sd \
        --prior /path/to/stable-diffusion-2-1-base

Hardware: a GPU with 16 GB (docs/critics.md counts what a step takes). Untested at full size: there
were no weights here; a test takes two steps of it with a tiny folder.

Every number is that of threestudio's `dreamfusion-sd` (cameras, looks, weights of the losses,
rates, timesteps, guidance), except that its field is a hash grid and ours a triplane of 256 texels,
and that our background network reads the bare direction. Its scale of 100 counts from the prompt's
prediction, which `convention="threestudio"` keeps.
"""

from jax3d.camera import CameraConfig
from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.recipe import KnobValues, Recipe

recipe = Recipe(
    field=TriplaneConfig(
        resolution=256, hidden=64, samples=512, normals="analytic", learned_background=True
    ),
    optimize=AssetConfig(
        camera=CameraConfig(
            elevation=(-10.0, 45.0),
            fovy=(40.0, 70.0),
            distance=(1.5, 2.0),
            fit_radius=None,
            eye_jitter=0.1,
            center_jitter=0.2,
            up_jitter=0.02,
        ),
        views=1,
        stages=(StageConfig(10_000, 64),),
        rate=0.01,
        rates=(("background", 0.001),),
        p_textureless=0.5,
        ambient=0.1,
    ),
    guidance=SDSConfig(ScoreConfig(use_camera=False), convention="threestudio"),
    knobs=KnobValues(
        guidance_scale=(100.0,),
        t_min=(0.02,),
        t_max=(0.98,),
        lambda_opacity=(0.0,),
        lambda_sparsity=(1.0,),
        lambda_orient=(10.0, 1000.0, 0.0, 0.5),
        p_shaded=(0.0, 0.75, 0.2, 0.0),
    ),
)
