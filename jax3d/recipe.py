"""A recipe: everything that turns a prompt into an asset, apart from the prompt and the seed.

The defaults are the recipe of the embedded critic; a file of `configs/` holds another as
`recipe = Recipe(...)`, and the command line overrides any field.
"""

import dataclasses
import itertools
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import jax

from jax3d import config_files, image
from jax3d.bounds import Range, Text
from jax3d.data import photographs, transforms
from jax3d.data.photographs import Photographs
from jax3d.fields.decoded import DecodedConfig
from jax3d.fields.gaussians import GaussiansConfig
from jax3d.fields.grid import GridConfig
from jax3d.fields.mlp import MlpConfig
from jax3d.fields.nerstf import NerstfConfig
from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.csd import CSDConfig
from jax3d.guidance.hifa import HiFAConfig
from jax3d.guidance.ism import ISMConfig
from jax3d.guidance.known_view import KnownViewConfig
from jax3d.guidance.nfsd import NFSDConfig
from jax3d.guidance.photometric import PhotometricConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.guidance.vsd import VSDConfig
from jax3d.knobs import Knobs, KnobValues
from jax3d.mesh import MeshConfig
from jax3d.metrics import unseen
from jax3d.models.base import Model
from jax3d.models.open import DiskConfig
from jax3d.models.pictured import PicturedConfig
from jax3d.models.props_lrm import LrmConfig
from jax3d.models.props_native import NativeConfig
from jax3d.optimize import asset, texture
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.stage import Stage, as_stage, told
from jax3d.optimize.texture import TextureConfig
from jax3d.priors.base import Critic
from jax3d.types import Condition, Params, Prompt


@dataclass(frozen=True)
class Pictures:
    """What is shown of a finished asset."""

    size: Annotated[int, Range(8, 4096)] = 128
    """Side of the eight views and of the turntable, pixels."""
    frames: Annotated[int, Range(0, 10_000)] = 24
    """Frames of the turntable; 0 makes none."""
    elevation: Annotated[float, Range(-90, 90)] = 15.0
    """Degrees."""


Field = TriplaneConfig | MlpConfig | GridConfig | NerstfConfig | GaussiansConfig
"""What represents an asset while it is distilled."""

FieldName = Literal["triplane", "mlp", "grid", "nerstf", "gaussians"]
FIELDS = dict(zip(get_args(FieldName), get_args(Field), strict=True))


