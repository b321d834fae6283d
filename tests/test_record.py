"""Records: a recipe and back, null for what is no number, and no trust in what a file says."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax3d import recipe, record
from jax3d.fields.mlp import MlpConfig
from jax3d.guidance.vsd import VSDConfig
from jax3d.mesh import MeshConfig
from jax3d.recipe import KnobValues, Recipe

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
RECIPES = {p.stem: p for p in CONFIGS if "recipe = Recipe(" in p.read_text()}
SOUND = {
    "index": 0,
    "prompt": "a red chair",
    "seed": 1,
    "steps": 4,
    "status": "done",
    "knobs": {},
    "critic": "a critic",
    "model_flops": 1,
    "seconds": {"optimize": 1.0, "finish": 2},
    "recipe": record.encode(Recipe()),
    "metrics": {},
    "errors": {},
    "files": {"mesh.glb": {"bytes": 3, "sha256": "ab"}},
    "versions": {},
}


def there_and_back(value):
    return record.recipe_from_json(json.loads(record.dumps(record.encode(value))))


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_is_read_back(name):
    found = recipe.load(RECIPES[name])
    assert there_and_back(found) == found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"field": MlpConfig()},
        {"guidance": VSDConfig()},
        {"negative": "ein «Stuhl»\n\ud800"},
        {"mesh": MeshConfig(level=3.5)},
        {"mesh": MeshConfig(level=None)},
        {"knobs": KnobValues(lr=(1.0, 0.1), t_max=(0.98, 0.5, 10.0, 20.0))},
    ],
)
def test_a_recipe_is_read_back(changes):
    mine = dataclasses.replace(Recipe(), **changes)
    assert there_and_back(mine) == mine


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**53))
def test_numbers_are_read_back_exactly(level, faces):
    mine = dataclasses.replace(Recipe(), mesh=MeshConfig(level=level, faces=faces))
    assert there_and_back(mine) == mine


def changed(path, value):
    data = json.loads(record.dumps(record.encode(Recipe())))
    *parents, last = path
    place = data
    for name in parents:
        place = place[name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["field"], {}, r"recipe\.field is None; expected TriplaneConfig or MlpConfig"),
        (["field"], None, r"recipe\.field is None"),
        (["field", "kind"], "HashConfig", r"recipe\.field is 'HashConfig'"),
        (["field", "resolution"], "64", r"recipe\.field\.resolution is '64'; expected int"),
        (["field", "resolution"], 64.0, r"recipe\.field\.resolution is 64\.0; expected int"),
        (["field", "resolution"], True, r"recipe\.field\.resolution is True; expected int"),
        (["field", "resolution"], KeyError, r"recipe\.field lacks the field 'resolution'"),
        (["field", "resolutoin"], 1, r"recipe\.field has an unknown field 'resolutoin'"),
        (["field", "bound"], None, r"recipe\.field\.bound is None; expected float"),
        (["field", "normals"], "smooth", r"recipe\.field\.normals is 'smooth'"),
        (["optimize", "stages"], 3, r"recipe\.optimize\.stages is 3"),
        (["optimize", "stages", 0], [1, 2, 3], r"recipe\.optimize\.stages\[0\]"),
        (["optimize", "stages", 0], ["a", 2], r"recipe\.optimize\.stages\[0\]\[0\] is 'a'"),
        (["knobs", "background"], [1.0, 1.0], r"recipe\.knobs\.background is \[1\.0, 1\.0\]"),
        (["knobs", "lr"], [None], r"recipe\.knobs\.lr\[0\] is None; expected float"),
        (["mesh", "level"], "high", r"recipe\.mesh\.level is 'high'; expected float or None"),
        (["mesh"], [], r"recipe\.mesh is \[\]; expected a MeshConfig"),
        (["kind"], "Job", r"recipe is "),
    ],
)
def test_another_recipe_is_refused_by_its_field(path, value, message):
    with pytest.raises(ValueError, match=message):
        record.recipe_from_json(changed(path, value))


@pytest.mark.parametrize("data", [None, [], {}, 3, "x", {"kind": []}, {"kind": "Recipe"}])
def test_what_is_no_recipe_is_refused(data):
    with pytest.raises(ValueError, match="recipe"):
        record.recipe_from_json(data)


def test_what_is_no_number_becomes_null():
    value = {
        "a": math.nan,
        "b": [math.inf, (-math.inf, 1.5)],
        "c": np.float64("nan"),
        "d": {"e": 1},
    }
    text = record.dumps(value)
    assert json.loads(text) == {"a": None, "b": [None, [None, 1.5]], "c": None, "d": {"e": 1}}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_sound_record_is_read(tmp_path):
    (tmp_path / "asset.json").write_text(record.dumps(SOUND))
    assert record.read(tmp_path / "asset.json") == json.loads(record.dumps(SOUND))


UNREADABLE = [b"", b"{", b"\xff\xfe{}", b'{"a": 1', b"[" * 100_000, b"\x00" * 100, b"{} {}"]
FOREIGN = ["null", "{}", "[]", "3", '"text"', '{"name": "a package"}']


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_file_that_cannot_be_read_is_told_by_its_path(tmp_path, content):
    path = tmp_path / "asset.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"asset\.json cannot be read: it is truncated or no JSON"):
        record.read(path)


@pytest.mark.parametrize("content", FOREIGN)
def test_a_foreign_file_is_told_by_its_path(tmp_path, content):
    path = tmp_path / "asset.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"asset\.json (holds|is no record of an asset)"):
        record.read(path)


@pytest.mark.parametrize("name", record._MEMBERS)
@pytest.mark.parametrize("value", [KeyError, None, 1.5])
def test_every_member_of_a_record_is_demanded(tmp_path, name, value):
    found = {k: v for k, v in SOUND.items() if k != name}
    (tmp_path / "asset.json").write_text(
        record.dumps(found if value is KeyError else found | {name: value})
    )
    with pytest.raises(ValueError, match=f"asset.json is no record of an asset: '{name}'"):
        record.read(tmp_path / "asset.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "perfect"},
        {"status": "running"},
        {"seconds": {}},
        {"seconds": {"optimize": "1", "finish": 1}},
        {"files": {"mesh.glb": 3}},
        {"files": {"mesh.glb": {"bytes": 3}}},
        {"files": {"mesh.glb": {"bytes": "3", "sha256": ""}}},
        {"files": {"../../etc/passwd": {"bytes": 3, "sha256": ""}}},
        {"files": {"..": {"bytes": 3, "sha256": ""}}},
        {"files": {"": {"bytes": 3, "sha256": ""}}},
    ],
)
def test_words_of_a_record_are_checked(tmp_path, changes):
    (tmp_path / "asset.json").write_text(record.dumps(SOUND | changes))
    with pytest.raises(ValueError, match=r"asset\.json (is no record|has the status)"):
        record.read(tmp_path / "asset.json")


@pytest.mark.parametrize(
    ("job", "difference"),
    [
        (("a red chair", 1, Recipe()), None),
        (("a red chair", 1, dataclasses.replace(Recipe(), mesh=MeshConfig(faces=9))), None),
        (("a blue chair", 1, Recipe()), "prompt"),
        (("a red chair", 2, Recipe()), "seed"),
        (("a red chair", 1, Recipe().with_steps(7)), "optimize"),
        (("a red chair", 1, dataclasses.replace(Recipe(), negative="x")), "negative"),
        (("a red chair", 1, dataclasses.replace(Recipe(), field=MlpConfig())), "field"),
        (("a red chair", 1, dataclasses.replace(Recipe(), knobs=KnobValues(lr=(2.0,)))), "knobs"),
    ],
)
def test_a_record_is_compared_with_the_job(job, difference):
    said = record.answers(json.loads(record.dumps(SOUND)), record.asked(*job))
    assert (said is None) if difference is None else (difference in said)
