"""What a setting may be, and the one place where settings are held to it.

A config is a frozen dataclass whose numbers say their range beside their type:

    views: Count = 4
    grey: Annotated[tuple[Share, Share], RISING] = (0.25, 1.0)
    fovy: Annotated[float, Range(above=0, below=180)] = 42.0

`check` walks it where it enters the program, before anything is allocated or compiled, and names
what is wrong as the command line spells it. A rule that binds several fields is the config's own:
a method `mistake()` that returns what is wrong as a text, or None.
"""

import dataclasses
import math
import numbers
import typing
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union

INT32 = 2**31 - 1
FLOAT32 = (1.17549435e-38, 3.40282347e38)
"""Magnitudes between which a number keeps its digits on a device."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, and between `above` and `below`, excluded."""

    low: int | float = -math.inf
    high: int | float = math.inf
    above: int | float = -math.inf
    below: int | float = math.inf

    def __contains__(self, x: numbers.Real) -> bool:
        included = bool(self.low <= x <= self.high)
        return included and self._past(x, self.above, 1) and self._past(x, self.below, -1)

    @staticmethod
    def _past(x: numbers.Real, end: int | float, sign: int) -> bool:
        return math.isinf(end) or bool(sign * x > sign * end)

    def words(self, far: bool) -> str:
        """The range, as in "a number from 0 to 1"; `far` tells the limit of int32 as well."""
        high = math.inf if self.high == INT32 and not far else self.high
        below = "and below" if self.above > -math.inf else "below"
        below = "to below" if self.low > -math.inf else below
        ends = {
            "from": self.low,
            "above": self.above,
            "to" if self.low > -math.inf else "up to": high,
            below: self.below,
        }
        told = [f"{word} {end:.12g}" for word, end in ends.items() if not math.isinf(end)]
        return " ".join([*told, "on"] if len(told) == 1 and self.low > -math.inf else told)


@dataclass(frozen=True)
class Items:
    """How many items a tuple may have, and what each may be."""

    lengths: tuple[int, ...]
    ranges: tuple[Range, ...]
    """As many as the greatest length."""


@dataclass(frozen=True)
class Rising:
    """Items of a tuple that do not fall: the two ends of a range."""


@dataclass(frozen=True)
class Words:
    """A text for people and networks: whole characters, none that steers a terminal."""

    most: int = 10_000
    """Characters."""


RISING, TEXT = Rising(), Words()

