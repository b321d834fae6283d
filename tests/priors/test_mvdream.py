"""Multi-view critics: cameras as the network learnt them, and joint attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import NETWORKS, tensors, vectors

from jax3d import weights
from jax3d.camera import orbit
from jax3d.nn import unet
from jax3d.priors import ldm, mvdream
from jax3d.priors.stable_diffusion import text_network
from jax3d.types import Cond

TO_BLENDER = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("name", "n", "elevation", "azimuth"),
    [("el0_az0_n4", 4, 0, 0), ("el30_az45_n4", 4, 30, 45), ("el-10_az90_n6", 6, -10, 90)],
)
def test_orbits_are_those_of_the_official_tables(name, n, elevation, azimuth):
    table = vectors("mvdream/cameras")[f"camera_{name}"]
    ours = mvdream.orbit_vectors(n, np.radians(elevation), np.radians(azimuth))
    np.testing.assert_allclose(ours, table, atol=1e-6)


def test_tables_before_the_turn_to_blender_axes():
    table = vectors("mvdream/cameras")["camera_noblender_el15_az0_n4"].reshape(4, 4, 4)
    ours = mvdream.orbit_vectors(4, np.radians(15.0))
    np.testing.assert_allclose(ours, (TO_BLENDER @ table).reshape(4, 16), atol=1e-6)


def test_our_cameras_are_theirs_a_quarter_turn_on_at_distance_one():
    azimuth = jnp.arange(4) * jnp.pi / 2 + 0.3
    ours = mvdream.camera_vectors(orbit(azimuth, jnp.full(4, 0.2), 2.7, 0.7).c2w)
    np.testing.assert_allclose(ours, mvdream.orbit_vectors(4, 0.2, 0.3 + np.pi / 2), atol=1e-6)


@pytest.fixture(scope="module")
def critic():
    """The network for four views, its weights, and a question: z, t, text and cameras."""
    config = NETWORKS["mvdream"]["unet"]["config"]
    net = unet.from_config(ldm.unet_config(config)).clone(views=4)
    renamed = ldm.unet_names(tensors("mvdream", "unet"), config["num_res_blocks"])
    params = weights.to_flax(renamed, unet.abstract_params(net))
    z = jax.random.normal(jax.random.key(0), (4, 4, 4, 4))
    text = Cond(jax.random.normal(jax.random.key(1), (4, 7, 24)))
    camera = orbit(jnp.arange(4.0), jnp.full(4, 0.2), 2.0, 0.7)
    return net, params, (z, jnp.full(4, 400), text, camera)


def test_permuted_views_permute_the_output(critic):
    net, params, (z, t, text, camera) = critic
    network = jax.jit(mvdream.view_network(net))
    out = network(params, z, t, text, camera)
    order = jnp.array([2, 0, 3, 1])
    moved = network(params, *jax.tree.map(lambda x: x[order], (z, t, text, camera)))
    np.testing.assert_allclose(moved, out[order], atol=1e-5)
    # Views do look at each other: another neighbour, another answer.
    other = network(params, z.at[3].add(1.0), t, text, camera)
    assert jnp.abs(other[0] - out[0]).max() > 1e-3


@pytest.mark.slow
def test_one_view_is_the_2d_model(critic):
    net, params, (z, t, text, camera) = critic
    alone = net.clone(views=1)
    # Stable Diffusion 2.1 is the same network without an embedding of cameras.
    plain = alone.clone(class_embed_type=None, projection_class_embeddings_input_dim=None)
    bare = {k: v for k, v in params.items() if k != "class_embedding"}
    flat = jax.jit(text_network(plain, 32))(bare, z, t, text, None)
    untold = jax.jit(mvdream.view_network(alone))(params, z, t, text, None)
    np.testing.assert_allclose(untold, flat, atol=1e-5)
    # Four views of which each sees the same attend as one does: copies share out the softmax.
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), (z, t, text, camera))
    four = jax.jit(mvdream.view_network(net))(params, *same)
    one = jax.jit(mvdream.view_network(alone))(params, *jax.tree.map(lambda x: x[:1], same))
    np.testing.assert_allclose(four, jnp.broadcast_to(one, four.shape), atol=2e-5)
