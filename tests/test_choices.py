"""`choices.json`: one file that people, scripts and git read; no change is lost unseen."""

import json

import pytest

from jax3d import choices
from jax3d.choices import Choice


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / choices.NAME
    made = {"0001-b": Choice("star", 'a "note"\nof two lines ☃', 2), "0000-a": Choice(None, "", 1)}
    choices.write(path, made)
    assert choices.read(path) == made
    lines = path.read_text().splitlines()
    assert [line[:8] for line in lines[1:3]] == ['"0000-a"', '"0001-b"']  # git merges lines
    assert json.loads(path.read_text())["assets"]["0001-b"]["choice"] == "star"


def test_a_script_may_leave_out_all_but_the_choice(tmp_path):
    path = tmp_path / choices.NAME
    path.write_text('{"version": 1, "assets": {"0000-a": {"choice": "keep"}}}')
    assert choices.read(path) == {"0000-a": Choice("keep", "", 0)}


def of(entry):
    return json.dumps({"version": 1, "assets": {"0000-a": entry}})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "truncated or no JSON"),
        ("[" * 100_000, "truncated or no JSON"),
        ("[]", "holds no choices"),
        ('{"version": 2, "assets": {}}', "holds no choices"),
        ('{"version": 1}', "'assets' is missing"),
        ('{"version": 1, "assets": {"../up": {"choice": "keep"}}}', "no folder of an asset"),
        (of("keep"), "expected a choice and a note"),
        (of({"note": "x"}), "expected a choice and a note"),
        (of({"choice": "keep", "stars": 3}), "expected a choice and a note"),
        (of({"choice": "kept"}), "'kept'; expected keep, reject, star or null"),
        (of({"choice": ["keep"]}), "expected keep, reject, star or null"),
        (of({"choice": "keep", "note": 3}), "note is 3; expected a text"),
        (of({"choice": "keep", "note": "\x1b[2J"}), "without control characters"),
        (of({"choice": "keep", "revision": -1}), "revision is -1"),
        (of({"choice": "keep", "revision": True}), "revision is True"),
    ],
)
def test_another_file_is_told(tmp_path, text, told):
    path = tmp_path / choices.NAME
    path.write_text(text)
    with pytest.raises(ValueError, match=r"choices\.json") as error:
        choices.read(path)
    assert told in str(error.value)


def test_changes_of_different_assets_do_not_meet():
    made = choices.changed({}, "0000-a", Choice("keep"))
    made = choices.changed(made, "0001-b", Choice("reject"))
    assert made == {"0000-a": Choice("keep", "", 1), "0001-b": Choice("reject", "", 2)}


def test_a_change_of_what_is_no_longer_so_is_refused():
    made = choices.changed({}, "0000-a", Choice("keep"))
    with pytest.raises(choices.Stale, match="changed elsewhere meanwhile: it is keep now") as error:
        choices.changed(made, "0000-a", Choice("reject", "", 0))
    assert error.value.current == Choice("keep", "", 1)
    assert choices.changed(made, "0000-a", Choice("keep", "", 0)) == made  # both want the same
    made = choices.changed(made, "0000-a", Choice(None, "", 1))
    assert made == {"0000-a": Choice(None, "", 2)}


def test_nothing_is_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for name in (choices.NAME, f"{choices.NAME}.new"):
        (tmp_path / name).symlink_to(victim)
    choices.write(tmp_path / choices.NAME, {})
    assert victim.read_text() == "kept"
    assert choices.read(tmp_path / choices.NAME) == {}
