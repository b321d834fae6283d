"""DreamGaussian's recipe with Stable Diffusion: Gaussians, then a mesh with a repainted texture.

    jax3d generate "a photo of an ice cream" --config dreamgaussian \
        --prior /path/to/stable-diffusion-2-1-base

Hardware: a GPU with 16 GB. Untested at full size: there were no weights here; a test takes some
steps of it with a tiny folder.

The numbers are those of DreamGaussian's `text.yaml`: one view a step from 2.5 m at a field of view
of 49.1 degrees, elevations within 30 degrees, a background of black or white, 500 steps at 128, 256
and 512 pixels in which one timestep falls from the last to the second percent, a scale of 100, and
50 steps of repainting at 512 pixels with noise from a fifth to a twentieth of the schedule.
Differences: Gaussians are meshed by the level that keeps their outline, and not at a density of 1;
the texture is baked from them, and not from pictures; it has 1024 texels a side as theirs, and no
mip levels; elevations are no whole degrees; rates fall over the whole run.
"""

from jax3d.camera import CameraConfig
from jax3d.fields.densify import Classical
from jax3d.fields.gaussians import GaussiansConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.texture import TextureConfig
from jax3d.recipe import KnobValues, Recipe

FIRST, SECOND = 500, 50
SHARE = FIRST / (FIRST + SECOND)
"""Of the run that is distillation."""

recipe = Recipe(
    field=GaussiansConfig(
        capacity=32768, start=5000, densify=Classical(every=50), rate_means=(0.01, 0.0002)
    ),
    optimize=AssetConfig(
        camera=CameraConfig(
            elevation=(-30.0, 30.0),
            fovy=(49.1, 49.1),
            distance=(2.5, 2.5),
            fit_radius=None,
            eye_jitter=0.0,
            center_jitter=0.0,
            up_jitter=0.0,
        ),
        views=1,
        stages=(StageConfig(150, 128), StageConfig(150, 256), StageConfig(200, 512)),
        p_grey=0.5,
        grey=(0.0, 0.0),
    ),
    guidance=SDSConfig(ScoreConfig(view_words="none", use_camera=False, shared_t=True)),
    texture=TextureConfig(
        steps=SECOND, size=512, views=1, mesh=MeshConfig(faces=50_000, texture=1024)
    ),
    knobs=KnobValues(
        guidance_scale=(100.0,),
        t_min=(0.98, 0.02, 0.0, SHARE),
        t_max=(0.98, 0.02, 0.0, SHARE),
        strength=(0.2, 0.05, SHARE, 1 - SHARE),
        lambda_opacity=(0.0,),
    ),
)
