"""`jax3d train lrm`."""

from functools import partial

from jax3d.cli import training
from jax3d.train.lrm import LrmTraining, train

Options = training.options("lrm", LrmTraining)
run = partial(training.run, train=train)
