"""Manifests: read from both formats alike, and every mistake named with its line."""

import codecs
import json
import re
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

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
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
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


LONG = "1" * 5000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a chair", "sed": 1}', "unknown field 'sed' (nearest: 'seed'; fields: prompt"),
        ('{"seed": 1}', "no prompt"),
        ('{"prompt": " "}', "no prompt"),
        ('{"prompt": "\\u2003\\n"}', "no prompt"),
        ('{"prompt": null}', "no prompt"),
        ('{"prompt": 3}', "prompt is 3; expected a text"),
        ('{"prompt": ["a chair"]}', "prompt is ['a chair']; expected a text"),
        ('{"prompt": true}', "prompt is True; expected a text"),
        ('{"prompt": "\\ud800"}', r"prompt is '\ud800'; expected a text, and '\ud800' is half"),
        ('{"prompt": "a\\u0000b"}', r"prompt is 'a\x00b'; expected a text without control"),
        ('{"prompt": "\\u001b[2J"}', r"prompt is '\x1b[2J'; expected a text without control"),
        (f'{{"prompt": "{"a " * 5001}"}}', "prompt has 10002 characters; expected up to 10000"),
        ('{"prompt": "a", "negative": 3}', "negative is 3; expected a text"),
        ('{"prompt": "a", "negative": "\\udfff"}', r"negative is '\udfff'"),
        ('{"prompt": "a", "seed": -1}', "seed is -1; expected a whole number from 0 to 4294967295"),
        ('{"prompt": "a", "seed": 4294967296}', "seed is 4294967296; expected a whole number"),
        ('{"prompt": "a", "seed": 1.5}', "seed is 1.5; expected a whole number"),
        ('{"prompt": "a", "seed": true}', "seed is True; expected a whole number"),
        ('{"prompt": "a", "seed": [7]}', "seed is [7]; expected a whole number"),
        ('{"prompt": "a", "seed": {}}', "seed is {}; expected a whole number"),
        ('{"prompt": "a", "seed": NaN}', "seed is NaN; expected a whole number"),
        ('{"prompt": "a", "seed": "old"}', "seed is 'old'; expected a whole number"),
        (f'{{"prompt": "a", "seed": {LONG}}}', "seed is 1111"),
        (f'{{"prompt": "a", "seed": -{LONG}}}', "seed is -1111"),
        (f'{{"prompt": "a", "lr": {LONG}}}', "lr holds inf; expected a finite number"),
        ('{"prompt": "a", "steps": 0}', "steps is 0; expected a whole number from 1 on"),
        ('{"prompt": "a", "steps": 1e400}', "steps is 1e400; expected a whole number"),
        ('{"prompt": "a", "steps": 2147483648}', "steps is 2147483648; expected a whole number"),
        ('{"prompt": "a", "lr": "fast"}', "lr is 'fast'; expected a number or several"),
        ('{"prompt": "a", "lr": true}', "lr is True; expected a number or several"),
        ('{"prompt": "a", "lr": [1, false]}', "lr is [1, False]; expected a number or several"),
        ('{"prompt": "a", "lr": [1, null]}', "lr is [1, None]; expected a number or several"),
        ('{"prompt": "a", "lr": [[1]]}', "lr is [[1]]; expected a number or several"),
        ('{"prompt": "a", "lr": {"start": 1}}', "lr is {'start': 1}; expected a number or several"),
        ('{"prompt": "a", "lr": NaN}', "lr holds nan; expected a finite number from 0 on"),
        ('{"prompt": "a", "lr": [1, -Infinity]}', "lr holds -inf; expected a finite number"),
        ('{"prompt": "a", "lr": 1e400}', "lr holds inf; expected a finite number"),
        ('{"prompt": "a", "lr": []}', "lr has 0 numbers; expected 1, 2 or 4"),
        ('{"prompt": "a", "lr": [1, 2, 3]}', "lr has 3 numbers; expected 1, 2 or 4"),
        ('{"prompt": "a", "lr": -1}', "lr holds -1.0; expected a number from 0 on"),
        ('{"prompt": "a", "t_max": [1.5, 0.2]}', "t_max holds 1.5; expected a number from 0 to 1"),
        ('{"prompt": "a", "t_max": [0.9, 0.5, 0, 8000]}', "t_max holds 8000.0; expected a number"),
        ('{"prompt": "a", "background": [1, 0]}', "background has 2 numbers; expected 3"),
        ('{"prompt": "a", "background": 1}', "background has 1 numbers; expected 3"),
        ('{"prompt": "a", "background": [0, 0, 255]}', "background holds 255.0"),
        ('{"prompt": "a", "prompt": "b"}', "key 'prompt' is there twice"),
        ('{"prompt": "a", "Seed": 1, "seed": 2}', "key 'seed' is there twice"),
        ('{"prompt": ', "not JSON: Expecting value"),
        ("{'prompt': 'a'}", "not JSON"),
        ('{"prompt": "a"}}', "not JSON: Extra data"),
        ('{"prompt": "a\tb"}', "not JSON: Invalid control character"),
        ('["a chair"]', "expected an object"),
        ("3", "expected an object"),
        ("null", "expected an object"),
        ('{"prompt": ' + "[" * 100_000, "too deep"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, line, message):
    path = written(tmp_path, "m.jsonl", '{"prompt": "a red chair"}\n' + line + "\n")
    told = rf"^manifest \S*m\.jsonl, line 2: [^\n]*{re.escape(message)}[^\n]*$"
    with pytest.raises(ValueError, match=told) as error:
        manifest.read(path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("prompt,seed\na chair,1,2\n", "line 2: 3 cells, and the header has 2: put a cell"),
        ("prompt\na chair, tall\n", "line 2: 2 cells, and the header has 1"),
        ("prompt,seed\na,1\nb,1.5\n", "line 3: seed is '1.5'; expected a whole number"),
        ('prompt,seed\n"a\nb",1\nc,x\n', "line 4: seed is 'x'"),
        ("prompt,seed\r\na,1\r\nb,x\r\n", "line 3: seed is 'x'"),
        ("prompt,seed\ra,1\rb,x\r", "line 3: seed is 'x'"),
        ("prompt,lr\na,NaN\n", "line 2: lr holds nan; expected a finite number"),
        ("prompt,lr\na,true\n", "line 2: lr is 'true'; expected a number or several"),
        ("prompt,lr\na,1 2 3\n", "line 2: lr has 3 numbers; expected 1, 2 or 4"),
        ('prompt,lr\na,"7,5"\n', "line 2: lr is '7,5'; expected a number or several"),
        ("prompt\tlr\na\t7,5\n", "line 2: lr is '7,5'; expected a number or several"),
        ("prompt;steps\na;1.000\n", "line 2: steps is 1.000: beside semicolons that may be 1000"),
        ("prompt;lr\na;0,5 7.500\n", "line 2: lr is 7.500: beside semicolons that may be 7500 or"),
        ("prompt,background\na,1 1\n", "line 2: background has 2 numbers; expected 3"),
        ("prompt,seed,Seed\na,1,2\n", "line 1: column 'seed' is there twice"),
        ("prompt,colour\na,red\n", "line 1: unknown field 'colour'"),
        ("a red chair,7\na blue mug,3\n", "line 1: unknown field 'a_red_chair'"),
        ("seed,steps\n1,2\n", "line 1: no column is named 'prompt'"),
        ("prompt,,seed\na,b,1\n", "line 2: column 2 has no name, but 'b'"),
        ('prompt\n"a\n', "line 2: not CSV: unexpected end of data"),
        ('prompt,seed\n"a"b,1\n', "line 2: not CSV"),
        ("prompt\n" + "a" * 200_000 + "\n", "line 2: not CSV: field larger than field limit"),
        ("prompt,seed\n,1\n", "line 2: no prompt"),
    ],
)
def test_a_mistake_in_a_row_is_told_with_its_line(tmp_path, rows, message):
    path = written(tmp_path, "m.csv", rows)
    with pytest.raises(ValueError, match=rf"^manifest \S*m\.csv, {re.escape(message)}"):
        manifest.read(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{}\n{}a caf\xe9".encode("cp1252"), "line 2: byte 0xe9 is no UTF-8; save the file as"),
        ("{}\n".encode("utf-16-le"), "line 1: a NUL character is no text; save the file as UTF-8"),
        (b"\xff\xfe{\x00}", "line 1: byte 0x7d is no UTF-16-LE"),
        (b"\xfe\xff\xd8\x00\x00a", "line 1: byte 0xd8 is no UTF-16-BE"),
        (b"\r\n\r\n\xed\xa0\x80", "line 3: byte 0xed is no UTF-8"),
        (b"\n{}\x00", "line 2: a NUL character is no text"),
        (b"", "names no asset"),
        (codecs.BOM_UTF8, "names no asset"),
        (b"\r\n \n\n", "names no asset"),
    ],
)
def test_what_is_no_text_is_told_by_its_line(tmp_path, kind, data, message):
    path = written(tmp_path, f"m.{kind}", data)
    with pytest.raises(ValueError, match=rf"m\.{kind},? {re.escape(message)}"):
        manifest.read(path)


