"""What a person makes of the assets of a folder: `choices.json`.

    {"version": 1, "assets": {
    "0000-a-red-chair": {"choice": "keep", "note": "", "revision": 3},
    "0001-a-blue-mug": {"choice": "reject", "note": "no handle", "revision": 4}
    }}

An asset is named by its folder. Its choice is `keep`, `reject`, `star` (which keeps it, too) or
null, where one was taken back; an asset that is not named was not judged. Each stands on a line of
its own, so that git merges the choices of two people. `revision` is the number of the change that
made it, over all assets; a file that a script writes may leave out `note` and `revision`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

from etils import epath

from jax3d import bounds, gallery
from jax3d.bounds import Range, Text

NAME = "choices.json"
Verdict = Literal["keep", "reject", "star"]
KEPT = ("keep", "star")
VERSION = 1


class Choice(NamedTuple):
    """What became of one asset."""

    choice: Verdict | None = None
    """None where it was taken back."""
    note: Text = ""
    revision: Annotated[int, Range(0, 2**53 - 1)] = 0
    """Of the change that made it; greater than that of any change before."""

    @property
    def kept(self) -> bool:
        """Whether the asset is to be used."""
        return self.choice in KEPT


Choices = Mapping[str, Choice]


class Stale(ValueError):
    """Somebody else has changed the choice meanwhile; `current` is what it is now."""

    def __init__(self, asset: str, current: Choice):
        super().__init__(
            f"{asset} was changed elsewhere meanwhile: it is {current.choice or 'not judged'} now"
        )
        self.current = current


def read(path: epath.PathLike) -> dict[str, Choice]:
    """The choices in a file, by asset.

    Raises:
      ValueError: The file holds no choices; the message names the asset and the mistake.
      OSError: It cannot be read; `FileNotFoundError` where there is none.
    """
    try:
        data = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: it is truncated or no JSON ({error})") from None
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise ValueError(
            f'{path} holds no choices: expected {{"version": {VERSION}, "assets": ..}}'
        )
    if not isinstance(data.get("assets"), dict):
        raise ValueError(f"{path} holds no choices: 'assets' is missing or no object")
    return {name: _choice(name, about, path) for name, about in data["assets"].items()}


def _choice(name: str, about: Any, path: epath.PathLike) -> Choice:
    if not gallery.is_safe(name):
        raise ValueError(f"{path}: {bounds.shown(name)} is no folder of an asset")
    if not isinstance(about, dict) or "choice" not in about or {*about} - {*Choice._fields}:
        raise ValueError(f"{path}: {name} is {bounds.shown(about)}; expected a choice and a note")
    choice = Choice(**about)
    check(choice, f"{path}: {name}")
    return choice


def check(choice: Choice, where: str) -> None:
    """Raises `ValueError` for what is no choice, whatever the types of its parts."""
    kinds = bounds.hints(Choice)
    if choice.choice is not None and choice.choice not in get_args(Verdict):
        named = ", ".join(get_args(Verdict))
        raise ValueError(f"{where} is {bounds.shown(choice.choice)}; expected {named} or null")
    bounds.check_value(choice.note, kinds["note"], f"{where}: note")
    bounds.check_value(choice.revision, kinds["revision"], f"{where}: revision")


def changed(choices: Choices, asset: str, wanted: Choice) -> dict[str, Choice]:
    """The choices after one change.

    Args:
      choices: All that there are.
      asset: The folder.
      wanted: What it shall be; its revision is that which the person saw, 0 for none.

    Raises:
      Stale: The asset's choice is another one by now. A change that makes no difference is none.
    """
    current = choices.get(asset, Choice())
    if current[:2] == wanted[:2]:
        return dict(choices)
    if current.revision != wanted.revision:
        raise Stale(asset, current)
    return {**choices, asset: wanted._replace(revision=latest(choices) + 1)}


def latest(choices: Choices) -> int:
    """The revision of the last change; 0 where there was none."""
    return max((choice.revision for choice in choices.values()), default=0)


def write(path: epath.PathLike, choices: Choices) -> None:
    """Writes the file, which is there whole or not at all; never through a link."""
    path = epath.Path(path)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.write_text(dumps(choices), encoding="utf-8")
    fresh.replace(path)


def dumps(choices: Choices) -> str:
    """The text of the file, assets by name."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(choice._asdict())}"
        for name, choice in sorted(choices.items())
    )
    return f'{{"version": {VERSION}, "assets": {{\n' + ",\n".join(lines) + "\n}}\n"
