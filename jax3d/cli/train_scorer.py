"""`jax3d train scorer`."""

from functools import partial

from jax3d.cli import training
from jax3d.train.scorer import ScorerTraining, train

Options = training.options("scorer", ScorerTraining)
run = partial(training.run, train=train)