def encoded(text):
    """A text as the systems of the world write it."""
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        for end in ("\n", "\r\n", "\r"):
            yield text.replace("\n", end).encode(encoding)
    for mark, encoding in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")):
        yield mark + text.encode(encoding)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", '{"prompt": "a café 🫖", "seed": 7}\n{"prompt": "b", "lr": [1, 0.5]}\n'),
        ("M.JSONL", '\n{"prompt": "a café 🫖", "seed": 7.0}\n\n{"prompt": "b", "LR": "1 0.5"}'),
        ("m.csv", "prompt,seed,lr\na café 🫖,7,\nb,,1 0.5\n"),
        ("M.CSV", "prompt;seed;lr\na café 🫖;7,0;\nb;;1 0,5\n"),
        ("m.csv", '"Prompt"\t SEED \tLr\na café 🫖\t7.0\nb\t\t1.0 5e-1\t\t\n\t\t\n'),
        ("m.csv", "\n\nPrompt,Seed,lr,,\na café 🫖,7,,,\nb,,1 .5\n,,,,\n\n"),
    ],
)
def test_files_are_read_as_people_have_them(tmp_path, name, text):
    for data in encoded(text):
        jobs = manifest.read(written(tmp_path, name, data))
        assert jobs == [Job("a café 🫖", 7), Job("b", 1, knobs={"lr": (1.0, 0.5)})]


