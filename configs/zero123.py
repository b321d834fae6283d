"""An asset from one picture, by Zero123 or Stable-Zero123.

    jax3d reconstruct picture.png --config zero123 --prior /path/to/zero123-xl-diffusers

Hardware: a GPU with 16 GB. Untested at full size: there were no weights here; a test takes some
steps of it with a tiny folder.

The numbers are those of DreamGaussian's `image.yaml`: the given view's squared error 10,000 times
in colour and 1,000 times in coverage, growing over the run; views around it at its own distance
and up to 30 degrees higher or lower, under Zero123 with a scale of 5; one timestep that falls
from the last to the second percent; 500 steps at 128, 256 and 512 pixels. Differences: a triplane
in place of Gaussians (`--field gaussians` takes them), and its rates. `--known.elevation`
tells from where the picture was taken.
"""

import math

from jax3d.camera import CameraConfig
from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.known_view import KnownViewConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.priors import zero123
from jax3d.recipe import KnobValues, Recipe

recipe = Recipe(
    field=TriplaneConfig(resolution=128, samples=128),
    known=KnownViewConfig(),
    optimize=AssetConfig(
        camera=CameraConfig(
            elevation=(-30.0, 30.0),
            fovy=(math.degrees(zero123.FOVY), math.degrees(zero123.FOVY)),
            distance=(zero123.RADIUS, zero123.RADIUS),
            fit_radius=None,
            eye_jitter=0.0,
            center_jitter=0.0,
            up_jitter=0.0,
        ),
        views=1,
        stages=(StageConfig(150, 128), StageConfig(150, 256), StageConfig(200, 512)),
        grey=(0.0, 0.0),
    ),
    guidance=SDSConfig(ScoreConfig(view_words="none", shared_t=True)),
    knobs=KnobValues(
        guidance_scale=(5.0,),
        t_min=(0.98, 0.02),
        t_max=(0.98, 0.02),
        lambda_known=(0.0, 1.0),
        lambda_opacity=(0.0,),
    ),
)
