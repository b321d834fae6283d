"""The full-size Stable Diffusion 1.5 UNet: our output and time against torch-diffusers.

    python benchmarks/parity_sd15.py --torch TORCH_PYTHON [--runs 5] [--step]

TORCH_PYTHON is the interpreter of another environment with torch, diffusers and safetensors
(`pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0`). It makes random weights and
writes them as a checkpoint folder of 3.4 GB, which is then read here. Both sides run batch 2 at
64x64 latents in float32 on one thread, in turns; times are CPU seconds of the process, so pin the
script to a core (`taskset -c 1`) where the machine is shared. `--step` adds the peak memory of one
score distillation step of a 512-pixel image. Needs 9 GB of memory.

The exit code is 1 if the outputs differ by more than 1e-4 of the greatest value.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONFIG = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def inputs() -> dict[str, np.ndarray]:
    """The batch that both sides see, channels first."""
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((2, 4, 64, 64), dtype=np.float32),
        "timestep": np.array([17, 803]),
        "context": rng.standard_normal((2, 77, 768), dtype=np.float32),
    }


def torch_side(folder: Path) -> None:
    """Writes weights and the output, then times one call for each line read."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    net = UNet2DConditionModel(**CONFIG).eval()
    net.save_pretrained(folder / "unet", max_shard_size="20GB")
    x, t, context = (torch.from_numpy(value) for value in inputs().values())
    np.save(folder / "out.npy", net(x, t, context).sample.numpy())
    print("ready", flush=True)
    for _ in sys.stdin:
        before = time.process_time()
        net(x, t, context)
        print(time.process_time() - before, flush=True)


def peak() -> float:
    """The greatest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def jax_side(folder: Path, worker: subprocess.Popen, runs: int, step: bool) -> float:
    """Loads, compares, times in turns; the error as a fraction of the greatest value."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp

    from jax3d.nn import unet

    jnp.zeros(1).block_until_ready()
    bare, start = peak(), time.process_time()
    net, params = unet.load(folder / "unet")
    file = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size / 1e9
    loaded, seconds = peak() - bare, time.process_time() - start
    print(f"loading: {seconds:.1f} s CPU, {loaded:.2f} GB for a file of {file:.2f} GB")

    x, t, context = inputs().values()
    batch = jnp.asarray(np.moveaxis(x, 1, -1)), jnp.asarray(t), jnp.asarray(context)
    run = jax.jit(lambda p, x, t, c: net.apply({"params": p}, x, t, c))
    start = time.process_time()
    run = run.lower(params, *batch).compile()
    print(f"compiling: {time.process_time() - start:.1f} s CPU")
    ours = np.moveaxis(np.asarray(run(params, *batch)), -1, 1)
    theirs = np.load(folder / "out.npy")
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    print(f"greatest difference: {error:.1e} of the greatest value")

    times = {"jax": [], "torch": []}
    for _ in range(runs):
        before = time.process_time()
        run(params, *batch).block_until_ready()
        times["jax"].append(time.process_time() - before)
        worker.stdin.write("go\n")
        worker.stdin.flush()
        times["torch"].append(float(worker.stdout.readline()))
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name}: {median:.2f} s CPU [{min(seconds):.2f}..{max(seconds):.2f}]")
    ratios = [a / b for a, b in zip(times["jax"], times["torch"], strict=True)]
    print(f"jax / torch: {statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]")
    if step:
        worker.kill()
        distil(net, params)
        print(f"peak with one step of score distillation: {peak():.1f} GB")
    return error


def distil(net, params) -> None:
    """One gradient of a 512-pixel image through a random autoencoder and the UNet."""
    import jax
    import jax.numpy as jnp

    from jax3d import diffusion
    from jax3d.nn import vae
    from jax3d.priors import stable_diffusion
    from jax3d.types import TextCond

    coder = vae.AutoencoderKL()
    weights = coder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    abar = diffusion.scaled_linear()
    network = stable_diffusion.text_network(net, 512)
    prior = stable_diffusion.latent_prior(network, coder, abar, "eps", 512)
    weights = {"unet": params, "vae": weights}
    text = TextCond(jnp.ones((2, 77, 768)))

    @jax.jit
    def gradient(weights, rgb):
        key, t = jax.random.key(1), jnp.full(1, 500)
        z, pullback = jax.vjp(lambda rgb: prior.encode(weights, key, rgb), rgb)
        noise = jax.random.normal(key, z.shape)
        z_t = diffusion.q_sample(abar, z, t, noise)
        eps = prior.denoise(weights, jnp.repeat(z_t, 2, 0), jnp.repeat(t, 2), text, None)
        return pullback(diffusion.cfg(eps[:1], eps[1:], 7.5) - noise)[0]

    gradient(weights, jnp.full((1, 512, 512, 3), 0.5)).block_until_ready()


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch", help="interpreter of an environment with torch and diffusers")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--step", action="store_true", help="measure a distillation step too")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torch_side(args.worker)
        return 0
    if not args.torch:
        parser.error("--torch is needed: the interpreter of an environment with torch, diffusers")
    with tempfile.TemporaryDirectory() as folder:
        worker = subprocess.Popen(
            [args.torch, __file__, "--worker", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            if worker.stdout.readline() != "ready\n":
                print("the torch side failed; see above", file=sys.stderr)
                return 2
            error = jax_side(Path(folder), worker, args.runs, args.step)
        finally:
            worker.kill()
    return int(not error <= 1e-4)


if __name__ == "__main__":
    sys.exit(main())
