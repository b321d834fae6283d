"""The embedded critic, trained on one CPU core: the weights that ship with the package.

    jax3d train prior --config prior_cpu --out runs/prior

72,000 renders take 8 minutes of one core, the training about an hour. Copy `props.safetensors` and
`props.json` from the run's folder into `jax3d/priors/weights/` to ship them.
"""

from jax3d.train.prior import PriorTraining

recipe = PriorTraining()
