"""Resampling along an axis as torch does it, as matrices: networks learnt with its conventions.

Sample i of n lies at i; with corners not aligned, sample i of m lies at (i + 1/2) n / m - 1/2.
Cubic convolution: Keys 1981, eq. 14, with its a = -1/2 or with a = -3/4. Letters: n samples in, m
samples out.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float


def positions(n: int, m: int, ratio: float | None = None) -> Float[np.ndarray, " m"]:
    """Where the m samples lie, corners not aligned; `ratio` takes the place of n / m."""
    return (np.arange(m) + 0.5) * (n / m if ratio is None else ratio) - 0.5


def bicubic(n: int, at: Float[np.ndarray, " m"], a: float = -0.75) -> Float[np.ndarray, "m n"]:
    """Cubic convolution (Keys 1981) at positions `at`; the border's samples go on for ever.

    Its `a` is -3/4 in torch, and -1/2 where parabolas shall be kept.
    """
    low = np.floor(at).astype(int)
    matrix = np.zeros((len(at), n))
    for tap in range(-1, 3):
        weight = _cubic(at - (low + tap), a)
        np.add.at(matrix, (np.arange(len(at)), np.clip(low + tap, 0, n - 1)), weight)
    return matrix


def antialiased(
    n: int, m: int, kernel: Literal["linear", "cubic", "lanczos"]
) -> Float[np.ndarray, "m n"]:
    """A kernel (cubic: a = -1/2; Lanczos: 3 lobes) widened for fewer samples out than in.

    Weights that fall outside are left out, and the others sum to 1.
    """
    wide = max(n / m, 1.0)
    away = (np.arange(n) - positions(n, m)[:, None]) / wide
    match kernel:
        case "linear":
            weight = np.maximum(1.0 - np.abs(away), 0.0)
        case "cubic":
            weight = _cubic(away, -0.5)
        case "lanczos":
            weight = np.where(np.abs(away) < 3, np.sinc(away) * np.sinc(away / 3), 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


def _cubic(x, a):
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def grid(
    rows: Float[np.ndarray, "h H"],
    columns: Float[np.ndarray, "w W"],
    picture: Float[np.ndarray, "H W c"],
) -> Float[np.ndarray, "h w c"]:
    """A picture resampled along both axes, float32."""
    high = np.tensordot(rows, np.asarray(picture, np.float64), 1)
    return np.tensordot(columns, high, (1, 1)).swapaxes(0, 1).astype(np.float32)
