"""`jax3d train prior`."""

from functools import partial

from jax3d.cli import training
from jax3d.train.prior import PriorTraining, train

Options = training.options("prior", PriorTraining)
run = partial(training.run, train=train)
