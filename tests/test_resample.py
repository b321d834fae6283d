"""Resampling matrices: closed forms, and Pillow, which antialiases alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jax3d import resample

SIZES = st.integers(1, 40)


@given(SIZES, SIZES)
@settings(deadline=None, max_examples=50)
def test_weights_sum_to_one(n, m):
    at = resample.positions(n, m)
    for matrix in (
        resample.bicubic(n, at),
        resample.antialiased(n, m, "linear"),
        resample.antialiased(n, m, "cubic"),
        resample.antialiased(n, m, "lanczos"),
    ):
        assert matrix.shape == (m, n)
        np.testing.assert_allclose(matrix.sum(1), 1.0)


def test_the_same_size_changes_nothing():
    for matrix in (
        resample.bicubic(7, resample.positions(7, 7)),
        resample.antialiased(7, 7, "linear"),
        resample.antialiased(7, 7, "cubic"),
        resample.antialiased(7, 7, "lanczos"),
    ):
        np.testing.assert_allclose(matrix, np.eye(7), atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "mode"),
    [("linear", "BILINEAR"), ("cubic", "BICUBIC"), ("lanczos", "LANCZOS")],
)
@pytest.mark.parametrize("m", [5, 17, 18, 40])
def test_antialiased_is_pillows(kernel, mode, m):
    picture = np.random.default_rng(0).random((1, 17), np.float32)
    theirs = Image.fromarray(picture).resize((m, 1), getattr(Image.Resampling, mode))
    ours = resample.antialiased(17, m, kernel) @ picture[0]
    np.testing.assert_allclose(ours, np.asarray(theirs)[0], atol=1e-6)


def test_half_way_between_samples():
    # a = -3/4: (4 + a) / 8 - 1 / 2 = -a / 8 of the outer two, the rest of the inner two.
    row = resample.bicubic(6, np.array([2.5]))[0]
    np.testing.assert_allclose(row, [0, -3 / 32, 19 / 32, 19 / 32, -3 / 32, 0])


def test_the_border_goes_on():
    row = resample.bicubic(4, np.array([-0.5]))[0]
    np.testing.assert_allclose(row, [-3 / 32 + 2 * 19 / 32, -3 / 32, 0, 0])
    far = resample.bicubic(4, np.array([-9.0, 9.0]))
    np.testing.assert_allclose(far, [[1, 0, 0, 0], [0, 0, 0, 1]])


def test_a_ratio_takes_the_place_of_the_sizes():
    np.testing.assert_allclose(resample.positions(14, 32, 14 / 32.1)[[0, 31]], [
        0.5 * 14 / 32.1 - 0.5, 31.5 * 14 / 32.1 - 0.5
    ])  # fmt: skip
    np.testing.assert_allclose(resample.positions(4, 2), [0.5, 2.5])


def test_a_picture_is_resampled_along_both_axes():
    picture = np.random.default_rng(0).random((4, 5, 3))
    rows, columns = np.eye(4)[[2, 0]], np.eye(5)[[1, 4, 3]]
    out = resample.grid(rows, columns, picture)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, picture[[2, 0]][:, [1, 4, 3]], rtol=1e-6)


def test_with_a_half_parabolas_are_kept():
    at = np.linspace(2.0, 6.0, 17)
    parabola = (np.arange(9) - 3.5) ** 2
    np.testing.assert_allclose(resample.bicubic(9, at, a=-0.5) @ parabola, (at - 3.5) ** 2)
    assert np.abs(resample.bicubic(9, at) @ parabola - (at - 3.5) ** 2).max() > 0.01
