import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import prompts
from jax3d.camera import orbit
from jax3d.types import Cond


def cameras(azimuth, elevation=0.0):
    return orbit(jnp.radians(jnp.asarray(azimuth)), jnp.radians(jnp.asarray(elevation)), 2.0, 0.7)


def test_wordings_follow_the_order_of_the_views():
    assert prompts.wordings("a red chair") == [
        "a red chair, side view",
        "a red chair, front view",
        "a red chair, back view",
        "a red chair, overhead view",
    ]


def test_hard_weights_follow_the_rules_in_their_order():
    azimuth = [0.0, 44.0, 46.0, 120.0, -170.0, -80.0, 300.0, 170.0, 30.0, 360.0 * 3 + 10]
    elevation = [10.0, 0.0, 0.0, -5.0, 20.0, 0.0, 15.0, 59.0, 75.0, 0.0]
    chosen = prompts.hard_weights(cameras(azimuth, elevation))
    assert [prompts.VIEWS[i] for i in chosen.argmax(-1)] == [
        *("front", "front", "side", "side", "back", "side", "side", "back", "overhead", "front")
    ]
    np.testing.assert_array_equal(chosen.sum(-1), 1)


def test_soft_weights_at_the_principal_views():
    soft = prompts.soft_weights(cameras([90.0, 0.0, 180.0, 20.0, 45.0], [0.0, 0.0, 0.0, 90.0, 0.0]))
    expected = np.vstack([np.eye(4), [0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_allclose(soft, expected, atol=1e-6)


@pytest.mark.parametrize("moving", ["azimuth", "elevation"])
def test_soft_weights_are_a_continuous_partition_of_unity(moving):
    angle = np.linspace(-180.0, 540.0, 7201) if moving == "azimuth" else np.linspace(-90, 90, 1801)
    camera = cameras(angle, 50.0) if moving == "azimuth" else cameras(30.0, angle)
    soft = np.asarray(prompts.soft_weights(camera))
    np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-6)
    assert soft.min() >= 0
    assert np.abs(np.diff(soft, axis=0)).max() < 0.005


def test_select_mixes_wordings():
    tokens = jnp.arange(4 * 2 * 3.0).reshape(4, 2, 3)
    text = Cond(tokens=tokens, pooled=tokens[:, 0])
    weights = jnp.array([[0.0, 1.0, 0.0, 0.0], [0.25, 0.0, 0.75, 0.0]])
    chosen = prompts.select(text, weights)
    np.testing.assert_allclose(chosen.tokens[0], tokens[1])
    np.testing.assert_allclose(chosen.tokens[1], 0.25 * tokens[0] + 0.75 * tokens[2])
    assert chosen.pooled.shape == (2, 3)


def test_select_leaves_an_absent_pooled_text_absent():
    text = Cond(tokens=jnp.ones((4, 2, 3)))
    assert prompts.select(text, jnp.eye(4)).pooled is None
