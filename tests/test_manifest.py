"""Manifests: read from both formats alike, and every mistake named with its line."""

import pytest

from jax3d import manifest
from jax3d.manifest import Job
from jax3d.recipe import Recipe

JOBS = [
    Job("a red chair", 7),
    Job("a blue mug", 3, knobs={"guidance_scale": (20.0,)}),
    Job("a green car", 9, steps=50, negative="a boat", knobs={"lr": (1.0, 0.1)}),
]


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_both_formats_say_the_same(tmp_path):
    lines = (
        '{"prompt": "a red chair"}\n\n'
        '{"prompt": "a blue mug", "seed": 3, "guidance_scale": 20}\n'
        '{"prompt": "a green car", "steps": 50, "negative": "a boat", "lr": [1, 0.1]}\n'
    )
    rows = (
        "prompt,seed,guidance_scale,steps,negative,lr\n"
        "a red chair,,,,,\n"
        '"a blue mug",3,20,,,\n'
        "a green car,,,50,a boat,1 0.1\n"
    )
    assert manifest.read(written(tmp_path, "a.jsonl", lines), 7) == JOBS
    assert manifest.read(written(tmp_path, "a.csv", rows), 7) == JOBS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a chair", "sed": 1}', "line 2: unknown field 'sed'.*nearest: 'seed'"),
        ('{"seed": 1}', "line 2: no prompt"),
        ('{"prompt": " "}', "line 2: no prompt"),
        ('{"prompt": "a chair", "seed": -1}', "line 2: seed is -1"),
        ('{"prompt": "a chair", "seed": 1.5}', "line 2: seed is 1.5"),
        ('{"prompt": "a chair", "steps": 0}', "line 2: steps is 0"),
        ('{"prompt": "a chair", "lr": "fast"}', "line 2: lr is 'fast'"),
        ('{"prompt": "a chair", "lr": NaN}', "line 2: lr is nan; expected finite"),
        ('{"prompt": "a chair", "negative": 3}', "line 2: negative is 3"),
        ('{"prompt": ', "line 2: not JSON"),
        ('["a chair"]', "line 2: expected an object"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, line, message):
    path = written(tmp_path, "m.jsonl", '{"prompt": "a red chair"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"m\.jsonl, {message}"):
        manifest.read(path)


def test_mistakes_of_a_whole_file(tmp_path):
    with pytest.raises(ValueError, match="names no asset"):
        manifest.read(written(tmp_path, "e.jsonl", "\n"))
    with pytest.raises(ValueError, match=r"expected a \.jsonl or \.csv"):
        manifest.read(written(tmp_path, "m.txt", "a red chair\n"))
    with pytest.raises(ValueError, match="line 2: not as many cells"):
        manifest.read(written(tmp_path, "m.csv", "prompt,seed\na chair,1,2\n"))
    with pytest.raises(OSError, match="nowhere"):
        manifest.read(tmp_path / "nowhere.csv")


def test_a_grid_is_every_combination():
    jobs = manifest.grid(
        prompt=["a red chair", "a cat"], guidance_scale=[7.5, (30, 10)], seed=range(2)
    )
    assert len(jobs) == 8
    assert jobs[1] == Job("a red chair", 1, knobs={"guidance_scale": (7.5,)})
    assert jobs[7] == Job("a cat", 1, knobs={"guidance_scale": (30.0, 10.0)})
    with pytest.raises(ValueError, match="unknown field 'color'"):
        manifest.grid(prompt=["a cat"], color=["red"])


def test_a_job_overrides_the_recipe():
    recipe = JOBS[2].recipe(Recipe())
    assert recipe.steps == 50
    assert recipe.negative == "a boat"
    assert recipe.knobs.lr == (1.0, 0.1)
    assert recipe.knobs.guidance_scale == Recipe().knobs.guidance_scale
    assert JOBS[0].recipe(Recipe()) == Recipe()
    with pytest.raises(ValueError, match=r"knobs\.lr has 3 numbers"):
        Job("a cat", knobs={"lr": (1.0, 2.0, 3.0)}).recipe(Recipe()).knobs_of(0)


def test_chunks_hold_every_asset_once():
    assert manifest.chunks(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert manifest.chunks(0, 3) == []
    with pytest.raises(ValueError, match="chunk is 0"):
        manifest.chunks(7, 0)
