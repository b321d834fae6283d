"""The autoencoder of the prop world: grids, components, colours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d.data import prop_fields, props
from jax3d.models import props_latents
from jax3d.models.props_latents import Features
from jax3d.render import sdf

SHAPES = [("chair", "armrests"), ("snowman", "hat"), ("mug", "striped")]
EACH = 5


@pytest.fixture(scope="module")
def objects():
    """Scenes of a few shapes and their flat grids, each shape in turn."""
    scene, labels = prop_fields.build(SHAPES * EACH, 3)
    flatten = jax.jit(lambda *one: props_latents.flatten(*prop_fields.describe(*one)))
    count = len(SHAPES) * EACH
    flat = [
        np.asarray(flatten(*jax.tree.map(lambda x, k=k: x[k], (scene, labels))))
        for k in range(count)
    ]
    return scene, labels, np.stack(flat)


@pytest.fixture(scope="module")
def fitted(objects):
    _, _, flat = objects
    cells = props_latents.choose_cells(flat, 0.03)
    features = Features(flat[:, cells], cells)
    return features, props_latents.fit(features, 11, 0.3)


@pytest.mark.parametrize("color", props.COLORS)
def test_paints_are_those_of_the_builders(color):
    scene = props.build([props.Spec("chair", color, "")], 0)
    shown = scene.color[0, :, 0][scene.role[0] > 0]
    own, shade, _ = prop_fields.paints(color)
    assert {tuple(c) for c in shown.tolist()} == {tuple(own.tolist()), tuple(shade.tolist())}


def test_every_colour_of_the_world_is_a_paint_or_a_material():
    scene, labels = prop_fields.build([(s.name, s.attribute) for s in props.specs()], 1)
    known = np.concatenate([prop_fields.paints("white"), prop_fields.materials()])
    shown = scene.role > 0
    assert np.abs(known[labels[..., 0]] - scene.color[:, :, 0])[shown].max() < 2e-3
    assert len(known) == len(np.unique(known, axis=0))


def test_a_shape_is_the_same_in_every_colour():
    scene, _ = prop_fields.build([("mug", "striped")], 4)
    for color in ("red", "black"):
        other = props.build([props.Spec("mug", color, "striped")], 4)
        for name in ("center", "rotation", "shape", "role", "pattern", "period"):
            np.testing.assert_array_equal(getattr(scene, name), getattr(other, name))


def test_grids_are_the_scenes_distance_and_colour(objects):
    scene, _, flat = objects
    d, r = prop_fields.DISTANCES, prop_fields.LABELS
    palette = np.concatenate([prop_fields.paints("white"), prop_fields.materials()])

    @jax.jit
    def seen(one):
        """Distances at one grid's centres, and colours on the surface nearest to the other's."""
        x = jnp.asarray(prop_fields.centers(r))
        x = x - sdf.distance(one, x)[:, None] * sdf.normal(one, x)
        return sdf.distance(one, jnp.asarray(prop_fields.centers(d))), sdf.albedo(one, x)

    for k in range(len(SHAPES)):
        one = jax.tree.map(lambda x, k=k: x[k], scene)
        levels = flat[k, : d**3].astype(np.float32)
        want, shown = map(np.asarray, seen(one))
        want = np.clip(want, -prop_fields.REACH, prop_fields.REACH)
        np.testing.assert_allclose((levels / 127.5 - 1) * prop_fields.REACH, want, atol=1e-3)
        shares = flat[k, d**3 :].reshape(r**3, -1) / 255.0
        whole = shares.sum(-1)
        assert np.all((whole == 0) | (np.abs(whole - 1) < 0.02))
        # Where one label has the cell, it is the colour of the surface there.
        sure = np.nonzero(shares.max(-1) > 0.99)[0]
        off = np.abs(palette[shares[sure].argmax(-1)] - shown[sure]).max(-1)
        assert np.mean(off < 2e-3) > 0.97


def test_shapes_come_back_from_their_latents(objects, fitted):
    scene = objects[0]
    features, codec = fitted
    paint = prop_fields.paints("teal")
    z = jnp.concatenate(
        [props_latents.encode_shape(codec, features.values[0]), props_latents.paint_latents(paint)]
    )
    field = jax.jit(props_latents.decode)(codec, z)
    r = props_latents.RESOLUTION
    assert field["sdf"].shape == (r, r, r)
    axis = np.linspace(-prop_fields.HALF, prop_fields.HALF, r)
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    one = jax.tree.map(lambda leaf: leaf[0], scene)
    want = np.asarray(sdf.distance(one, jnp.asarray(x, jnp.float32)))
    found = np.asarray(field["sdf"]).reshape(-1)
    inside, also = want < 0, found < 0
    assert (inside & also).sum() / (inside | also).sum() > 0.93
    # A chair is of its own colour and its shade alone.
    near = np.abs(want) < 0.02
    rgb = np.asarray(jax.nn.sigmoid(field["rgb"])).reshape(-1, 3)[near]
    assert np.quantile(np.abs(rgb[:, None] - paint[:2]).max(-1).min(-1), 0.9) < 0.1


def test_components_are_scaled_as_said(fitted):
    features, codec = fitted
    z = np.asarray(props_latents.encode_shape(codec, features.values))
    np.testing.assert_allclose(z.std(0), codec.spread, rtol=0.05)
    assert np.mean(z**2) == pytest.approx(1.0, rel=0.05)
    assert np.all(np.diff(np.asarray(codec.spread)) <= 1e-6)


def test_paints_come_back():
    paint = prop_fields.paints("orange")
    z = props_latents.paint_latents(paint)
    np.testing.assert_allclose(props_latents.paint_colors(z), paint, atol=1e-6)


def test_cells_without_labels_take_their_neighbours():
    shares = jnp.zeros((4, 4, 4, 2)).at[1, 1, 1].set(jnp.array([0.0, 1.0]))
    filled = np.asarray(props_latents._fill(shares))
    np.testing.assert_allclose(filled[1, 1, 1], [0, 1])
    np.testing.assert_allclose(filled[2, 2, 2], [0, 1], atol=1e-6)
    np.testing.assert_allclose(filled[3, 3, 3], [0, 0])
