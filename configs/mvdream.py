"""MVDream's recipe: four views a quarter turn apart under the multi-view critic.

    jax3d generate "an astronaut riding a horse" --config mvdream \
        --prior /path/to/mvdream-sd2.1-diffusers

Hardware: a GPU with 24 GB; its authors say 20. Untested at full size: there were no weights here; a
test takes two steps of it with a tiny folder.

Every number is that of MVDream-threestudio's `mvdream-sd21-rescale0.5` (cameras, guidance,
timesteps, rates, stages), except that its field is a hash grid and ours a triplane of 256 texels,
and that it renders eight views a step in its first stage where we render four throughout. Cameras
come in groups of four, at U(0.8, 1) of the distance where a disc of radius 1 spans the field of
view.
"""

from jax3d.camera import CameraConfig
from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.recipe import KnobValues, Recipe

recipe = Recipe(
    field=TriplaneConfig(resolution=256, hidden=64, samples=512, learned_background=True),
    optimize=AssetConfig(
        camera=CameraConfig(
            elevation=(0.0, 30.0),
            fovy=(15.0, 60.0),
            distance=(0.8, 1.0),
            fit_radius=1.0,
            fit="disc",
            group=4,
            eye_jitter=0.0,
            center_jitter=0.0,
            up_jitter=0.0,
        ),
        views=4,
        stages=(StageConfig(5000, 64), StageConfig(5000, 256)),
        rate=0.01,
        rates=(("mlp", 0.001), ("background", 0.001)),
    ),
    guidance=SDSConfig(
        ScoreConfig(weighting="recon", view_words="none", shared_t=True, rescale=0.5)
    ),
    knobs=KnobValues(
        guidance_scale=(50.0,),
        t_min=(0.98, 0.02, 0.0, 0.8),
        t_max=(0.98, 0.5, 0.0, 0.8),
        lambda_opacity=(0.0,),
    ),
)