@dataclass(frozen=True)
class Recipe:
    """How an asset is made."""

    maker: NativeConfig | LrmConfig | PicturedConfig | DiskConfig | None = None
    """The model that makes the asset, or the start of its distillation; None starts from a fresh
    field."""
    field: Field | DecodedConfig = dataclasses.field(default_factory=TriplaneConfig)
    optimize: AssetConfig = dataclasses.field(default_factory=AssetConfig)
    guidance: (
        SDSConfig | CSDConfig | NFSDConfig | ISMConfig | HiFAConfig | VSDConfig | PhotometricConfig
    ) = dataclasses.field(default_factory=lambda: SDSConfig(score=ScoreConfig(view_words="none")))
    """How the critic's opinion becomes a gradient, or that the asset is fitted to photographs. The
    embedded critic is told the camera itself, so the prompt needs no view words."""
    known: KnownViewConfig | None = None
    """That the asset looks like the given picture from where that was taken, beside the guidance of
    a critic that is told it; None where there is no picture."""
    texture: TextureConfig | None = None
    """The last stage: mesh what was made, and let the critic repaint its texture; None leaves the
    field as it is."""
    knobs: KnobValues = dataclasses.field(default_factory=KnobValues)
    negative: Text = ""
    """Negative prompt, in place of the unconditional one; NFSD compares with it instead."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    pictures: Pictures = dataclasses.field(default_factory=Pictures)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each stage in which a critic is asked."""
        distilling = tuple(stage.steps for stage in self.optimize.stages)
        return distilling if self.texture is None else (*distilling, self.texture.steps)

    @property
    def steps(self) -> int:
        """Of all these together."""
        return sum(self.lengths)

    @property
    def outcome(self) -> Any:
        """The config of what its assets are in the end, with a `build()`."""
        return self.field if self.texture is None else self.texture.representation

    def open(self, critic: Critic | None) -> "Opened":
        """The recipe in working order.

        Args:
          critic: By whose taste; None where `asks_critic` is False.

        Raises:
          ValueError: There is no critic where one is asked, or what the model makes is not of the
            recipe's field, or its weights cannot be read.
        """
        if isinstance(self.guidance, PhotometricConfig):
            return _fitting(self)
        if critic is None and self.asks_critic:
            raise ValueError("this recipe asks a critic, and was given none")

        def ask(prompt: Prompt) -> Condition | None:
            own = dataclasses.replace(self, negative=prompt.negative)
            # A model's picture is the model's alone: the critic goes by the words.
            given = prompt.image if self.maker is None else None
            return own.condition(critic, prompt.text, given) if self.lengths else None

        distilling = self.build(critic) if self.lengths else ()
        makers = [critic] if self.lengths else []
        if self.maker is None:
            return _opened(distilling, ask, (), makers)
        model = self.maker.build(critic)
        _demand_same(self.field, model)

        def ask_both(prompt: Prompt) -> tuple[Any, Condition | None]:
            return model.condition(prompt), ask(prompt)

        stages = (told(as_stage(model), 0), *(told(stage, 1) for stage in distilling))
        return _opened(stages, ask_both, (model.steps,), [model, *makers])

    @property
    def asks_critic(self) -> bool:
        """Whether it takes a critic at all."""
        if isinstance(self.guidance, PhotometricConfig):
            return False
        return bool(self.lengths) or (self.maker is not None and self.maker.asks_critic)

    def build(self, critic: Critic) -> tuple[Stage, ...]:
        """The stages in which a critic is asked."""
        field = self.field.build()
        distilling = asset.distil(
            field,
            critic.prior,
            self.guidance.build(critic),
            critic.params,
            self.optimize,
            () if self.known is None else (self.known.build(),),
        )
        if self.texture is None:
            return distilling
        # An asset that stopped at a plateau would be left without its mesh.
        distilling = tuple(stage._replace(watch=None) for stage in distilling)
        return (*distilling, texture.stage(field, critic, self.texture, self.optimize))

    def condition(self, critic: Critic, prompt: str, picture: Any = None) -> Condition:
        """What the critic is asked of a prompt; raises `ValueError` where it cannot read it."""
        elevation = 0.0 if self.known is None else self.known.elevation
        wanted = Prompt(prompt, self.negative, picture, elevation)
        asked = critic.condition(wanted)
        if picture is not None and asked.given is None:
            raise ValueError(
                f"{critic.name} reads no picture: take a recipe whose model does, such as "
                "reconstruct, or a critic that does, such as Zero123"
            )
        if self.known is not None and asked.given is None:
            raise ValueError("this recipe goes by a picture (known), and there is none")
        if not isinstance(self.guidance, NFSDConfig):
            return asked
        if not self.negative:
            raise ValueError("NFSD compares with a negative prompt: give one by --negative")
        return critic.condition(wanted._replace(negative="")).replace(negative=asked.null)

    def knobs_of(self, seed: int) -> Knobs:
        """The traced knobs of one asset; raises `ValueError` as `KnobValues.traced` does."""
        return self.knobs.traced(seed, self.steps)

    def wider(self) -> "Recipe":
        """The same recipe with twice the room wherever pictures have a fixed one."""
        field = self.field.wider() if isinstance(self.field, GaussiansConfig) else self.field
        texture = None if self.texture is None else self.texture.wider()
        return dataclasses.replace(self, field=field, texture=texture)

    def with_field(self, name: FieldName) -> "Recipe":
        """The same recipe with another field, whose settings are the field's own defaults."""
        return dataclasses.replace(self, field=FIELDS[name]())

    def made_by(self, path: str, dtype: str = "float32", views: str = "") -> "Recipe":
        """The same recipe with a model from disk, its field and its guidance, and no distillation.

        A `model_scale` that is not the default one stays. `views` is that of `DiskConfig`; raises
        `ValueError` as it does when it is built.
        """
        maker = DiskConfig(path, dtype, views)
        model, knobs = maker.build(None), self.knobs
        if knobs.model_scale == KnobValues().model_scale:
            knobs = dataclasses.replace(knobs, model_scale=(model.scale,))
        optimize = dataclasses.replace(self.optimize, stages=())
        return dataclasses.replace(
            self, maker=maker, field=model.field, optimize=optimize, knobs=knobs
        )

    def refined(self, steps: int) -> "Recipe":
        """The same recipe with so many steps of distillation on top of what its model makes.

        Raises `ValueError` where it has none.
        """
        if self.maker is None:
            raise ValueError(
                "refine goes on from what a model makes, and this recipe has none: --steps is the "
                "length of its distillation"
            )
        stages = (StageConfig(steps, REFINED),) if steps else ()
        return dataclasses.replace(self, optimize=dataclasses.replace(self.optimize, stages=stages))

    def with_steps(self, steps: int) -> "Recipe":
        """The same recipe over another number of steps, its stages stretched alike."""
        if steps < 1:
            raise ValueError(f"steps is {steps}; an asset takes at least 1")
        if not self.steps:
            raise ValueError(
                f"steps is {steps}, and this recipe distils nothing that could be stretched: "
                "--refine K adds K steps"
            )
        ends = [round(end * steps / self.steps) for end in itertools.accumulate(self.lengths)]
        lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        stages = tuple(
            StageConfig(length, stage.size)
            for length, stage in zip(lengths, self.optimize.stages, strict=False)
        )
        optimize = dataclasses.replace(self.optimize, stages=stages)
        if self.texture is None:
            return dataclasses.replace(self, optimize=optimize)
        own = dataclasses.replace(self.texture, steps=lengths[-1])
        return dataclasses.replace(self, optimize=optimize, texture=own)


