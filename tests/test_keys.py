"""No function of the library uses a random key twice.

The check is JAX's own, where the library's functions are traced; tests themselves ask twice with
one key on purpose, to see that the answer is the same.
"""

import jax
import jax.numpy as jnp
import pytest
from test_conformance import (
    CAMERAS,
    COND,
    GUIDANCES,
    IMAGES,
    MODELS,
    PRIORS,
    PROMPTS,
    REPRESENTATIONS,
    SIZE,
)
from toys import knobs, optimizer

from jax3d import camera
from jax3d.camera import CameraConfig
from jax3d.data import prop_bank, props
from jax3d.fields.triplane import TriplaneConfig, triplane
from jax3d.optimize import asset
from jax3d.optimize.asset import AssetConfig
from jax3d.train import prior, scorer
from jax3d.types import Look

KEY = jax.random.key(0)


def trace(f, *args):
    """Traces `f` under the check; returns the shapes of its results."""
    with jax.debug_key_reuse(True):
        return jax.eval_shape(jax.jit(f), *args)


def test_the_check_sees_a_key_used_twice():
    with pytest.raises(jax.errors.KeyReuseError):
        trace(lambda key: jax.random.normal(key) + jax.random.uniform(key), KEY)


LEARNED = triplane(TriplaneConfig(resolution=8, learned_background=True))


@pytest.mark.parametrize("rep", [*REPRESENTATIONS.values(), LEARNED])
def test_representations(rep):
    params = trace(rep.init, KEY)

    def picture(params, key):
        return rep.render(params, key, CAMERAS, Look.albedo(), (SIZE, SIZE)).rgb

    trace(picture, params, KEY)


@pytest.mark.parametrize(("critic", "weights"), PRIORS.values(), ids=PRIORS.keys())
def test_priors(critic, weights):
    trace(lambda key: critic.encode(weights, key, IMAGES), KEY)


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES.keys())
def test_steps(guidance):
    critic, weights = PRIORS["empirical"]
    field = REPRESENTATIONS["mlp"]
    made = optimizer(field, guidance(critic), AssetConfig(views=2))
    state = trace(made.init, knobs())
    trace(lambda state: made.step(state, weights, COND, knobs(), SIZE), state)


def test_a_step_of_two_terms():
    critic, weights = PRIORS["empirical"]
    config = AssetConfig(views=2)
    terms = [asset.random_views(GUIDANCES["vsd"](critic), config) for _ in range(2)]
    made = asset.make(REPRESENTATIONS["mlp"], terms, config)
    state = trace(made.init, knobs())
    trace(lambda state: made.step(state, weights, COND, knobs(), SIZE), state)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_models(model):
    cond = model.condition(PROMPTS[0])
    z = trace(model.begin, KEY, cond)
    trace(lambda z: model.advance(model.params, z, jnp.int32(0), cond, knobs()), z)


@pytest.mark.parametrize("group", [1, 4])
def test_cameras(group):
    trace(lambda key: camera.sample(key, CameraConfig(group=group), 8), KEY)


@pytest.mark.parametrize("front_heavy", [False, True])
def test_the_prop_world(front_heavy):
    trace(lambda key: props.sample_cameras(key, 5, front_heavy), KEY)
    trace(lambda key: prop_bank.draw_wordings(key, 5, 0.2), KEY)
    rgba = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.uint8)
    trace(prop_bank.over_random_ground, KEY, rgba)


def test_training():
    b = 4
    rgba = jax.ShapeDtypeStruct((b, 64, 64, 4), jnp.uint8)
    spec = jax.ShapeDtypeStruct((b,), jnp.int32)
    cameras = jax.eval_shape(lambda key: props.sample_cameras(key, b, False), KEY)
    photograph = jax.ShapeDtypeStruct((b,), bool)
    init, step = prior.make(prior.PriorTraining(batch=b))
    trace(step, trace(init), rgba, spec, cameras, photograph)
    azimuth = jax.ShapeDtypeStruct((b,), jnp.float32)
    init, step = scorer.make(scorer.ScorerTraining(batch=b))
    trace(step, trace(init), jnp.int32(0), (rgba, spec, azimuth))