BREAKS = [c for c in map(chr, range(0x3000)) if len(f"a{c}b".splitlines()) > 1]
"""All that Python takes for the end of a line."""


@pytest.mark.parametrize(
    ("gap", "escaped"),
    # JSON has control characters escaped.
    [(gap, True) for gap in BREAKS] + [(gap, False) for gap in BREAKS if gap > " "],
)
def test_every_line_break_may_stand_in_a_prompt(tmp_path, gap, escaped):
    line = json.dumps({"prompt": f"a{gap}b"}, ensure_ascii=escaped)
    assert manifest.read(written(tmp_path, "m.jsonl", line + "\n" + line)) == [
        Job(f"a{gap}b", 0),
        Job(f"a{gap}b", 1),
    ]
    cell = written(tmp_path, "m.csv", f'prompt,seed\n"a{gap}b",7\nc,8\n')
    assert manifest.read(cell) == [Job(f"a{gap}b", 7), Job("c", 8)]


@pytest.mark.parametrize(
    ("value", "whole"),
    [("7", 7), ("7.0", 7), ("70e-1", 7), ('"7"', 7), ('" 7.0 "', 7), ("4294967295.0", 2**32 - 1)],
)
def test_a_whole_number_is_one_however_it_is_written(tmp_path, value, whole):
    line = f'{{"prompt": "a", "seed": {value}, "steps": 7.0}}'
    rows = f"prompt,seed,steps\na,{value},7.0\n"
    for name, text in (("m.jsonl", line), ("m.csv", rows)):
        (job,) = manifest.read(written(tmp_path, name, text))
        assert (job.seed, job.steps) == (whole, 7)
        assert {type(job.seed), type(job.steps)} == {int}


