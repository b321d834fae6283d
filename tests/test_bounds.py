"""Bounds: every option of every config is held to its kind and range, and told by its name."""

import contextlib
import importlib
import io
import math
import pkgutil
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pytest
import tyro

import jax3d
from jax3d import bounds
from jax3d import recipe as recipes
from jax3d.bounds import Count, Items, Natural, Positive, Range, Seed, Share, Text
from jax3d.guidance.ism import ISMConfig
from jax3d.guidance.vsd import VSDConfig
from jax3d.knobs import KnobValues
from jax3d.nn.props_unet import UNetConfig
from jax3d.optimize.engine import EngineConfig
from jax3d.recipe import Recipe
from jax3d.train.lrm import LrmTraining
from jax3d.train.native import NativeTraining
from jax3d.train.prior import PriorTraining
from jax3d.train.scorer import ScorerTraining

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Options:
    """What the commands that make assets share."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


@dataclass(frozen=True)
class Training:
    """What `jax3d train` takes."""

    recipe: Annotated[PriorTraining, tyro.conf.arg(name="")] = field(default_factory=PriorTraining)


@lru_cache
def help_of(kind):
    """What `--help` says of the options."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"], config=(tyro.conf.AvoidSubcommands,))
    return text.getvalue()


def put(config, option, value):
    """The config with the value that an option sets."""

    def replaced(part, names):
        if not names:
            return value
        name, *rest = names
        if isinstance(part, tuple) and name.isdigit():
            k = int(name)
            return (*part[:k], replaced(part[k], rest), *part[k + 1 :])
        if not hasattr(part, name):  # the recipe's options have no prefix
            name, rest = "recipe", names
        change = {name: replaced(getattr(part, name), rest)}
        return part._replace(**change) if hasattr(part, "_replace") else replace(part, **change)

    return replaced(config, option.removeprefix("--").replace("-", "_").split("."))


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--engine.slots", 0, "from 1 on or None"),
        ("--engine.slots", 2147483648, "from 1 to 2147483647 or None"),
        ("--engine.block", 0, "from 1 on"),
        ("--engine.checkpoint-every", 0, "from 1 on"),
        ("--engine.checkpoint-minutes", NAN, "a finite number from 0 on"),
        ("--engine.keep", -1, "from 1 on"),
        ("--engine.writers", 0, "from 1 on or None"),
        ("--engine.patience", -1, "from 0 on"),
        ("--engine.tolerance", NAN, "a finite number from 0 to 1"),
        ("--engine.tolerance", 1.5, "from 0 to 1"),
        ("--field.resolution", 0, "from 2 to 4096"),
        ("--field.channels", 0, "from 1 on"),
        ("--field.levels", 9, "64 texels cannot be halved so often"),
        ("--field.bound", 0.0, "above 0"),
        ("--field.bound", INF, "a finite number above 0"),
        ("--field.blob-radius", 0.0, "above 0"),
        ("--field.blob-radius", 1e-45, "a number that float32 holds, above 0"),
        ("--field.lattice", 1, "expected 0 (none) or"),
        ("--field.lattice", -1, "from 0 on"),
        ("--field.samples", 0, "from 1 on"),
        ("--field.cull", NAN, "a finite number from 0 to 1"),
        ("--field.tile", 0, "from 1 on"),
        ("--optimize.views", 0, "from 1 to 4096"),
        ("--optimize.rate", -0.01, "from 0 on"),
        ("--optimize.rate", INF, "a finite number from 0 on"),
        ("--optimize.rates", (("mlp", NAN),), "holds nan; expected a finite number from 0 on"),
        ("--optimize.p-grey", 1.5, "from 0 to 1"),
        ("--optimize.grey", (0.5, 1.5), "holds 1.5; expected a number from 0 to 1"),
        ("--optimize.grey", (0.9, 0.1), "is (0.9, 0.1); expected the lower end first"),
        ("--optimize.ambient", -0.1, "from 0 to 1"),
        ("--optimize.stages.0.size", 0, "from 1 to 4096"),
        ("--optimize.stages.1.steps", -1, "from 0 on"),
        ("--optimize.camera.azimuth", (NAN, 360.0), "holds nan; expected a finite number"),
        (
            "--optimize.camera.elevation",
            (10.0, 95.0),
            "holds 95.0; expected a number from -90 to 90",
        ),
        ("--optimize.camera.elevation", (60.0, -10.0), "expected the lower end first"),
        (
            "--optimize.camera.fovy",
            (0.0, 40.0),
            "holds 0.0; expected a number above 0 and below 180",
        ),
        (
            "--optimize.camera.fovy",
            (40.0, 180.0),
            "holds 180.0; expected a number above 0 and below 180",
        ),
        ("--optimize.camera.distance", (0.0, 1.0), "above 0"),
        ("--optimize.camera.fit-radius", 0.0, "above 0 or None"),
        ("--optimize.camera.group", 0, "from 1 on"),
        ("--optimize.camera.eye-jitter", -1.0, "from 0 on"),
        ("--guidance.score.rescale", 2.0, "from 0 to 1"),
        ("--knobs.guidance-scale", (NAN,), "holds nan; expected a finite number from 0 on"),
        ("--knobs.guidance-scale", (-7.5,), "from 0 on"),
        ("--knobs.guidance-scale", (1e39,), "a number that float32 holds, from 0 on"),
        ("--knobs.lr", (1.0, 2.0, 3.0), "has 3 numbers; expected 1, 2 or 4"),
        ("--knobs.lr", (1.0, 2.0, 0.5, 4.0), "holds 4.0; expected a number from 0 to 1"),
        ("--knobs.t-min", (1.2,), "from 0 to 1"),
        ("--knobs.t-max", (0.9, 0.5, 0.0, INF), "a finite number from 0 to 1"),
        ("--knobs.p-shaded", (1.5,), "holds 1.5; expected a number from 0 to 1"),
        ("--knobs.lambda-tv", (INF,), "a finite number from 0 on"),
        ("--knobs.background", (0.0, 0.0, 2.0), "holds 2.0; expected a number from 0 to 1"),
        ("--negative", "\x1b[31m", "without control characters"),
        ("--negative", "\udcff", "half a character"),
        ("--mesh.resolution", 2, "from 8 to 2048"),
        ("--mesh.level", 0.0, "above 0 or None"),
        ("--mesh.min-area", NAN, "a finite number from 0 to 1"),
        ("--mesh.faces", 0, "a whole number from 4 on"),
        ("--mesh.texture", 0, "from 8 to 16384"),
        ("--mesh.chunk", 0, "from 1 on"),
        ("--pictures.size", -1, "from 8 to 4096"),
        ("--pictures.frames", -1, "from 0 to 10000"),
        ("--pictures.elevation", 91.0, "from -90 to 90"),
    ],
)
def test_an_option_out_of_its_range_is_told_as_it_is_spelled(option, value, told):
    assert f"{option} " in help_of(Options)
    with pytest.raises(ValueError, match=rf"^{option} [^\n]*{re.escape(told)}[^\n]*$"):
        bounds.check(put(Options(), option, value))


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--steps", 0, "is 0; expected a whole number from 1 on"),
        ("--seed", -1, "is -1; expected a whole number from 0 to 4294967295"),
        ("--seed", 4294967296, "is 4294967296;"),
        ("--lr", NAN, "is nan"),
        ("--ema", 1.0, "is 1.0; expected a number from 0 to below 1"),
        ("--time-power", 0.0, "is 0.0"),
        ("--warmup", 7000, "is 7000; it must end before the decay begins"),
        ("--turntable.images", 0, "is 0"),
        ("--photographs.size", 0, "is 0; expected a whole number from 8"),
        ("--network.heads", 0, "is 0"),
        ("--network.widths", (64,), "has another number of levels"),
        ("--network.patch", 0, "is 0; expected a whole number from 1 to 64"),
    ],
)
def test_options_of_the_training(option, value, told):
    assert f"{option} " in help_of(Training)
    with pytest.raises(ValueError, match=f"^{option} {re.escape(told)}"):
        bounds.check(put(Training(), option, value))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (Recipe(guidance=VSDConfig(pattern="(")), "--guidance.pattern is '('; expected a regular"),
        (Recipe(guidance=VSDConfig(rank=0)), "--guidance.rank is 0"),
        (Recipe(guidance=ISMConfig(interval=2.0)), "--guidance.interval is 2.0"),
        (Recipe(guidance=ISMConfig(inversion_steps=0)), "--guidance.inversion-steps is 0"),
        (ScorerTraining(short_captions=-0.1), "--short-captions is -0.1"),
        (UNetConfig(widths=(8, 20, 8)), "--widths holds 20; expected multiples of 8"),
        (PriorTraining(network=UNetConfig(heads=3)), "--network.widths holds 128; expected"),
    ],
)
def test_what_only_a_file_can_say_is_told_alike(config, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        bounds.check(config)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        ((0.5,), (0.4,), "0.5 where t_max is 0.4, after 0% of the run"),
        ((0.1, 0.6), (0.9, 0.5), "0.6 where t_max is 0.5, after 100% of the run"),
        ((0.1, 0.6, 0.1, 0.0), (0.5,), "0.6 where t_max is 0.5, after 10% of the run"),
        ((0.1, 0.6, 0.1, 0.3), (0.9, 0.5, 0.2, 0.0), "0.6 where t_max is 0.5, after 40% of"),
        ((0.1, 0.9, 0.0, 2.0), (0.3,), None),  # longer than a run may last
        ((0.0,), (0.5, -0.0, 0.2, 0.3), ""),
        ((0.98, 0.02, 0.0, 0.8), (0.98, 0.5, 0.0, 0.8), ""),
        ((0.1, 0.9, 1.0, 0.0), (0.5,), ""),  # moves when the run is over
    ],
)
def test_timesteps_are_drawn_upwards(low, high, told):
    recipe = Recipe(knobs=KnobValues(t_min=low, t_max=high))
    if told == "":
        bounds.check(recipe)
        return
    told = "holds 2.0; expected a number from 0 to 1" if told is None else f"is {told}"
    with pytest.raises(ValueError, match=rf"^--knobs\.t-min {re.escape(told)}"):
        bounds.check(recipe)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.py")), ids=str)
