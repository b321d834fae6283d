"""JSON that every reader takes."""

import json
import math

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jax3d import strict_json

NAN, INF = math.nan, math.inf


def strict(text):
    """What a reader that knows JSON alone makes of a text."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (NAN, None),
        ({"a": INF, "b": [1.5, -INF, (NAN, "c")]}, {"a": None, "b": [1.5, None, [None, "c"]]}),
        ({"a": {"b": {"c": [[NAN]]}}}, {"a": {"b": {"c": [[None]]}}}),
        ({1: True, None: None}, {"1": True, "None": None}),
        (np.float32("nan"), None),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.array([[1.0, NAN]]), [[1.0, None]]),
        (jnp.array([1.0, INF]), [1.0, None]),
        (jnp.float32(NAN), None),
        ("\ud800 caf\xe9", "\ud800 caf\xe9"),
    ],
)
def test_json_never_holds_what_is_no_number(value, read):
    text = strict_json.dumps(value)
    text.encode("ascii")
    assert strict(text) == read


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(VALUES)
def test_any_record_is_strict(value):
    assert strict_json.dumps(strict(strict_json.dumps(value))) == strict_json.dumps(value)


def test_another_kind_is_refused():
    with pytest.raises(TypeError, match="not JSON serializable"):
        strict_json.dumps({"a": object()})
