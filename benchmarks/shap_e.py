"""The full-size Shap-E on random weights: seconds and memory of its parts.

    taskset -c 1 python benchmarks/shap_e.py [--dtype float32]

Times are CPU seconds of one thread, so pin the script to a core where the machine is shared. A step
is one call of the transformer with guidance, two of its batch; an asset takes 127 of them. Needs
6 GB of memory.
"""

import argparse
import os
import resource
import time

import numpy as np


def peak() -> float:
    """The greatest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def drawn(like):
    """Random weights of the given shapes, small enough that nothing overflows."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32), x.dtype), like
    )


def timed(name: str, run):
    """A call's result; prints its CPU seconds and the memory by then."""
    import jax

    start = time.process_time()
    found = jax.block_until_ready(run())
    print(f"{name}: {time.process_time() - start:.1f} s CPU, {peak():.2f} GB at most", flush=True)
    return found


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp
    from parity_shap_e import RENDERER

    from jax3d.camera import around
    from jax3d.models import shap_e, shap_e_renderer
    from jax3d.nn import prior_transformer
    from jax3d.nn.prior_transformer import PriorConfig, PriorTransformer
    from jax3d.types import Cond, Condition, Look

    renderer = shap_e_renderer.from_config(RENDERER)
    prior = PriorTransformer(PriorConfig(), jnp.dtype(args.dtype))

    def weights():
        tree = drawn(shap_e_renderer.abstract_params(renderer))
        params = drawn(prior_transformer.abstract_params(prior))
        return {"prior": params, "renderer": shap_e_renderer.split(tree, renderer)}

    params = timed("weights", weights)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9
    print(f"of them held: {held:.2f} GB")
    z = jax.random.normal(jax.random.key(0), renderer.latents)
    told = jnp.ones((1, prior.config.embedding_proj_dim))
    cond, at = Condition(Cond(told), Cond(0 * told)), (jnp.float32(500.0), jnp.float32(3.0))
    step = jax.jit(lambda p, z: shap_e.guided(prior, p, z, at[0], cond, at[1]))
    step = step.lower(params["prior"], z).compile()
    timed("a step", lambda: step(params["prior"], z))
    decode = jax.jit(shap_e_renderer.decode).lower(params["renderer"], z).compile()
    asset = timed("from latents to an asset", lambda: decode(params["renderer"], z))
    field = renderer.field.build()
    camera = jax.tree.map(lambda x: x[:1], around(1, 15.0))
    show = jax.jit(lambda p: field.render(p, None, camera, Look.albedo(), (32, 32)).rgb)
    show = show.lower(asset).compile()
    timed("a picture of 32 x 32 pixels", lambda: show(asset))


if __name__ == "__main__":
    main()
