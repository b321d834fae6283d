"""A recipe: everything that turns a prompt into an asset, apart from the prompt and the seed.

The defaults are the recipe of the embedded critic; a file of `configs/` holds another as
`recipe = Recipe(...)`, and the command line overrides any field.
"""

import dataclasses
import runpy
from dataclasses import dataclass
from pathlib import Path

from jax3d.fields.base import Representation
from jax3d.fields.mlp import MlpConfig, mlp
from jax3d.fields.triplane import TriplaneConfig, triplane
from jax3d.guidance.base import Guidance
from jax3d.guidance.csd import CSDConfig, csd
from jax3d.guidance.hifa import HiFAConfig, hifa
from jax3d.guidance.ism import ISMConfig, ism
from jax3d.guidance.nfsd import NFSDConfig, nfsd
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig, sds
from jax3d.guidance.vsd import VSDConfig, lora, vsd
from jax3d.mesh import MeshConfig
from jax3d.optimize import asset
from jax3d.optimize.asset import AssetConfig, Stage
from jax3d.priors.base import Critic
from jax3d.priors.stable_diffusion import camera_weights
from jax3d.types import Condition, Knobs, Prompt, Ramp

Values = tuple[float, ...]


@dataclass(frozen=True)
class KnobValues:
    """The traced numbers of `types.Knobs`, written down.

    One number is a constant, two move linearly over the whole run, four are the start, the end,
    the step at which the movement begins and the steps that it takes.
    """

    lr: Values = (1.0,)
    guidance_scale: Values = (10.0,)
    t_min: Values = (0.2, 0.1)
    t_max: Values = (0.98, 0.4)
    lambda_sds: Values = (1.0,)
    lambda_opacity: Values = (0.0, 0.05)
    lambda_sparsity: Values = (0.0,)
    lambda_orient: Values = (0.0,)
    lambda_normal: Values = (0.0,)
    lambda_tv: Values = (0.0,)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Pictures:
    """What is shown of a finished asset."""

    size: int = 128
    """Side of the eight views and of the turntable, pixels."""
    frames: int = 24
    """Frames of the turntable; 0 makes none."""
    elevation: float = 15.0
    """Degrees."""


@dataclass(frozen=True)
class Recipe:
    """How an asset is made."""

    field: TriplaneConfig | MlpConfig = dataclasses.field(default_factory=TriplaneConfig)
    optimize: AssetConfig = dataclasses.field(
        default_factory=lambda: AssetConfig(stages=(Stage(200, 32), Stage(80, 64)))
    )
    guidance: SDSConfig | CSDConfig | NFSDConfig | ISMConfig | HiFAConfig | VSDConfig = (
        dataclasses.field(default_factory=lambda: SDSConfig(score=ScoreConfig(view_words="none")))
    )
    """How the critic's opinion becomes a gradient. The embedded critic is told the camera itself,
    so the prompt needs no view words."""
    knobs: KnobValues = dataclasses.field(default_factory=KnobValues)
    negative: str = ""
    """Negative prompt, in place of the unconditional one; NFSD compares with it instead."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    pictures: Pictures = dataclasses.field(default_factory=Pictures)

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.optimize.stages)

    def representation(self) -> Representation:
        """The representation that `field` describes."""
        match self.field:
            case TriplaneConfig():
                return triplane(self.field)
            case MlpConfig():
                return mlp(self.field)

    def guide(self, critic: Critic) -> Guidance:
        """The guidance that `guidance` describes, by a critic."""
        match self.guidance:
            case SDSConfig():
                return sds(critic.prior, self.guidance)
            case CSDConfig():
                return csd(critic.prior, self.guidance)
            case NFSDConfig():
                return nfsd(critic.prior, self.guidance)
            case ISMConfig():
                return ism(critic.prior, self.guidance)
            case HiFAConfig():
                return hifa(critic.prior, self.guidance)
            case VSDConfig(rank=rank, pattern=pattern):
                told = camera_weights(critic.params)
                second = lora(
                    critic.prior, critic.params, rank=rank, pattern=pattern, camera_weights=told
                )
                return vsd(critic.prior, second, self.guidance)

    def condition(self, critic: Critic, prompt: str) -> Condition:
        """What the critic is asked of a prompt; raises `ValueError` where it cannot read it."""
        asked = critic.condition(Prompt(prompt, self.negative))
        if not isinstance(self.guidance, NFSDConfig):
            return asked
        if not self.negative:
            raise ValueError("NFSD compares with a negative prompt: give one by --negative")
        return critic.condition(Prompt(prompt)).replace(negative=asked.null)

    def knobs_of(self, seed: int) -> Knobs:
        """The knobs of one asset; raises `ValueError` for a ramp of another length than 1, 2, 4."""
        values = {f.name: getattr(self.knobs, f.name) for f in dataclasses.fields(self.knobs)}
        background = values.pop("background")
        ramps = {name: _ramp(name, numbers, self.steps) for name, numbers in values.items()}
        return asset.knobs(seed, background=background, **ramps)

    def with_steps(self, steps: int) -> "Recipe":
        """The same recipe over another number of steps, its stages stretched alike."""
        if steps < 1:
            raise ValueError(f"steps is {steps}; an asset takes at least 1")
        stages, done, before = [], 0, 0
        for stage in self.optimize.stages:
            before += stage.steps
            until = round(before * steps / self.steps)
            stages.append(Stage(until - done, stage.size))
            done = until
        return dataclasses.replace(
            self, optimize=dataclasses.replace(self.optimize, stages=tuple(stages))
        )


def _ramp(name: str, numbers: Values, steps: int) -> Ramp:
    match numbers:
        case (constant,):
            return Ramp.of(constant)
        case (start, end):
            return Ramp.of(start, end, 0, steps)
        case (start, end, begin, duration):
            return Ramp.of(start, end, begin, duration)
    raise ValueError(
        f"knobs.{name} has {len(numbers)} numbers; give 1 (constant), 2 (start and end of a line "
        "over the whole run) or 4 (start, end, first step, steps)"
    )


def load(path: str | Path, kind: type = Recipe):
    """The `recipe` of a config file, which is Python and is run.

    Raises:
      ValueError: The file cannot be run, or defines no `recipe` of this kind.
    """
    try:
        found = runpy.run_path(str(path)).get("recipe")
    except Exception as error:
        # A config is the user's own code: whatever it raises is told with the file's name.
        raise ValueError(f"config {path}: {type(error).__name__}: {error}") from error
    if not isinstance(found, kind):
        where = f"{kind.__module__}.{kind.__name__}"
        raise ValueError(f"config {path} defines no `recipe` that is a {where}")
    return found
