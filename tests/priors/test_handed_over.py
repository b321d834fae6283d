"""A network of diffusers' own Flax classes as a critic's; needs the extra `[diffusers]`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import diffusion, weights
from jax3d.nn import unet, vae
from jax3d.priors import stable_diffusion as sd
from jax3d.types import Cond

SIZES = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}


@pytest.mark.filterwarnings("ignore")
def test_the_same_weights_say_nearly_the_same_in_both(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="the extra [diffusers] is not installed")
    if not hasattr(diffusers, "FlaxUNet2DConditionModel"):
        pytest.skip("this version of diffusers has no Flax networks")
    theirs = diffusers.FlaxUNet2DConditionModel(**SIZES)
    ours = unet.UNet2DConditionModel(**SIZES)
    like = unet.abstract_params(ours)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape, np.float32), like)
    params = {"unet": jax.tree.map(jnp.asarray, drawn)}

    def eps(network):
        prior = sd.latent_prior(network, vae.AutoencoderKL(), diffusion.scaled_linear(), "eps", 64)
        z_t = jnp.asarray(rng_input((2, 8, 8, 4)))
        text = Cond(jnp.asarray(rng_input((2, 7, 24))))
        return jax.jit(prior.denoise)(params, z_t, jnp.array([17, 803]), text, None)

    mine, other = eps(sd.text_network(ours, 64)), eps(sd.handed_over_network(theirs))
    scale = float(jnp.abs(mine).max())
    np.testing.assert_allclose(mine, other, atol=1e-3 * scale)
    assert float(jnp.abs(mine - other).max()) > 0

    # And the checkpoint that it writes opens as ours.
    theirs.save_pretrained(tmp_path, params=params["unet"])
    loaded = weights.load(weights.find_weights(tmp_path, "diffusion_pytorch_model"))
    tree = weights.to_flax(loaded, like)
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, params["unet"]))


def rng_input(shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)
