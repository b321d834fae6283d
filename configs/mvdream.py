"""MVDream's recipe: four views a quarter turn apart under the multi-view critic.

    jax3d generate "an astronaut riding a horse" --config configs/mvdream.py \
        --prior /path/to/mvdream-sd2.1-diffusers

Needs a GPU of 20 GB. Never run to its end here. MVDream's field is a hash grid and its
optimiser AdamW on groups of eight views; here it is the triplane and Adam on four.
"""

from jax3d.camera import CameraConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.optimize.asset import AssetConfig, Stage
from jax3d.recipe import KnobValues, Recipe

recipe = Recipe(
    optimise=AssetConfig(
        camera=CameraConfig(
            elevation=(0.0, 30.0),
            fovy=(15.0, 60.0),
            distance=(0.8, 1.0),
            fit_radius=1.0,
            eye_jitter=0.0,
            center_jitter=0.0,
            up_jitter=0.0,
        ),
        views=4,
        stages=(Stage(5000, 64), Stage(5000, 256)),
    ),
    guidance=SDSConfig(
        ScoreConfig(weighting="recon", view_words="none", shared_t=True, rescale=0.5)
    ),
    knobs=KnobValues(
        guidance_scale=(50.0,),
        t_min=(0.98, 0.02, 0.0, 8000.0),
        t_max=(0.98, 0.5, 0.0, 8000.0),
        lambda_orient=(10.0, 1000.0, 0.0, 5000.0),
    ),
)