Count = Annotated[int, Range(1, INT32)]
"""How many, at least one: fits int32, in which devices count."""
Natural = Annotated[int, Range(0, INT32)]
"""How many, or none."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(0)]
Finite = Annotated[float, Range()]
"""Any number at all, said so on purpose."""
Text = Annotated[str, TEXT]


def check(config: Any, name: str = "") -> None:
    """Holds every option of a config, at any depth, to its type and its bounds.

    Args:
      config: A dataclass or NamedTuple; fields that are such, or tuples of such, are walked.
      name: Of the config itself among the options: `check(EngineConfig(), "engine")`.

    Raises:
      ValueError: The message names the option as the command line spells it, its value, and what
        it takes: `--mesh.faces is 0; expected a whole number from 4 on`.
    """
    for field, hint in hints(type(config)).items():
        value = getattr(config, field)
        option = _option(name, field, hint)
        check_value(value, hint, _spelled(option))
        parts = {f"{option}.{k}": part for k, part in enumerate(value)} if _is_row(value) else {}
        for where, part in {option: value, **parts}.items():
            if _has_fields(part):
                check(part, where)
    told = config.mistake() if hasattr(config, "mistake") else None
    if told is not None:
        raise ValueError(_spelled(f"{name}.{told}" if name else told))


def check_value(value: Any, hint: Any, name: str) -> None:
    """Holds one value to an annotated type; raises `ValueError` that calls it `name`."""
    mistake = _mistake(value, hint)
    if mistake is not None:
        raise ValueError(f"{name} {mistake}")


@lru_cache
def hints(kind: type) -> dict[str, Any]:
    """The annotated types of a dataclass's or NamedTuple's fields, by name."""
    found = typing.get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        return {field.name: found[field.name] for field in dataclasses.fields(kind)}
    return {field: found[field] for field in kind._fields}


def _option(prefix: str, field: str, hint: Any) -> str:
    """What the command line calls a field: `tyro.conf.arg(name=...)` may rename it."""
    renamed = [extra.name for extra in _extras(hint) if hasattr(extra, "name")]
    own = next((one for one in renamed if one is not None), field)
    return ".".join(filter(None, (prefix, own)))


def _spelled(told: str) -> str:
    """A message, or an option alone, that begins with the option as the command line spells it."""
    option, *rest = told.split(" ", 1)
    return " ".join([f"--{option.replace('_', '-')}", *rest])


def _has_fields(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or hasattr(value, "_fields")


def _is_row(value: Any) -> bool:
    """Whether it is a plain tuple, whose parts the command line numbers."""
    return isinstance(value, tuple) and not hasattr(value, "_fields")


def _extras(hint: Any) -> tuple:
    return getattr(hint, "__metadata__", ())


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _mistake(value: Any, hint: Any) -> str | None:
    """What is wrong with a value, to be read after its name; None where nothing is."""
    bare, extras = _bare(hint), _extras(hint)
    origin = typing.get_origin(bare)
    if origin in (Union, UnionType):
        return _mistake_of_all(value, typing.get_args(bare))
    if origin is Literal:
        one_of = ", ".join(map(str, typing.get_args(bare)))
        return (
            None
            if value in typing.get_args(bare)
            else f"is {shown(value)}; expected one of {one_of}"
        )
    if bare in (int, float):
        return _mistake_of_number(value, bare, extras)
    if bare is str:
        return _mistake_of_text(value, extras)
    if origin is tuple:
        return _mistake_of_tuple(value, typing.get_args(bare), extras)
    if isinstance(bare, type) and not isinstance(value, bare):
        return f"is {shown(value)}; expected {_WORDS.get(bare, f'a {bare.__name__}')}"
    return None


_WORDS = {bool: "True or False", NoneType: "None"}


def _mistake_of_all(value: Any, alternatives: tuple) -> str | None:
    found = [_mistake(value, one) for one in alternatives if one is not NoneType]
    optional = NoneType in alternatives
    if None in found or (value is None and optional):
        return None
    return found[0] + (" or None" if optional else "")


def _mistake_of_number(value: Any, kind: type, extras: tuple) -> str | None:
    bounds = next((extra for extra in extras if isinstance(extra, Range)), Range())
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int:
        expected, fits = "a whole number", real and isinstance(value, numbers.Integral)
    elif real and not math.inf > abs(value):
        expected, fits = "a finite number", False
    elif real and value != 0 and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
        expected, fits = "a number that float32 holds,", False
    else:
        expected, fits = "a number", real
    if fits and value in bounds:
        return None
    range_in_words = bounds.words(far=real and bool(value > bounds.high))
    return f"is {shown(value)}; expected {expected} {range_in_words}".rstrip(" ,")


def _mistake_of_text(value: Any, extras: tuple) -> str | None:
    if not isinstance(value, str):
        return f"is {shown(value)}; expected a text"
    if TEXT not in extras:
        return None
    if len(value) > TEXT.most:
        return f"has {len(value)} characters; expected up to {TEXT.most}"
    strange = next((c for c in value if unicodedata.category(c) == "Cs"), None)
    if strange is not None:
        return f"is {shown(value)}; expected a text, and {strange!r} is half a character"
    strange = next((c for c in value if unicodedata.category(c) == "Cc" and not c.isspace()), None)
    if strange is not None:
        return f"is {shown(value)}; expected a text without control characters such as {strange!r}"
    return None


def _mistake_of_tuple(value: Any, kinds: tuple, extras: tuple) -> str | None:
    if not isinstance(value, tuple):
        return f"is {shown(value)}; expected a tuple"
    items = next((extra for extra in extras if isinstance(extra, Items)), None)
    lengths = (len(kinds),) if items is None else items.lengths
    if kinds[-1:] == (Ellipsis,):
        kinds = kinds[:1] * len(value)
        lengths = None if items is None else items.lengths
    if lengths is not None and len(value) not in lengths:
        several = " or ".join(", ".join(map(str, lengths)).rsplit(", ", 1))
        return f"has {len(value)} numbers; expected {several}"
    if items is not None:
        ranges = items.ranges[: len(value)]
        kinds = [Annotated[kind, each] for kind, each in zip(kinds, ranges, strict=True)]
    found = (_mistake(item, kind) for item, kind in zip(value, kinds, strict=True))
    told = next((told for told in found if told), None)
    if told is not None:
        return f"holds {told.removeprefix('is ').removeprefix('holds ')}"
    if RISING in extras and any(a > b for a, b in pairwise(value)):
        return f"is {shown(value)}; expected the lower end first"
    return None


def shown(value: Any) -> str:
    """A value as messages show it, on one line, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a number of about {int(value.bit_length() * math.log10(2))} digits"
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"
