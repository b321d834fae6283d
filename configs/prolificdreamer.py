"""ProlificDreamer's recipe, the first of its three parts, by threestudio's numbers.

    jax3d generate "a pineapple" --config prolificdreamer \
        --prior /path/to/stable-diffusion-2-1-base

Hardware: a GPU with 40 GB, for the second stage's pictures and a gradient through the LoRA UNet.
Untested at full size: there were no weights here; a test takes two steps of it with a tiny folder.

Rates, guidance, timesteps, steps and stages are those of threestudio's `prolificdreamer`, cameras
those of its `dreamfusion-sd`. Its field is a hash grid and ours a triplane of 256 texels. Its LoRA
UNet starts from a v-predicting checkpoint of its own; ours changes the critic itself, is told the
camera by an embedding that it learns, and predicts what the critic predicts.
"""

from jax3d.camera import CameraConfig
from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.vsd import VSDConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.recipe import KnobValues, Recipe

recipe = Recipe(
    field=TriplaneConfig(resolution=256, hidden=64, samples=512, learned_background=True),
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
        stages=(StageConfig(5000, 64), StageConfig(20_000, 512)),
        rate=0.01,
        rates=(("mlp", 0.001), ("background", 0.001), ("guidance", 1e-4)),
    ),
    guidance=VSDConfig(ScoreConfig(use_camera=False), second_scale=1.0, p_untold=0.1, rank=4),
    knobs=KnobValues(
        guidance_scale=(7.5,),
        t_min=(0.02,),
        t_max=(0.98, 0.5, 0.2, 0.0),
        lambda_opacity=(0.0,),
    ),
)
