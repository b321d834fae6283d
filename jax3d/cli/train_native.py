"""`jax3d train native`."""

from functools import partial

from jax3d.cli import training
from jax3d.train.native import NativeTraining, train

Options = training.options("native", NativeTraining)
run = partial(training.run, train=train)
