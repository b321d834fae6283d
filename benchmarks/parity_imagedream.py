"""The checks of `parity_golden.py` for ImageDream, whose vectors come without weights.

They follow from names and shapes, which the tests keep (`tests/golden/pictures.json.gz`).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from parity_shap_e import Arrays, Checks
from parity_zero123 import nchw, nhwc

from jax3d import weights
from jax3d.priors import imagedream

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from checkpoints import tensors


def check(split: Path, path: Path, io: Arrays) -> Checks:
    """Every array of the vectors."""
    config = weights.read_config(split / "unet" / "config.json")
    net, params, reader, reader_params = imagedream.networks(
        tensors("imagedream", "unet"), config, path
    )
    views = int(io["num_frames"])
    read = jax.jit(reader.apply)({"params": reader_params}, jnp.asarray(io["in_ip"]))
    tokens = jnp.repeat(read, views, axis=0)
    z = nhwc(io["in_x"]).reshape(-1, views, *nhwc(io["in_x"]).shape[1:])
    z = z.at[:, -1].set(nhwc(io["in_ip_img"])).reshape(-1, *z.shape[2:])
    out = jax.jit(net.clone(views=views).apply)(
        {"params": params},
        z,
        jnp.asarray(io["in_timesteps"]),
        jnp.concatenate([io["in_context"], tokens], axis=1),
        jnp.asarray(io["in_camera"]),
    )
    return {
        "mid_image_embed": (np.asarray(tokens), 2e-4),
        "out": (nchw(out), 2e-4),
        "num_frames": (np.asarray(imagedream.VIEWS + 1), 0),
    }
