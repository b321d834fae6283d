"""The full-size TripoSR: our planes and time against its authors' code, and our memory.

    python benchmarks/triposr.py --torch TORCH_PYTHON --repo TRIPOSR [--runs 3]
    python benchmarks/triposr.py --alone [--runs 3]

TORCH_PYTHON is the interpreter of another environment with torch, omegaconf, einops, pillow and
transformers below 4.46, whose positions are the official ones (`pip install torch==2.13.0
transformers==4.44.2 omegaconf einops pillow`); TRIPOSR is a checkout of
https://github.com/VAST-AI-Research/TripoSR. It makes random weights and writes them as a folder of
1.7 GB, which is then read here. Both sides read one picture of 512 pixels in float32 on one thread,
in turns; times are CPU seconds of the process, so pin the script to a core (`taskset -c 1`) where
the machine is shared. Needs 8 GB of memory. `--alone` draws the weights here and times ours.

The exit code is 1 if the planes differ by more than 1e-4 of the greatest value.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np

OFFICIAL = {
    "cond_image_size": 512,
    "image_tokenizer": {"pretrained_model_name_or_path": "facebook/dino-vitb16"},
    "tokenizer": {"plane_size": 32, "num_channels": 1024},
    "backbone": {"num_attention_heads": 16, "attention_head_dim": 64, "num_layers": 16},
    "post_processor": {"out_channels": 40},
    "decoder": {"n_neurons": 64, "n_hidden_layers": 9, "activation": "silu"},
    "renderer": {
        "radius": 0.87,
        "feature_reduction": "concat",
        "density_activation": "exp",
        "density_bias": -1.0,
        "num_samples_per_ray": 128,
    },
}
"""What our reader takes of the official `config.yaml`."""

VIT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "model_type": "vit",
}
"""facebook/dino-vitb16, whose weights are in TripoSR's checkpoint and whose config is not."""


def picture() -> np.ndarray:
    """What both sides read."""
    return np.random.default_rng(0).random((512, 512, 3), dtype=np.float32)


def official() -> dict:
    """The whole config, with what our reader does not need."""
    parts = {
        "image_tokenizer": "tokenizers.image.DINOSingleImageTokenizer",
        "tokenizer": "tokenizers.triplane.Triplane1DTokenizer",
        "backbone": "transformer.transformer_1d.Transformer1D",
        "post_processor": "network_utils.TriplaneUpsampleNetwork",
        "decoder": "network_utils.NeRFMLP",
        "renderer": "nerf_renderer.TriplaneNeRFRenderer",
    }
    config = json.loads(json.dumps(OFFICIAL))
    config |= {f"{name}_cls": f"tsr.models.{kind}" for name, kind in parts.items()}
    config["backbone"] |= {"in_channels": 1024, "cross_attention_dim": 768}
    config["post_processor"]["in_channels"] = 1024
    config["decoder"]["in_channels"] = 120
    return config


def torch_side(folder: Path, repo: Path) -> None:
    """Writes weights and planes, then times one call for each line read."""
    # What makes meshes, cuts out pictures and writes videos is imported by the code and not asked.
    for name in ("rembg", "torchmcubes", "imageio", "trimesh"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchmcubes"].marching_cubes = None
    sys.path.insert(0, str(repo))
    import huggingface_hub
    import torch
    from omegaconf import OmegaConf

    vit = folder / "vit" / "config.json"
    vit.parent.mkdir()
    vit.write_text(json.dumps(VIT))
    huggingface_hub.hf_hub_download = lambda repo_id, filename: str(vit)
    from tsr.system import TSR

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    model = TSR(OmegaConf.create(official())).eval()
    OmegaConf.save(OmegaConf.create(official()), folder / "config.yaml")
    torch.save(model.state_dict(), folder / "model.ckpt")
    np.save(folder / "planes.npy", model([picture()], "cpu").numpy())
    print("ready", flush=True)
    for _ in sys.stdin:
        before = time.process_time()
        model([picture()], "cpu")
        print(time.process_time() - before, flush=True)


def peak() -> float:
    """The greatest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def jax_side(folder: Path | None, worker: subprocess.Popen | None, runs: int) -> float:
    """Loads, compares, times in turns; the error as a fraction of the greatest value."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp

    from jax3d.models import lrm, triposr

    jnp.zeros(1).block_until_ready()
    bare, start = peak(), time.process_time()
    if folder is None:
        design = triposr.design(OFFICIAL)
        params = lrm.split(drawn(lrm.abstract_params(design)))
    else:
        design, params = triposr.load(folder)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9
    seconds = time.process_time() - start
    print(f"weights: {seconds:.1f} s CPU, {peak() - bare:.2f} GB for {held:.2f} GB")
    image = jnp.asarray(design.picture(picture()))
    start = time.process_time()
    run = jax.jit(design.planes).lower(params["network"], image).compile()
    temporary = run.memory_analysis().temp_size_in_bytes / 1e9
    print(f"compiling: {time.process_time() - start:.1f} s CPU")
    ours = np.asarray(run(params["network"], image))
    print(f"memory: {peak():.2f} GB at most, {temporary:.2f} GB of it beside the weights")
    error = 0.0
    if folder is not None:
        theirs = np.load(folder / "planes.npy")[0].transpose(0, 3, 2, 1)
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        print(f"greatest difference: {error:.1e} of the greatest value")

    times: dict[str, list[float]] = {"jax": [], "torch": []}
    for _ in range(runs):
        before = time.process_time()
        run(params["network"], image).block_until_ready()
        times["jax"].append(time.process_time() - before)
        if worker is not None:
            worker.stdin.write("go\n")
            worker.stdin.flush()
            times["torch"].append(float(worker.stdout.readline()))
    for name, seconds in times.items():
        if seconds:
            middle = statistics.median(seconds)
            print(f"{name}: {middle:.2f} s CPU [{min(seconds):.2f}..{max(seconds):.2f}]")
    if worker is not None:
        ratios = [a / b for a, b in zip(times["jax"], times["torch"], strict=True)]
        middle = statistics.median(ratios)
        print(f"jax / torch: {middle:.2f} [{min(ratios):.2f}..{max(ratios):.2f}]")
    return error


def drawn(like):
    """Random weights of the given shapes, small enough that nothing overflows."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32), x.dtype), like
    )


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch", help="interpreter of an environment with torch, transformers")
    parser.add_argument("--repo", type=Path, help="checkout of VAST-AI-Research/TripoSR")
    parser.add_argument("--alone", action="store_true", help="time ours on weights drawn here")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torch_side(args.worker, args.repo)
        return 0
    if args.alone:
        jax_side(None, None, args.runs)
        return 0
    if not args.torch or not args.repo:
        parser.error("--torch and --repo are needed: an environment with torch, and the checkout")
    with tempfile.TemporaryDirectory() as folder:
        worker = subprocess.Popen(
            [args.torch, __file__, "--worker", folder, "--repo", str(args.repo.absolute())],
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
