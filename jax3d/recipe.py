"""A recipe: everything that turns a prompt into an asset, apart from the prompt and the seed.

The defaults are the recipe of the embedded critic; a file of `configs/` holds another as
`recipe = Recipe(...)`, and the command line overrides any field.
"""

import dataclasses
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jax3d import config_files
from jax3d.bounds import Range, Text
from jax3d.fields.gaussians import GaussiansConfig
from jax3d.fields.mlp import MlpConfig
from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.csd import CSDConfig
from jax3d.guidance.hifa import HiFAConfig
from jax3d.guidance.ism import ISMConfig
from jax3d.guidance.nfsd import NFSDConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.guidance.vsd import VSDConfig
from jax3d.knobs import Knobs, KnobValues
from jax3d.mesh import MeshConfig
from jax3d.optimize import asset
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.stage import Stage
from jax3d.priors.base import Critic
from jax3d.types import Condition, Prompt


@dataclass(frozen=True)
class Pictures:
    """What is shown of a finished asset."""

    size: Annotated[int, Range(8, 4096)] = 128
    """Side of the eight views and of the turntable, pixels."""
    frames: Annotated[int, Range(0, 10_000)] = 24
    """Frames of the turntable; 0 makes none."""
    elevation: Annotated[float, Range(-90, 90)] = 15.0
    """Degrees."""


@dataclass(frozen=True)
class Recipe:
    """How an asset is made."""

    field: TriplaneConfig | MlpConfig | GaussiansConfig = dataclasses.field(
        default_factory=TriplaneConfig
    )
    optimize: AssetConfig = dataclasses.field(default_factory=AssetConfig)
    guidance: SDSConfig | CSDConfig | NFSDConfig | ISMConfig | HiFAConfig | VSDConfig = (
        dataclasses.field(default_factory=lambda: SDSConfig(score=ScoreConfig(view_words="none")))
    )
    """How the critic's opinion becomes a gradient. The embedded critic is told the camera itself,
    so the prompt needs no view words."""
    knobs: KnobValues = dataclasses.field(default_factory=KnobValues)
    negative: Text = ""
    """Negative prompt, in place of the unconditional one; NFSD compares with it instead."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    pictures: Pictures = dataclasses.field(default_factory=Pictures)

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.optimize.stages)

    def build(self, critic: Critic) -> tuple[Stage, ...]:
        """The stages that an asset goes through, by a critic."""
        return asset.distil(
            self.field.build(),
            critic.prior,
            self.guidance.build(critic),
            critic.params,
            self.optimize,
        )

    def condition(self, critic: Critic, prompt: str) -> Condition:
        """What the critic is asked of a prompt; raises `ValueError` where it cannot read it."""
        asked = critic.condition(Prompt(prompt, self.negative))
        if not isinstance(self.guidance, NFSDConfig):
            return asked
        if not self.negative:
            raise ValueError("NFSD compares with a negative prompt: give one by --negative")
        return critic.condition(Prompt(prompt)).replace(negative=asked.null)

    def knobs_of(self, seed: int) -> Knobs:
        """The traced knobs of one asset; raises `ValueError` as `KnobValues.traced` does."""
        return self.knobs.traced(seed, self.steps)

    def with_steps(self, steps: int) -> "Recipe":
        """The same recipe over another number of steps, its stages stretched alike."""
        if steps < 1:
            raise ValueError(f"steps is {steps}; an asset takes at least 1")
        stages, done, before = [], 0, 0
        for stage in self.optimize.stages:
            before += stage.steps
            until = round(before * steps / self.steps)
            stages.append(StageConfig(until - done, stage.size))
            done = until
        return dataclasses.replace(
            self, optimize=dataclasses.replace(self.optimize, stages=tuple(stages))
        )


def load(name: str | Path, kind: type = Recipe):
    """The `recipe` of a config, which is Python and is run.

    Args:
      name: Of a packaged config, such as "props", or the path of a file.
      kind: What it must be: `Recipe`, or the dataclass of a training.

    Raises:
      ValueError: There is none, it cannot be run, or defines no `recipe` of this kind.
    """
    path = config_files.find(name)
    try:
        found = runpy.run_path(str(path)).get("recipe")
    except BaseException as error:
        # A config is the user's own code: whatever it raises, were it `sys.exit`, is told with
        # the file's name.
        raise ValueError(f"config {name}: {type(error).__name__}: {error}") from error
    if not isinstance(found, kind):
        where = f"{kind.__module__}.{kind.__name__}"
        raise ValueError(f"config {name} defines no `recipe` that is a {where}")
    return found
