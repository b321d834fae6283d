"""The ledger: no cell runs, no row is lost, whatever the records hold."""

import csv

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from jax3d import ledger

RECORD = {
    "index": 0,
    "prompt": "a red chair",
    "seed": 7,
    "steps": 40,
    "status": "done",
    "knobs": {"lr": [1.0, 0.5]},
    "metrics": {"color": 0.5, "faces": 3},
    "model_flops": 2e12,
    "seconds": {"optimize": 1.5, "finish": 2.0},
}


def written(out, *records):
    """The cells of the ledger of some records, by column."""
    rows = [ledger.row(f"{k:04d}-a", record) for k, record in enumerate(records)]
    with open(ledger.write(out, rows), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "\ta chair",
    "\ra chair",
    " =1+1",
    "\u3000=1+1",
    "＝1+1",
    "-inf",
    "- a chair",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://a.b";"c")',
    "'=1+1",
    "'a chair'",
]
PLAIN = ["a red chair", "a = b", "7", "-7.5", "+1e-05", "", "a\nb", 'a "red", chair', "椅子"]


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("field", ["prompt", "status", "error", "path", "metric"])
def test_no_text_is_run_by_a_spreadsheet(tmp_path, text, field):
    row = ledger.row("0000-a", RECORD) | {field: text}
    with open(ledger.write(tmp_path, [row]), newline="", encoding="utf-8") as file:
        (found,) = csv.DictReader(file)
    assert found[field] == f"'{text}"
    assert ledger.text_of(found[field]) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_and_numbers_stay_as_they_are(tmp_path, text):
    (found,) = written(tmp_path, RECORD | {"prompt": text})
    assert found["prompt"] == text
    assert ledger.text_of(found["prompt"]) == text


def test_a_column_named_by_a_formula_is_no_formula(tmp_path):
    (found,) = written(tmp_path, RECORD | {"metrics": {"=1+1": 1}})
    assert found["'=1+1"] == "1"


@settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_any_text_is_read_back(tmp_path, text):
    (found,) = written(tmp_path, RECORD | {"prompt": text})
    assert ledger.text_of(found["prompt"]) == text
    assert not found["prompt"].lstrip().startswith(("=", "@"))


@pytest.mark.parametrize(
    ("change", "cells"),
    [
        ({}, {"color": "0.5", "lr": "1 0.5", "device_seconds": "1.5", "best": "", "error": ""}),
        ({"metrics": {"color": None}}, {"color": ""}),
        (
            {"metrics": None, "knobs": None, "seconds": None},
            {"device_seconds": "", "path": "0000-a"},
        ),
        ({"knobs": {"lr": [1.0, None]}}, {"lr": "1 nan"}),
        ({"seconds": {"optimize": None}}, {"device_seconds": "", "finish_seconds": ""}),
        ({"model_flops": None, "index": None}, {"model_flops": "", "index": ""}),
        ({"best": False}, {"best": "False"}),
        (
            {"errors": {"mesh": "empty", "video": "no\nffmpeg"}},
            {"error": "mesh: empty; video: no ffmpeg"},
        ),
        ({"errors": {}}, {"error": ""}),
        ({"prompt": "\ud800"}, {"prompt": "\\ud800"}),
    ],
)
def test_what_a_record_lacks_is_an_empty_cell(tmp_path, change, cells):
    (found,) = written(tmp_path, RECORD | change)
    assert {name: found[name] for name in cells} == cells


def test_rows_come_by_index_those_without_last(tmp_path):
    rows = written(tmp_path, {}, RECORD | {"index": 10}, RECORD | {"index": 2}, {"index": None})
    assert [row["path"] for row in rows] == ["0002-a", "0001-a", "0000-a", "0003-a"]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], "0 assets"),
        ([{}], "1 assets (1 unknown)"),
        (
            [RECORD, RECORD | {"seconds": {"optimize": 2.5, "finish": None}}],
            "2 assets (2 done); an asset: 2.00 device-seconds, 2e+12 model FLOPs, "
            "2.00 s to finish on the host, 0.0022 dollars",
        ),
        (
            [
                RECORD | {"status": "nonfinite", "errors": {"mesh": "empty"}},
                RECORD,
                {"status": "failed"},
            ],
            "3 assets (1 done, 1 failed, 1 nonfinite, 1 with an error); an asset: 1.50 device-",
        ),
        (
            [{"status": "done", "seconds": {"optimize": float("nan")}, "model_flops": 1e9}],
            "1 assets (1 done); an asset: 1e+09 model FLOPs",
        ),
    ],
)
def test_the_summary_counts_by_status(records, told):
    rows = [ledger.row("0000-a", record) for record in records]
    assert ledger.summary(rows, dollars_per_hour=4.0).startswith(told)