def test_null_and_empty_are_not_given(tmp_path):
    line = json.dumps({"prompt": "a"} | dict.fromkeys(manifest.FIELDS[1:]))
    blank = json.dumps({"prompt": "a"} | dict.fromkeys(manifest.FIELDS[1:], " "))
    rows = ",".join(manifest.FIELDS) + "\na" + ", " * (len(manifest.FIELDS) - 1)
    for name, text in (("m.jsonl", line), ("m.jsonl", blank), ("m.csv", rows)):
        assert manifest.read(written(tmp_path, name, text), 5) == [Job("a", 5)]


def test_mistakes_of_a_whole_file(tmp_path):
    with pytest.raises(ValueError, match=r"m\.txt: expected a \.jsonl or \.csv"):
        manifest.read(written(tmp_path, "m.txt", "a red chair\n"))
    with pytest.raises(OSError, match="nowhere"):
        manifest.read(tmp_path / "nowhere.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OSError, match=r"folder\.csv"):
        manifest.read(tmp_path / "folder.csv")


@pytest.mark.parametrize(
    ("first", "count", "message"),
    [
        (-1, 1, "seed is -1; expected a whole number from 0 to 4294967295"),
        (2**32, 1, "seed is 4294967296; expected a whole number"),
        (2**32 - 1, 2, "seed is 4294967295: counting on from it, asset 2 would have 4294967296"),
        pytest.param(10**5000, 1, "seed is a number of about 5000 digits", id="5000 digits"),
    ],
)
def test_seeds_stay_within_32_bits(tmp_path, first, count, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        manifest.seeds(first, count)
    path = written(tmp_path, "m.jsonl", '{"prompt": "a"}\n' * count)
    with pytest.raises(ValueError, match=rf"m\.jsonl, line {count}: {re.escape(message)}"):
        manifest.read(path, first)


def test_seeds_count_on():
    assert manifest.seeds(7, 3) == range(7, 10)
    assert manifest.seeds(2**32 - 2, 2)[-1] == 2**32 - 1


def test_seeds_of_their_own_do_not_count_on(tmp_path):
    path = written(tmp_path, "m.jsonl", '{"prompt": "a"}\n{"prompt": "a", "seed": 3}\n')
    assert [job.seed for job in manifest.read(path, 2**32 - 1)] == [2**32 - 1, 3]


def test_a_grid_is_every_combination():
    jobs = manifest.grid(
        prompt=["a red chair", "a cat"], guidance_scale=[7.5, (30, 10)], seed=range(2)
    )
    assert len(jobs) == 8
    assert jobs[1] == Job("a red chair", 1, knobs={"guidance_scale": (7.5,)})
    assert jobs[7] == Job("a cat", 1, knobs={"guidance_scale": (30.0, 10.0)})
    arrays = manifest.grid(prompt=["a cat"], seed=np.arange(2), lr=np.array([[1, 0.5]]))
    assert arrays[1] == Job("a cat", 1, knobs={"lr": (1.0, 0.5)})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"prompt": ["a cat"], "color": ["red"]}, "unknown field 'color'"),
        ({"seed": [1]}, "no prompt"),
        ({"prompt": ["a cat"], "seed": [10**400]}, "seed is 1000"),
        ({"prompt": ["a cat"], "seed": [np.True_]}, "seed is np.True_"),
        ({"prompt": ["a cat"], "lr": [10**400]}, "lr is 1000.*; expected a number or several"),
        ({"prompt": ["a cat"], "t_min": [1.5]}, "t_min holds 1.5"),
    ],
)
def test_a_grid_holds_its_values_to_their_bounds(axes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        manifest.grid(**axes)


def test_a_job_overrides_the_recipe():
    recipe = JOBS[2].recipe(Recipe())
    assert recipe.steps == 50
    assert recipe.negative == "a boat"
    assert recipe.knobs.lr == (1.0, 0.1)
    assert recipe.knobs.guidance_scale == Recipe().knobs.guidance_scale
    assert JOBS[0].recipe(Recipe()) == Recipe()


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(" "), "no prompt"),
        (Job("a\x1b"), "prompt is"),
        (Job("a cat", -1), "seed is -1"),
        (Job("a cat", 2**32), "seed is 4294967296"),
        (Job("a cat", steps=0), "steps is 0"),
        (Job("a cat", negative="\ud800"), "negative is"),
        (Job("a cat", knobs={"lr": (1.0, 2.0, 3.0)}), "lr has 3 numbers; expected 1, 2 or 4"),
        (Job("a cat", knobs={"lr": (float("nan"),)}), "lr holds nan; expected a finite number"),
        (Job("a cat", knobs={"seed": (1.0,)}), "unknown knob 'seed'"),
        (Job("a cat", knobs={"t_min": (0.9,)}), r"t_min is 0\.9 where t_max is 0\.4, after 100%"),
        (Job("a cat", knobs={"t_max": (0.3, 0.05)}), r"t_min is 0\.1 where t_max is 0\.05"),
    ],
)
def test_a_job_is_held_to_what_its_recipe_can_make(job, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        job.check(Recipe())


TEN_THOUSAND = """
import sys, time
import jax.numpy
from jax3d import manifest
from jax3d.recipe import Recipe

jax.numpy.asarray = None  # what knobs are made of
started, recipe = time.process_time(), Recipe()
jobs = manifest.read(sys.argv[1])
for job in jobs:
    job.check(recipe)
print(len(jobs), time.process_time() - started)
"""


def test_ten_thousand_jobs_are_read_and_checked_in_seconds_without_a_device(tmp_path):
    line = '{{"prompt": "a red chair", "seed": {}, "lr": [1, 0.5], "steps": 560}}\n'
    path = written(tmp_path, "m.jsonl", "".join(map(line.format, range(10_000))))
    # In a process of its own: the type checks of tests take longer than what they check.
    told = subprocess.run(
        [sys.executable, "-c", TEN_THOUSAND, path], capture_output=True, text=True, check=True
    )
    jobs, seconds = told.stdout.split()
    assert int(jobs) == 10_000
    assert float(seconds) < 20  # some 3 s; their knobs as arrays take over a minute


def test_chunks_hold_every_asset_once():
    assert manifest.chunks(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert manifest.chunks(0, 3) == []
    with pytest.raises(ValueError, match="chunk is 0"):
        manifest.chunks(7, 0)


# ------------------------------------------------------------------------------------- fuzz

FUZZ = settings(
    derandomize=True,
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def outcome(path):
    """The jobs of a file, or None where it is refused as it should be."""
    jobs, told = None, None
    try:
        jobs = manifest.read(path)
    except ValueError as error:
        told = str(error)
    if told is not None:
        assert str(path) in told
        assert "\n" not in told.replace(str(path), "")
        assert len(told) < 1000
        told.encode()
        return None
    assert jobs
    assert all(isinstance(job, Job) for job in jobs)
    for job in jobs:
        assert job.prompt.strip()
        assert 0 <= job.seed < 2**32
        job.prompt.encode()
        for name, values in job.knobs.items():
            assert name in manifest.KNOBS
            assert np.isfinite(values).all()
    return jobs


MARKS = [
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\x00",
    b"\xe9",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
]
SIGNS = [bytes([c]) for c in b'{}[]":,;\t\r\n\\ -'] + [b"\\ud800", b"null", b"true", b"NaN"]
WORDS = [
    b"prompt",
    b"seed",
    b"lr",
    b"a red chair",
    b"1e999",
    b"7,5",
    b"prompt,seed\n",
    b"prompt;lr\n",
]
WHOLE = [b'{"prompt": "a"}', b'{"prompt": "a", "lr": ']
PIECES = st.sampled_from(MARKS + SIGNS + WORDS + WHOLE)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@FUZZ
@given(data=st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=20).map(b"".join)))
@example(data=b'{"prompt":"a","lr":' + b"[" * 100_000)
@example(data=b"prompt," * 100_000)
@example(data=b'{"prompt":"\\ud83e\\udef6"}')
def test_any_bytes_are_jobs_or_a_named_mistake(tmp_path, kind, data):
    outcome(written(tmp_path, f"fuzz.{kind}", data))


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(0, 2**33),
        st.floats(),
        st.floats(0, 1),
        st.text(max_size=20),
        st.sampled_from(["a red chair", "7.0", "1 0.5", "", " ", "1e400", "\ud800", "=1+1"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)
NAMES = st.sampled_from([*manifest.FIELDS, "Guidance Scale", " SEED ", "colour", ""])
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=4)


@FUZZ
@given(rows=ROWS, prompted=st.booleans())
def test_any_objects_are_jobs_or_a_named_mistake(tmp_path, rows, prompted):
    rows = [{"prompt": "a cat"} | row if prompted else row for row in rows]
    lines = "\n".join(map(json.dumps, rows))
    jobs = outcome(written(tmp_path, "fuzz.jsonl", lines))
    assert jobs is None or len(jobs) == len(rows)


CELLS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.floats().map(str),
    st.integers(0, 2**33).map(str),
    st.sampled_from(["a red chair", "7.0", "1 0.5", "1,5", "1.000", "", " ", "1e400", 'a"b']),
)


