"""The native prop generator: prompts, sampling, files."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs, stack

from jax3d import weights
from jax3d.data import props
from jax3d.models import props_native
from jax3d.models.props_latents import PAINT_NUMBERS
from jax3d.nn.props_flow import FlowConfig
from jax3d.types import Prompt

TINY = FlowConfig(width=8, hidden=16, blocks=1, embedding=8, frequencies=2)
COMPONENTS, FEATURES, STEPS = 5, 12, 6


def fresh():
    init = jax.jit(props_native.init, static_argnums=(1, 2))
    return init(jax.random.key(0), TINY, COMPONENTS)


def tiny():
    """Weights of a toy size, none of them zero."""
    params = fresh()
    params["codec"] = props_native.codec_like(COMPONENTS, FEATURES)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    filled = [
        (0.3 * jax.random.normal(k, x.shape)).astype(x.dtype) if x.dtype == jnp.float32 else x
        for k, x in zip(keys, leaves, strict=True)
    ]
    params = tree.unflatten(filled)
    spread = jnp.linspace(2.0, 0.2, COMPONENTS)
    return {**params, "codec": params["codec"]._replace(spread=spread)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    props_native.save(path, tiny(), TINY)
    return props_native.open_model(path, STEPS)


def sample(model, cond, knobs, first=0, z=None, last=STEPS):
    z = model.begin(jax.random.key(knobs.seed), cond) if z is None else z
    take = functools.partial(model.advance, model.params)
    return jax.lax.fori_loop(first, last, lambda i, z: take(z, i, cond, knobs), z)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a red chiar", "no word 'chiar' (nearest: 'chair')"),
        ("a crimson car", "no word 'crimson'"),
        ("a", "names nothing"),
        ("red " * 9, "the prop world takes 8"),
    ],
)
def test_prompts_that_it_cannot_read(model, text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        model.condition(Prompt(text))


def test_it_refuses_a_picture(model):
    with pytest.raises(ValueError, match="reads text alone"):
        model.condition(Prompt("a red chair", image=np.zeros((4, 4, 3))))


def test_a_negative_prompt_takes_the_place_of_nothing(model):
    plain, other = (model.condition(Prompt("a red chair", n)) for n in ("", "a striped chair"))
    assert not np.any(plain.null.tokens)
    np.testing.assert_array_equal(plain.plain.tokens, other.plain.tokens)
    want = model.condition(Prompt("a striped chair")).plain.tokens
    np.testing.assert_array_equal(other.null.tokens, want)


def test_a_batch_is_each_alone(model):
    texts = ["a red chair", "a blue mug", "a striped pink cat"]
    conds = stack([model.condition(Prompt(t)) for t in texts])
    numbers = stack([knobs(k, model_scale=1.0 + k) for k in range(3)])
    run = functools.partial(sample, model)
    together = jax.jit(jax.vmap(run))(conds, numbers)
    one = jax.jit(run)
    for k in range(3):
        cond, number = jax.tree.map(lambda x, k=k: x[k], (conds, numbers))
        np.testing.assert_allclose(together[k], one(cond, number), rtol=2e-4, atol=2e-5)
    # A sweep over guidance is one program.
    assert one._cache_size() == 1


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_sampling_goes_on_from_any_step(model, stop):
    cond, number = model.condition(Prompt("a teal boat")), knobs(4, model_scale=3.0)
    take = jax.jit(functools.partial(model.advance, model.params))
    whole = z = model.begin(jax.random.key(number.seed), cond)
    for i in range(STEPS):
        whole = take(whole, jnp.int32(i), cond, number)
        if i < stop:
            z = take(z, jnp.int32(i), cond, number)
    z = jnp.asarray(np.asarray(z))  # as a checkpoint keeps it
    for i in range(stop, STEPS):
        z = take(z, jnp.int32(i), cond, number)
    np.testing.assert_array_equal(z, whole)


def test_the_last_step_lands_on_the_guided_prediction(model):
    cond, scale = model.condition(Prompt("a teal boat")), 2.5
    z = model.begin(jax.random.key(0), cond)
    landed = model.advance(model.params, z, jnp.int32(STEPS - 1), cond, knobs(0, model_scale=scale))
    spread, t = props_native.spreads(model.params["codec"]), jnp.float32(1 / STEPS)

    def predict(tokens):
        return props_native.predict(model.params["flow"], TINY, spread, z, t, tokens)

    told, untold = predict(cond.plain.tokens), predict(cond.null.tokens)
    assert np.abs(told - untold).max() > 1e-3
    np.testing.assert_allclose(landed, untold + scale * (told - untold), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [1e-3, 0.3, 0.9, 1.0])
def test_an_untrained_network_guesses_as_a_gaussian(t):
    """Its last layer is zero: what is left is the mean of a Gaussian given the noised latents."""
    params = fresh()
    spread = jnp.linspace(2.0, 0.2, COMPONENTS + PAINT_NUMBERS)
    z_t = jax.random.normal(jax.random.key(1), spread.shape)
    x0 = props_native.predict(params["flow"], TINY, spread, z_t, jnp.float32(t), jnp.zeros((8, 8)))
    a = 1 - t
    want = a * spread**2 / ((a * spread) ** 2 + t**2) * z_t
    np.testing.assert_allclose(x0, want, rtol=1e-5, atol=1e-6)


def test_weights_come_back(tmp_path):
    params = tiny()
    path = tmp_path / "tiny.safetensors"
    props_native.save(path, params, TINY)
    found = props_native.load(path)
    assert props_native.read_config(path) == (TINY, COMPONENTS, FEATURES)
    np.testing.assert_allclose(found["words"], params["words"], rtol=1e-3)
    np.testing.assert_array_equal(found["codec"].basis, params["codec"].basis)


@pytest.mark.parametrize("damage", ["missing", "cut", "other network", "no description"])
def test_damaged_weights_are_an_error_that_names_the_file(tmp_path, damage):
    path = tmp_path / "tiny.safetensors"
    props_native.save(path, tiny(), TINY)
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            os.truncate(path, 100)
        case "other network":
            text = path.with_suffix(".json").read_text()
            path.with_suffix(".json").write_text(text.replace('"width": 8', '"width": 9'))
        case "no description":
            path.with_suffix(".json").unlink()
    with pytest.raises(weights.WeightsError, match="tiny"):
        props_native.load(path)


def test_the_shipped_weights():
    assert props_native.WEIGHTS.stat().st_size < 30e6
    model = props_native.open_model()
    assert len(model.digest) == 64
    spec = next(s for s in props.specs() if props.is_held_out(s))
    cond = model.condition(Prompt(props.caption(spec)))
    made = jax.jit(lambda knobs: model.decode(model.params, sample(model, cond, knobs)))
    field = made(knobs(0, model_scale=1.0))
    like = jax.eval_shape(model.representation.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, field) == jax.tree.map(jnp.shape, like)
    solid = np.mean(np.asarray(field["sdf"]) < 0)
    assert 0.005 < solid < 0.4
    # The border is outside: a surface closes.
    sdf = np.asarray(field["sdf"])
    assert min(sdf[0].min(), sdf[-1].min(), sdf[:, 0].min(), sdf[:, :, 0].min()) > 0