def test_what_ships_is_within_bounds(path):
    trainings = {
        "prior_cpu": PriorTraining,
        "prior_gpu": PriorTraining,
        "native_cpu": NativeTraining,
        "lrm_cpu": LrmTraining,
    }
    kind = trainings.get(path.stem, Recipe)
    bounds.check(recipes.load(path, kind))
    bounds.check(EngineConfig(), "engine")
    bounds.check(ScorerTraining())


class Pair(NamedTuple):
    count: Count
    share: Share = 0.5


@dataclass(frozen=True)
class Inner:
    depth: Natural = 0


@dataclass(frozen=True)
class Kinds:
    count: Count = 1
    rate: Positive = 1.0
    flag: bool = False
    word: str = "a"
    text: Text = "a"
    way: Literal["left", "right"] | None = None
    perhaps: Positive | None = None
    pairs: tuple[Pair, ...] = (Pair(1),)
    inner: Inner | Pair = Inner()
    ramp: Annotated[tuple[float, ...], Items((1, 3), (Range(0, 1), Range(0), Range(0)))] = (1.0,)
    span: Annotated[tuple[float, float], bounds.RISING] = (0.0, 1.0)
    seed: Seed = 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": True}, "--count is True; expected a whole number"),
        ({"count": 1.0}, "--count is 1.0; expected a whole number"),
        ({"count": "1"}, "--count is '1'; expected a whole number"),
        ({"count": None}, "--count is None"),
        ({"count": 10**5000}, "--count is a number of about 5000 digits"),
        ({"rate": False}, "--rate is False; expected a number above 0"),
        ({"rate": 10**400}, "--rate is 1000"),
        ({"rate": -math.inf}, "--rate is -inf; expected a finite number"),
        ({"rate": np.float32("nan")}, "--rate is np.float32(nan)"),
        ({"flag": 1}, "--flag is 1; expected True or False"),
        ({"word": 1}, "--word is 1; expected a text"),
        ({"text": "a\0b"}, "--text is 'a\\x00b'; expected a text without control characters"),
        ({"text": "a" * 10_001}, "--text has 10001 characters; expected up to 10000"),
        ({"text": "\ud800"}, "--text is '\\ud800'; expected a text"),
        ({"way": "up"}, "--way is 'up'; expected one of left, right or None"),
        ({"perhaps": 0.0}, "--perhaps is 0.0; expected a number above 0 or None"),
        ({"pairs": (Pair(1), Pair(1, 2.0))}, "--pairs.1.share is 2.0"),
        ({"pairs": [Pair(1)]}, "--pairs is [Pair(count=1, share=0.5)]; expected a tuple"),
        ({"inner": Inner(-1)}, "--inner.depth is -1"),
        ({"inner": Pair(0)}, "--inner.count is 0"),
        ({"inner": 3}, "--inner is 3; expected a Inner"),
        ({"ramp": ()}, "--ramp has 0 numbers; expected 1 or 3"),
        ({"ramp": (1.0, 2.0)}, "--ramp has 2 numbers; expected 1 or 3"),
        ({"ramp": (1.0, 2.0, math.nan)}, "--ramp holds nan"),
        ({"ramp": (2.0, 2.0, 2.0)}, "--ramp holds 2.0; expected a number from 0 to 1"),
        ({"span": (1.0,)}, "--span has 1 numbers; expected 2"),
        ({"span": (1.0, 0.0)}, "--span is (1.0, 0.0); expected the lower end first"),
        ({"seed": 2**32}, "--seed is 4294967296; expected a whole number from 0 to 4294967295"),
    ],
)
def test_kinds_are_told_apart(change, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        bounds.check(replace(Kinds(), **change))
    with pytest.raises(ValueError, match=r"^--outer\."):
        bounds.check(replace(Kinds(), **change), "outer")


@pytest.mark.parametrize(
    "change",
    [
        {"count": np.int64(3)},
        {"rate": 1},
        {"rate": np.float32(0.5)},
        {"way": "left"},
        {"perhaps": 2.0},
        {"pairs": ()},
        {"ramp": (0.5, 7.0, 8.0)},
        {"span": (1, 1)},
        {"seed": 2**32 - 1},
        {"text": "a\u2028striped\tmug\n\u00e9\U0001f600"},
    ],
)
def test_what_is_right_passes(change):
    bounds.check(replace(Kinds(), **change))


NO_OPTIONS = (bounds.Range, bounds.Items, bounds.Words, bounds.Rising)


def configs():
    """All frozen dataclasses of the package that are no pytrees: what a person may write."""
    for module in pkgutil.walk_packages(jax3d.__path__, "jax3d."):
        for kind in vars(importlib.import_module(module.name)).values():
            own = isinstance(kind, type) and kind.__module__ == module.name
            frozen = own and is_dataclass(kind) and kind.__dataclass_params__.frozen
            if frozen and not hasattr(kind, "_flax_dataclass") and kind not in NO_OPTIONS:
                yield kind


def unbound(hint, bound=False):
    """The number types in an annotation that no range binds."""
    extras = getattr(hint, "__metadata__", ())
    bound = bound or any(isinstance(extra, Range | Items) for extra in extras)
    if typing.get_origin(hint) is Annotated:
        return unbound(typing.get_args(hint)[0], bound)
    if typing.get_origin(hint) in (Literal, Mapping):  # a job's knobs are bound by their names
        return []
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        return [one for each in bounds.hints(hint).values() for one in unbound(each)]
    if hint in (int, float):
        return [] if bound else [hint]
    return [one for each in typing.get_args(hint) for one in unbound(each, bound)]


def test_no_number_of_a_config_is_without_a_bound():
    found = list(configs())
    assert {Recipe, KnobValues, EngineConfig, PriorTraining, UNetConfig, VSDConfig} <= set(found)
    free = [
        f"{kind.__module__}.{kind.__name__}.{name}"
        for kind in found
        for name, hint in bounds.hints(kind).items()
        if unbound(hint)
    ]
    assert free == []


def test_an_unbound_number_would_be_found():
    assert unbound(int) == [int]
    assert unbound(tuple[float, ...] | None) == [float]
    assert unbound(tuple[Pair, ...]) == []
    assert unbound(Annotated[tuple[float, ...], Items((1,), (Range(),))]) == []
