"""The training loops at toy size: they learn, resume exactly and write what loads."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import weights
from jax3d.data import prop_bank, props
from jax3d.metrics import scorer
from jax3d.nn.props_unet import UNetConfig
from jax3d.priors import embedded as critic
from jax3d.train import prior as prior_training
from jax3d.train import scorer as scorer_training

TINY = prior_training.PriorTraining(
    network=UNetConfig(
        widths=(8, 8), blocks=(1, 1), attention=(False, True), heads=2, embedding=16, word_width=8
    ),
    turntable=prop_bank.BankConfig(8, seed=1),
    photographs=prop_bank.BankConfig(8, seed=2, front_heavy=True),
    steps=4,
    batch=8,
    warmup=1,
    save_every=2,
)


def leaves_equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_prior_training_goes_on_from_its_checkpoint(tmp_path):
    checkpoint, halfway = tmp_path / "checkpoint.safetensors", tmp_path / "halfway.safetensors"

    def keep_step_two(text):
        # A step is told before it is saved: now the disk still holds the one before.
        if text.startswith("step 4 "):
            shutil.copy(checkpoint, halfway)

    path = prior_training.train(TINY, tmp_path, keep_step_two)
    like = jax.eval_shape(prior_training.make(TINY)[0])
    whole = weights.load_tree(checkpoint, like)
    assert leaves_equal(critic.load(path), half(whole.ema))
    assert critic.read_config(path) == TINY.network

    shutil.copy(halfway, checkpoint)
    told = []
    prior_training.train(TINY, tmp_path, told.append)
    assert told[0] == "going on from step 2"
    assert leaves_equal(whole, weights.load_tree(checkpoint, like))


@pytest.mark.slow
def test_prior_training_starts_from_given_weights(tmp_path):
    given = critic.init(jax.random.key(5), TINY.network)
    critic.save(tmp_path / "given.safetensors", given, TINY.network)
    still = dataclasses.replace(
        TINY, start_from=tmp_path / "given.safetensors", steps=1, lr=0.0, decay=0.0
    )
    path = prior_training.train(still, tmp_path / "run", lambda text: None)
    assert leaves_equal(critic.load(path), half(given))


def half(params):
    """What float16 on the disk leaves of weights."""
    return jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), params)


def test_what_a_batch_is_told():
    photograph = jnp.arange(400) < 200
    ids = jnp.tile(jnp.asarray(props.caption_table()[0, 0]), (400, 1))
    camera = props.sample_cameras(jax.random.key(0), 400, front_heavy=False)
    told, known = prior_training._tell(jax.random.key(1), TINY, ids, camera, photograph)
    assert not known[:200].any()
    assert 0.6 < float(jnp.mean(known[200:])) < 0.9
    first_view = len(props.vocabulary()) - len(props.VIEW_WORDS) + 1
    worded = (told >= first_view).any(-1)
    assert not worded[:200].any()
    silent = (told == 0).all(-1)
    # Every turntable view with a text is told its camera, its word, or both.
    assert (worded | known | silent)[200:].all()
    assert 0.05 < float(jnp.mean(silent)) < 0.2


def test_a_caption_is_true_of_all_that_it_fits():
    captions = ["a chair", "a red chair", "a blue chair", "a red chair with armrests"]
    ids = jnp.asarray(props.word_ids(captions))
    true = np.asarray(scorer_training._is_true(ids, ids))
    assert true.tolist() == [
        [True, True, True, True],
        [False, True, False, True],
        [False, False, True, False],
        [False, False, False, True],
    ]


@pytest.mark.slow
def test_scorer_training_writes_weights_and_report_card(tmp_path):
    config = scorer_training.ScorerTraining(
        renders=prop_bank.BankConfig(8, seed=1),
        held_out=prop_bank.BankConfig(8, seed=2, held_out=True),
        steps=2,
        batch=8,
    )
    path = scorer_training.train(config, tmp_path, lambda text: None)
    assert path.stat().st_size < 10e6
    scorer.load(path)
    assert scorer.report_card(path)["pictures"] == 24