class Opened(NamedTuple):
    """A recipe in working order."""

    stages: tuple[Stage, ...]
    """What an asset goes through."""
    condition: Callable[[Prompt], Any]
    """What the stages are told of an asset; raises `ValueError` for a prompt that cannot be
    read"""
    steps: tuple[int, ...]
    """Of the stages before those of the recipe's distillation."""
    name: str
    """Who makes, for people."""
    digest: str
    """Of all weights: two makers of one recipe and digest make the same assets."""
    read: Callable[[str], Any] = image.read_picture
    """What a job's `picture` names, as `condition` takes it in `Prompt.image`."""
    remember: int = 256
    """How many conditions may be held in memory."""
    about: Callable[[Any], dict[str, Any]] = lambda cond: {}
    """What a record says of a condition."""
    measure: Callable[[Params, Any, str], dict[str, float]] | None = None
    """`measure(params, cond, picture)`: what is known of how good an asset is, beside the scorer's
    opinion."""


REFINED = 64
"""Side of the renders by which a model's asset is refined, pixels."""


def _opened(stages, condition, steps, makers: Sequence[Critic | Model]) -> Opened:
    name = ", then ".join(each.name for each in makers)
    return Opened(stages, condition, steps, name, " ".join(m.digest or m.name for m in makers))


def _fitting(recipe: Recipe) -> Opened:
    """A recipe that fits scenes to their photographs."""
    sizes = {stage.size for stage in recipe.optimize.stages}
    extra = {recipe.maker, recipe.known, recipe.texture} - {None}
    if extra or not recipe.steps:
        raise ValueError(
            "a recipe that fits photographs has steps, and neither a maker, nor a known view, nor "
            "a texture that a critic repaints"
        )
    size, guidance = max(sizes), recipe.guidance
    if odd := [each for each in sorted(sizes) if size % each]:
        raise ValueError(f"optimize.stages: pictures of {size} pixels cannot be halved to {odd[0]}")

    def read(folder: str) -> Photographs:
        return photographs.read(transforms.scan(folder), size, guidance.most)

    def condition(prompt: Prompt) -> Photographs:
        if not isinstance(prompt.image, Photographs):
            raise ValueError(
                f"{prompt.text!r} is no scene: this recipe fits photographs (jax3d fit FOLDER)"
            )
        return prompt.image

    def about(cond: Photographs) -> dict[str, Any]:
        return {"scene": {"centre": cond.centre.tolist(), "scale": float(cond.scale)}}

    field = recipe.field.build()
    held_out = unseen.measure(field, size, guidance.transparent)

    def measure(params: Params, cond: Photographs, folder: str) -> dict[str, float]:
        return held_out(params, photographs.held_out(transforms.scan(folder), cond, size))

    stages = asset.fit(field, guidance.build(), recipe.optimize)
    name = "photographs"
    return Opened(stages, condition, (), name, name, read, 8, about, measure)


def _demand_same(field: Any, model: Model) -> None:
    """Raises `ValueError` where a model makes what the field's functions cannot take."""
    own = jax.eval_shape(field.build().init, jax.random.key(0))
    made = jax.eval_shape(model.representation.init, jax.random.key(0))
    if jax.tree.structure(own) != jax.tree.structure(made) or jax.tree.leaves(
        own
    ) != jax.tree.leaves(made):
        raise ValueError(
            f"what the {model.name} makes is no {field}: give the recipe the model's field"
        )


def load(name: str | Path, kind: type = Recipe):
    """The `recipe` of a config, which is Python and is run.

    Args:
      name: Of a packaged config, such as "distil", or the path of a file.
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
