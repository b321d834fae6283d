"""The training loops at toy size: they learn, resume exactly and write what loads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import weights
from jax3d.data import prop_bank, props
from jax3d.nn.props_unet import UNetConfig
from jax3d.priors import props as critic
from jax3d.train import prior as prior_training
from jax3d.train import scorer as scorer_training

TINY = prior_training.PriorTraining(
    network=UNetConfig(
        widths=(8, 8), blocks=(1, 1), attention=(False, True), heads=2, embedding=16, word_width=8
    ),
    turntable=prop_bank.BankConfig(24, seed=1),
    photographs=prop_bank.BankConfig(24, seed=2, front_heavy=True),
    steps=4,
    batch=8,
    warmup=1,
    save_every=2,
)


def leaves_equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_prior_training_resumes_exactly_and_its_weights_load(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    path = prior_training.train(TINY, whole, lambda text: None)
    first = dataclasses.replace(TINY, save_every=2)

    class Stop(Exception):
        pass

    def stop_after_two(text):
        if text.startswith("step 2 "):
            raise Stop

    # The report of step 2 comes before its checkpoint: the run dies with nothing saved but banks.
    with pytest.raises(Stop):
        prior_training.train(first, halves, stop_after_two)
    told = []
    prior_training.train(dataclasses.replace(TINY, save_every=3), halves, told.append)
    assert not any("going on" in text for text in told)
    a = weights.load_tree(
        path, jax.eval_shape(lambda: critic.init(jax.random.key(0), TINY.network))
    )
    b = critic.load(halves / "props.safetensors")
    assert leaves_equal(a, b)
    assert critic.read_config(path) == TINY.network


def test_prior_training_goes_on_from_its_checkpoint(tmp_path):
    init, step = prior_training.make(TINY)
    prior_training.train(TINY, tmp_path / "whole", lambda text: None)
    state = init()
    step = jax.jit(step)
    for k, batch in enumerate(
        prior_training.batches(TINY, tmp_path / "whole", 0, lambda text: None)
    ):
        state, _ = step(state, batch)
        if k == 1:
            (tmp_path / "part").mkdir()
            (tmp_path / "part" / "turntable").symlink_to(tmp_path / "whole" / "turntable")
            (tmp_path / "part" / "photographs").symlink_to(tmp_path / "whole" / "photographs")
            weights.save_safetensors(state, tmp_path / "part" / "checkpoint.safetensors")
    told = []
    prior_training.train(TINY, tmp_path / "part", told.append)
    assert told[0] == "going on from step 2"
    like = jax.eval_shape(init)
    resumed = weights.load_tree(tmp_path / "part" / "checkpoint.safetensors", like)
    assert leaves_equal(state, resumed)


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


def test_scorer_training_writes_weights_and_report_card(tmp_path):
    config = scorer_training.ScorerTraining(
        renders=prop_bank.BankConfig(24, seed=1),
        held_out=prop_bank.BankConfig(24, seed=2, held_out=True),
        steps=2,
        batch=8,
    )
    path = scorer_training.train(config, tmp_path, lambda text: None)
    assert path.stat().st_size < 10e6
    from jax3d.metrics import scorer

    scorer.load(path)
    assert scorer.report_card(path)["pictures"] == 24
