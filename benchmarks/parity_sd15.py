"""The full-size Stable Diffusion 1.5 UNet: our output and time against torch-diffusers.

    python benchmarks/parity_sd15.py --torch TORCH_PYTHON [--runs 5]
    python benchmarks/parity_sd15.py --step

TORCH_PYTHON is the interpreter of another environment with torch, diffusers and safetensors
(`pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0`). It makes random weights and
writes them as a checkpoint folder of 3.4 GB, which is then read here. Both sides run batch 2 at
64x64 latents in float32 on one thread, in turns; times are CPU seconds of the process, so pin the
script to a core (`taskset -c 1`) where the machine is shared. Needs 9 GB of memory. `--step`
compiles one score distillation step of a 512-pixel image and prints the memory that it takes.

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


def jax_side(folder: Path, worker: subprocess.Popen, runs: int) -> float:
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
    return error


def step_memory() -> None:
    """Prints what one SDS step of a 512-pixel image takes, by the compiler's own count."""
    import jax
    import jax.numpy as jnp

    from jax3d import diffusion
    from jax3d.nn import unet, vae
    from jax3d.priors import stable_diffusion
    from jax3d.types import Cond

    net, coder = unet.from_config(CONFIG), vae.AutoencoderKL()
    weights = {"unet": unet.abstract_params(net), "vae": vae.abstract_params(coder)}
    abar = diffusion.scaled_linear()
    network = stable_diffusion.text_network(net, 512)
    prior = stable_diffusion.latent_prior(network, coder, abar, "eps", 512)

    def gradient(weights, tokens, rgb):
        key, t = jax.random.key(1), jnp.full(1, 500)
        z, pullback = jax.vjp(lambda rgb: prior.encode(weights, key, rgb), rgb)
        noise = jax.random.normal(key, z.shape)
        z_t = jnp.repeat(diffusion.q_sample(abar, z, t, noise), 2, 0)
        eps = prior.denoise(weights, z_t, jnp.repeat(t, 2), Cond(tokens), None)
        return pullback(diffusion.cfg(eps[:1], eps[1:], 7.5) - noise)[0]

    tokens = jax.ShapeDtypeStruct((2, 77, 768), jnp.float32)
    rgb = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    count = jax.jit(gradient).lower(weights, tokens, rgb).compile().memory_analysis()
    held, temporary = (
        size / 1e9 for size in (count.argument_size_in_bytes, count.temp_size_in_bytes)
    )
    print(f"one SDS step at 512 pixels: {held:.1f} GB of weights, {temporary:.1f} GB beside them")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch", help="interpreter of an environment with torch and diffusers")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--step", action="store_true", help="count an SDS step's memory, no more")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torch_side(args.worker)
        return 0
    if args.step:
        step_memory()
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
            error = jax_side(Path(folder), worker, args.runs)
        finally:
            worker.kill()
    return int(not error <= 1e-4)


if __name__ == "__main__":
    sys.exit(main())
