"""The prop world: specs, captions, objects and banks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d.data import prop_bank, prop_shapes, props
from jax3d.render import sdf


def test_the_world_is_as_large_as_promised():
    assert len(props.CLASSES) >= 20
    assert len(props.COLORS) == 12
    assert len(set(props.specs())) == len(props.specs())


def test_a_tenth_is_held_out_and_listed():
    held_out = [props.caption(s) for s in props.specs() if props.is_held_out(s)]
    assert 0.08 < len(held_out) / len(props.specs()) < 0.12
    listed = (prop_shapes.__file__.removesuffix("prop_shapes.py") + "held_out.txt",)
    with open(listed[0]) as file:
        assert file.read().splitlines() == held_out


def test_captions_of_every_wording_parse_back():
    for spec in props.specs()[::37]:
        for wording in range(4):
            assert props.parse(props.caption(spec, wording)) == spec
    assert props.parse("a chair") is None
    with pytest.raises(ValueError, match="wording is 7"):
        props.caption(props.specs()[0], 7)


def test_wordings_leave_room_for_a_view_word():
    table = props.caption_table()
    assert table.shape == (len(props.specs()), props.WORDINGS, props.MAX_WORDS)
    assert (table[..., -1] == 0).all()
    assert table.max() <= len(props.vocabulary())


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "names nothing"),
        ("with a", "names nothing"),
        ("a red chiar", "no word 'chiar' .nearest: 'chair'.*knows: chair, sofa"),
        ("red " * 9, "has 9 words"),
    ],
)
def test_bad_prompts_are_told_what_to_mend(prompt, message):
    with pytest.raises(ValueError, match=message):
        props.word_ids([prompt])


def test_objects_are_pure_centred_and_of_one_size():
    chosen = [s for s in props.specs() if s.color == "red"]
    scene = props.build(chosen, seed=3)
    again = props.build(chosen, seed=3)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(scene), jax.tree.leaves(again), strict=True)
    )
    other = props.build(chosen, seed=4)
    assert not np.array_equal(scene.shape, other.shape)

    def extent(scene):
        axis = jnp.linspace(-1.0, 1.0, 41)
        grid = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        inside = sdf.distance(scene, grid) < 0.02
        low = jnp.min(jnp.where(inside[:, None], grid, 1.0), 0)
        high = jnp.max(jnp.where(inside[:, None], grid, -1.0), 0)
        return low, high

    some = jax.tree.map(lambda x: jnp.asarray(x[::6]), scene)
    low, high = jax.jit(lambda s: jax.lax.map(extent, s))(some)
    np.testing.assert_allclose(np.linalg.norm(high - low, axis=-1), 1.7, atol=0.25)
    assert np.linalg.norm(np.maximum(-low, high), axis=-1).max() < 1.0


def test_attributes_change_the_object():
    for name, (_, attributes) in prop_shapes.BUILDERS.items():
        chosen = [props.Spec(name, "blue", a) for a in attributes]
        # One object a call: the same index draws the same proportions.
        scenes = [props.build([spec], seed=1) for spec in chosen]
        for i, a in enumerate(scenes):
            for b in scenes[:i]:
                leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
                assert any(not np.array_equal(x, y) for x, y in leaves), name


def test_view_words_follow_the_camera():
    azimuth = jnp.radians(jnp.array([0.0, 90.0, 180.0, 270.0, 10.0]))
    elevation = jnp.radians(jnp.array([0.0, 0.0, 0.0, 0.0, 80.0]))
    found = [props.VIEW_WORDS[i] for i in props.view_word(azimuth, elevation)]
    assert found == ["front", "side", "back", "side", "overhead"]


def test_photographs_are_taken_from_the_front():
    key = jax.random.key(0)
    heavy = props.sample_cameras(key, 2000, front_heavy=True)
    even = props.sample_cameras(key, 2000, front_heavy=False)
    assert float(jnp.mean(jnp.cos(heavy.azimuth))) > 0.7
    assert abs(float(jnp.mean(jnp.cos(even.azimuth)))) < 0.1


def test_a_bank_is_rendered_once_and_never_mistaken(tmp_path):
    config = prop_bank.BankConfig(images=26, seed=5, size=16)
    bank = prop_bank.open_bank(tmp_path / "a", config)
    assert bank.images.shape == (26, 16, 16, 4)
    coverage = np.asarray(bank.images[..., 3], np.float32).mean((1, 2)) / 255
    assert coverage.min() > 0.03
    assert coverage.max() < 0.8
    specs = [props.specs()[i] for i in bank.spec]
    assert [s.name for s in specs[:24]] == list(props.CLASSES)
    assert not any(map(props.is_held_out, specs))
    again = prop_bank.open_bank(tmp_path / "b", config)
    assert np.array_equal(bank.images, again.images)
    with pytest.raises(ValueError, match="holds the bank"):
        prop_bank.open_bank(tmp_path / "a", prop_bank.BankConfig(images=26, seed=6, size=16))


def test_backgrounds_are_white_or_grey_and_objects_stay():
    rgba = (
        jnp.zeros((64, 4, 4, 4), jnp.uint8).at[:, 1, 1].set(jnp.array([255, 0, 0, 255], jnp.uint8))
    )
    rgb = prop_bank.over_random_ground(jax.random.key(0), rgba)
    np.testing.assert_allclose(rgb[:, 1, 1], jnp.tile(jnp.array([1.0, 0.0, 0.0]), (64, 1)))
    corner = rgb[:, 0, 0]
    np.testing.assert_allclose(corner, corner[:, :1] * jnp.ones(3))
    white = float(jnp.mean(corner[:, 0] == 1.0))
    assert 0.3 < white < 0.7
    assert float(corner.min()) >= 0.25