@FUZZ
@given(
    header=st.lists(NAMES, max_size=4),
    table=st.lists(st.lists(CELLS, max_size=6), max_size=4),
    delimiter=st.sampled_from(",;\t|"),
    quoted=st.booleans(),
)
def test_any_table_is_jobs_or_a_named_mistake(tmp_path, header, table, delimiter, quoted):
    def cell(text):
        return '"' + text.replace('"', '""') + '"' if quoted else text

    lines = [delimiter.join(map(cell, row)) for row in [["prompt", *header], *table]]
    jobs = outcome(written(tmp_path, "fuzz.csv", "\n".join(lines)))
    full = sum(any(map(str.strip, row)) for row in table)
    assert jobs is None or not quoted or delimiter == "|" or len(jobs) == full


@FUZZ
@given(
    prompt=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1),
    seed=st.integers(0, 2**32 - 1),
    lr=st.lists(st.floats(0, 2.0**99, allow_subnormal=False, width=32), min_size=2, max_size=2),
)
def test_what_a_job_says_is_read_back_from_both(tmp_path, prompt, seed, lr):
    if not prompt.strip():
        return
    expected = [Job(prompt, seed, knobs={"lr": tuple(lr)})]
    line = json.dumps({"prompt": prompt, "seed": seed, "lr": lr})
    quoted = prompt.replace('"', '""')
    rows = f'prompt,seed,lr\r\n"{quoted}",{seed},{lr[0]!r} {lr[1]!r}\r\n'
    assert manifest.read(written(tmp_path, "m.jsonl", line)) == expected
    assert manifest.read(written(tmp_path, "m.csv", rows)) == expected
