import jax
import jax.numpy as jnp
import numpy as np

from jax3d.camera import orbit
from jax3d.priors.zero123 import relative_pose


def test_threestudios_table():
    degrees = np.array([[10.0, 0.0], [-5.0, 120.0]])
    camera = orbit(jnp.radians(degrees[:, 1]), jnp.radians(degrees[:, 0]), 3.6, 0.7)
    reference = orbit(jnp.radians(20.0), jnp.radians(5.0), 3.8, 0.7)
    expected = [
        [-0.08726646, -0.34202012, 0.9396926, -0.2],
        [0.17453292, 0.98480775, -0.17364818, -0.2],
    ]
    np.testing.assert_allclose(relative_pose(camera, reference), expected, atol=1e-6)


def test_the_picture_itself_is_no_movement():
    camera = orbit(jnp.array([0.3, -2.0]), jnp.full(2, 0.4), 2.0, 0.7)
    one = jax.tree.map(lambda x: x[0], camera)
    np.testing.assert_allclose(relative_pose(camera, one)[0], [0, 0, 1, 0], atol=1e-6)
