"""An asset from a picture and words, by ImageDream: four views at once.

    jax3d reconstruct picture.png --prompt "a knight" --config imagedream \
        --prior /path/to/imagedream-ipmv-diffusers

Hardware: a GPU with 24 GB. Untested at full size: there were no weights here; a test takes some
steps of it with a tiny folder.

Cameras, timesteps, stages and the form of the loss are those of ImageDream's plug-in for
threestudio: elevations of 0 to 5 degrees, fields of view of 45 to 50, a scale of 5, x0 rescaled
by 0.2, timesteps whose ends fall to 2% and 50% over 8,000 of 12,500 steps. Differences: a
triplane in place of a hash grid, four views throughout, and two stages (64 and 256 pixels) in
place of three.
"""

import dataclasses

from jax3d.optimize.asset import StageConfig
from jax3d.recipe import load

mvdream = load("mvdream")

recipe = dataclasses.replace(
    mvdream,
    optimize=dataclasses.replace(
        mvdream.optimize,
        camera=dataclasses.replace(
            mvdream.optimize.camera, elevation=(0.0, 5.0), fovy=(45.0, 50.0)
        ),
        stages=(StageConfig(5000, 64), StageConfig(7500, 256)),
    ),
    guidance=dataclasses.replace(
        mvdream.guidance, score=dataclasses.replace(mvdream.guidance.score, rescale=0.2)
    ),
    knobs=dataclasses.replace(
        mvdream.knobs,
        guidance_scale=(5.0,),
        t_min=(0.98, 0.02, 0.0, 0.64),
        t_max=(0.98, 0.5, 0.0, 0.64),
    ),
)
