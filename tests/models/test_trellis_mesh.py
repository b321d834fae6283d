"""TRELLIS's meshes: what voxels say of a surface, and the decoder that says it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trellis_folders as folders

from jax3d import weights
from jax3d.mesh.extract import EmptyFieldError, signed_volume
from jax3d.models import trellis_mesh
from jax3d.nn import sparse, trellis_latents
from jax3d.nn.trellis_latents import DecoderConfig, MeshDecoder

SIDE = 12
RNG = np.random.default_rng(0)


def said(coords, sdf_of, deform=0.0, color=0.0):
    """What voxels say of a distance in the cube, corner by corner."""
    corner = np.arange(8)[:, None] >> np.arange(3) & 1
    at = (coords[:, None] + corner) / SIDE - 0.5
    sdf = sdf_of(at) + 1 / SIDE
    rest = [np.full((len(coords), 24), deform), np.zeros((len(coords), 21))]
    colors = np.broadcast_to(color, (len(coords), 48))
    return np.float32(np.concatenate([sdf, *rest, colors], axis=1))


def near_a_ball(center, radius):
    """The voxels around a sphere, and its distance."""

    def distance(x):
        return np.linalg.norm(x - center, axis=-1) - radius

    coords = np.indices((SIDE,) * 3).reshape(3, -1).T
    kept = np.abs(distance((coords + 0.5) / SIDE - 0.5)) < 1.8 / SIDE
    return coords[kept], distance


def test_a_ball_of_few_voxels_is_a_ball_in_our_world():
    """Inside of the shell is no voxel: there the lattice says the outside, and a surface is."""
    center = np.array([0.1, -0.05, 0.02])
    coords, distance = near_a_ball(center, 0.3)
    red = np.tile([4.0, -4.0, -4.0, 0.0, 0.0, 0.0], 8)
    found = trellis_mesh.lattice(coords, said(coords, distance, color=red), SIDE)
    assert found.sdf.max() == 1
    made = trellis_mesh.extract(found, SIDE)
    ours = made.vertices - np.array(trellis_mesh.TURN) @ center
    radii = np.linalg.norm(ours, axis=1)
    outer = np.abs(radii - 0.3) < 0.02
    assert outer.mean() > 0.5
    assert signed_volume(made) > 0
    expit = 1 / (1 + np.exp(np.float32([-4.0, 4.0, 4.0])))
    np.testing.assert_allclose(made.colors[outer], np.tile(expit, (outer.sum(), 1)), atol=1e-5)


def test_a_solid_ball_has_its_volume():
    coords = np.indices((SIDE,) * 3).reshape(3, -1).T
    found = trellis_mesh.lattice(
        coords, said(coords, lambda x: np.linalg.norm(x, axis=-1) - 0.35), SIDE
    )
    made = trellis_mesh.extract(found, SIDE)
    assert abs(signed_volume(made) / (4 / 3 * np.pi * 0.35**3) - 1) < 0.08
    np.testing.assert_allclose(np.linalg.norm(made.vertices, axis=1), 0.35, atol=0.015)
    outside = trellis_mesh.lattice(coords[:5], said(coords[:5], lambda x: x[..., 0] + 9), SIDE)
    with pytest.raises(EmptyFieldError):
        trellis_mesh.extract(outside, SIDE)


def test_corners_are_the_mean_of_the_voxels_that_share_them():
    coords = np.array([[0, 0, 0], [1, 0, 0], [5, 5, 5]])
    raw = np.float32(RNG.standard_normal((3, 101)))
    found = trellis_mesh.lattice(coords, raw, SIDE)
    g = SIDE + 1
    # Corner 1 of the first voxel is corner 0 of the second.
    both = (raw[0, 1] + raw[1, 0]) / 2 - 1 / SIDE
    np.testing.assert_allclose(found.sdf[g * g], both, atol=1e-6)
    moved = np.tanh((raw[0, 8 + 3 : 8 + 6] + raw[1, 8:11]) / 2) / (2 * SIDE)
    np.testing.assert_allclose(found.x[g * g], np.array([1, 0, 0]) / SIDE - 0.5 + moved, atol=1e-6)
    np.testing.assert_array_equal(found.sdf[-1], 1)
    np.testing.assert_array_equal(found.row[[0, SIDE**2, 1]], [1, 2, 0])
    np.testing.assert_array_equal(found.weights[2], raw[1, 32:53])


def test_a_voxel_is_cut_in_eight_and_neighbours_know_each_other():
    place = jnp.array([0, 1, 27, 27], jnp.int32)  # two of a grid of 3^3, room for two more

    @jax.jit
    def cut(place):
        return sparse.split(sparse.voxels(place, 3), 3)

    fine = cut(place)
    np.testing.assert_array_equal(fine.there, np.arange(32) < 16)
    np.testing.assert_array_equal(fine.coords[:8], np.indices((2, 2, 2)).reshape(3, 8).T)
    np.testing.assert_array_equal(fine.coords[8:16], np.array([0, 0, 2]) + fine.coords[:8])
    up = sparse.OFFSETS.tolist().index([0, 0, 1])
    np.testing.assert_array_equal(fine.near[up, :4], [1, 8, 3, 10])


def test_norms_leave_out_who_is_nobody():
    place = jnp.array([0, 5, 6, 27, 27], jnp.int32)
    x = np.float32(RNG.standard_normal((2, 5, 64)))
    net = trellis_latents.VoxelNorm()
    params = {"params": {"scale": jnp.arange(64.0), "bias": jnp.ones(64)}}

    @jax.jit
    def normed(place, x):
        return net.apply(params, x, sparse.voxels(place, 3))

    groups = x[:, :3].reshape(2, 3, 32, 2)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    wanted = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(2, 3, 64) * np.arange(64) + 1
    np.testing.assert_allclose(normed(place, jnp.asarray(x))[:, :3], wanted, atol=1e-4)


def test_every_key_of_the_released_decoder_is_read():
    known = folders.KNOWN["full"]["slat_dec_mesh_swin8_B_64l8m256c_fp16"]
    like = trellis_latents.abstract_mesh_decoder(trellis_mesh.decoder(known["config"]))
    flat = {k: np.broadcast_to(np.float32(0), s) for k, s in known["keys"].items()}
    weights.demand_fit(trellis_latents.rename(flat), like)


@pytest.mark.slow
def test_a_decoder_says_the_same_of_a_voxel_whatever_room_there_is():
    net = MeshDecoder(DecoderConfig(4, 256, 2, 1, 2, window_size=2), 101)
    like = trellis_latents.abstract_mesh_decoder(net)
    params = jax.tree.map(lambda x: jnp.asarray(0.1 * RNG.standard_normal(x.shape), x.dtype), like)
    place = np.sort(RNG.choice(64, 10, replace=False)).astype(np.int32)
    z = np.float32(RNG.standard_normal((10, 2)))

    @jax.jit
    def said_by(place, z):
        raw, fine = net.apply({"params": params}, z[None], sparse.voxels(place, 4))
        return raw[0], fine.coords

    raw, coords = said_by(place, z)
    padded = np.pad(place, (0, 3), constant_values=64), np.pad(z, ((0, 3), (0, 0)))
    more, _ = said_by(*padded)
    np.testing.assert_allclose(more[:640], raw, atol=1e-4)
    assert len(np.unique(coords, axis=0)) == 640
    np.testing.assert_array_equal(np.asarray(coords)[:64] // 4, np.tile(coords[:1] // 4, (64, 1)))
