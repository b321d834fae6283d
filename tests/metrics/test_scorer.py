"""The scorer's arithmetic, and that the shipped one sees."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera
from jax3d.data import prop_bank, props
from jax3d.metrics import scorer
from jax3d.weights import WeightsError


def test_angles_wrap():
    np.testing.assert_allclose(scorer.angle_between(0.1, 2 * np.pi - 0.1), 0.2, atol=1e-6)
    np.testing.assert_allclose(scorer.angle_between(np.pi, 0.0), np.pi)


def test_scores_count_what_was_asked():
    specs = [props.Spec("car", "red", ""), props.Spec("lamp", "blue", "")]
    verdict = scorer.Verdict(
        similarity=np.array([[0.9, 0.1], [0.8, 0.2]]),
        azimuth=np.array([0.1, 3.0]),
        name=np.array(["car", "table"]),
        color=np.array(["red", "blue"]),
    )
    found = scorer.scores(verdict, np.array([0, 1]), specs, np.array([0.0, 0.0]))
    # The lamp has no front, so its azimuth does not count.
    assert found == scorer.Scores(r_precision=0.5, name=0.5, color=1.0, azimuth=1.0)
    nowhere = scorer.scores(verdict, np.array([0, 1]), specs[1:] * 2, np.array([0.0, 0.0]))
    assert np.isnan(nowhere.azimuth)


def test_the_shipped_scorer_tells_classes_colours_and_views():
    specs = [props.Spec(n, c, a) for n, c, a in (
        ("car", "red", ""), ("mushroom", "blue", "spotted"), ("house", "green", ""),
        ("duck", "yellow", ""), ("robot", "purple", ""), ("teapot", "orange", ""),
    )]  # fmt: skip
    around = camera.around(4, 15.0)
    views = prop_bank.ground_truth(specs, 77, around, scorer.SIZE)
    each = [s for s in specs for _ in range(4)]
    captions = [props.caption(s) for s in specs]
    verdict = scorer.judge(
        scorer.load(), views.reshape(-1, 64, 64, 3), captions, [s.name for s in each]
    )
    own = np.arange(len(specs)).repeat(4)
    found = scorer.scores(verdict, own, each, np.tile(around.azimuth, len(specs)))
    assert found.r_precision > 0.8
    assert found.name > 0.8
    assert found.color > 0.8
    assert found.azimuth > 0.8


def test_missing_weights_are_told(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors"):
        scorer.load(tmp_path / "nowhere.safetensors")


def test_judge_takes_any_size():
    white = np.ones((2, 20, 20, 3), np.float32)
    verdict = scorer.judge(scorer.load(), white, ["a red car"], ["car", "car"])
    assert verdict.similarity.shape == (2, 1)
    assert jnp.isfinite(verdict.azimuth).all()
