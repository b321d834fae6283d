"""JSON that every reader takes: numbers are finite, text is whole.

Python writes NaN and Infinity, which are no JSON: browsers and other languages refuse the file.
Here what is no finite number is null. Text is escaped to ASCII, halves of characters too.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def dumps(value: Any, indent: int | None = 1) -> str:
    """A value of mappings, sequences, NumPy's or JAX's arrays and plain values, as JSON text.

    Raises `TypeError` for a value of another kind.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, np.generic) or hasattr(value, "__array__"):
        return _finite(np.asarray(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
