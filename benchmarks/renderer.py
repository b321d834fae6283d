"""The triplane renderer against PyTorch: 64x64 rays, 64 samples, forward and backward.

    python benchmarks/renderer.py [--json FILE] [--repeats 5] [--assets 4]

Planes 3 x 32 x 64 x 64, concatenated, a ReLU network 96-64-64-4, white background, an opaque ball.
PyTorch runs `grid_sample` as TripoSR writes it, eager, compiled, and with our mask of occupied
samples (boolean indexing). Needs the extra `[torch]`; without it only our figures are printed.
"""

# ruff: noqa: E402
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import timing

timing.pin()

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jax3d import camera
from jax3d.fields.triplane import TriplaneConfig, density_lattice, triplane
from jax3d.render import sparse, volume
from jax3d.types import Look

try:
    import torch
except ImportError:
    torch = None

SIZE, SAMPLES = 64, 64
DENSE = TriplaneConfig(
    resolution=64, channels=32, levels=1, hidden=64, samples=SAMPLES, blob_density=200.0, lattice=0
)
SPARSE = replace(DENSE, lattice=32)
RAYS = volume.VolumeConfig(bound=DENSE.bound, samples=SAMPLES)


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    repeats: int = 5
    assets: int = 4
    """Scenes rendered one after the other in one program."""
    compiled: bool = True
    """Also run `torch.compile`."""


def ours(cfg: TriplaneConfig, cam, gradient: bool):
    """The loss of one asset, the mean squared distance of its picture to grey, or its gradient."""

    def loss(params):
        out = triplane(cfg).render(params, None, cam, Look.albedo(), (SIZE, SIZE))
        return jnp.mean((out.over(1.0) - 0.5) ** 2)

    return jax.value_and_grad(loss) if gradient else loss


def over_assets(one, params):
    """A program for all assets."""
    program = jax.jit(lambda params: jax.lax.map(one, params))
    return lambda: jax.block_until_ready(program(params))


def temporary_megabytes(one, params) -> float:
    """What XLA allocates for one asset beside inputs and results."""
    first = jax.tree.map(lambda a: a[0], params)
    return jax.jit(one).lower(first).compile().memory_analysis().temp_size_in_bytes / 1e6


def samples_of(cam):
    """The points that are rendered, the edges of their intervals and a function to mask them."""
    rays = jax.tree.map(lambda a: a.reshape(-1, 3), camera.rays(cam, (SIZE, SIZE)))
    edges, t = volume.place(None, rays, jnp.full(len(rays.origins), 0.5), RAYS)
    x = rays.origins[:, None] + t[..., None] * rays.directions[:, None]

    def occupied(params):
        bounds = sparse.bounds(density_lattice(params, SPARSE))
        return sparse.occupied(bounds, rays, edges, t, SPARSE.bound, SPARSE.cull)

    return x.reshape(-1, 3), edges, occupied


class TorchScene:
    """The same asset for PyTorch."""

    def __init__(self, params, x, delta, keep):
        def leaf(a):
            return torch.tensor(np.ascontiguousarray(a)).requires_grad_()

        self.planes = leaf(np.asarray(params["planes"][0]).transpose(0, 3, 1, 2))
        self.mlp = [(leaf(layer["w"]), leaf(layer["b"])) for layer in params["mlp"]]
        self.x, self.delta = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(delta))
        self.keep = torch.tensor(np.asarray(keep).reshape(-1))

    def loss(self, masked: bool):
        """As `ours`; `masked` evaluates the kept samples only."""
        x = self.x[self.keep] if masked else self.x
        # grid_sample takes (last axis, first axis).
        pairs = torch.stack([x[:, [1, 0]], x[:, [2, 0]], x[:, [2, 1]]])
        features = torch.nn.functional.grid_sample(self.planes, pairs[:, None], align_corners=True)
        h = features[:, :, 0].permute(2, 0, 1).reshape(len(x), -1)
        for w, b in self.mlp[:-1]:
            h = torch.relu(h @ w + b)
        raw = h @ self.mlp[-1][0] + self.mlp[-1][1]
        distance = ((x * x).sum(-1) + 1e-6).sqrt()
        blob = DENSE.blob_density * (1 - distance / DENSE.blob_radius)
        sigma = torch.nn.functional.softplus(raw[:, 0] + blob)
        rgb = torch.sigmoid(raw[:, 1:])
        if masked:
            sigma = torch.zeros(len(self.x)).index_put((self.keep,), sigma)
            rgb = torch.zeros(len(self.x), 3).index_put((self.keep,), rgb)
        tau = sigma.reshape(self.delta.shape) * self.delta
        weight = torch.exp(tau - torch.cumsum(tau, -1)) * (1 - torch.exp(-tau))
        color = (weight[..., None] * rgb.reshape(*tau.shape, 3)).sum(1)
        return ((color + 1 - weight.sum(-1, keepdim=True) - 0.5) ** 2).mean()

    def step(self, loss, masked: bool):
        """Forward and backward."""
        for leaf in (self.planes, *(p for layer in self.mlp for p in layer)):
            leaf.grad = None
        value = loss(masked)
        value.backward()
        return value.item()


def rivals(params, cam, args: Args) -> dict:
    """PyTorch's programs over all assets, checked to render what we render."""
    torch.set_num_threads(1)
    x, edges, occupied = samples_of(cam)
    delta = jnp.diff(edges, axis=-1)
    assets = [jax.tree.map(lambda a, i=i: a[i], params) for i in range(args.assets)]
    scenes = [TorchScene(p, x, delta, jax.jit(occupied)(p)) for p in assets]
    expected = float(jax.jit(ours(DENSE, cam, False))(assets[0]))
    np.testing.assert_allclose(scenes[0].loss(False).item(), expected, rtol=1e-3)

    def forward():
        with torch.no_grad():
            return [scene.loss(False).item() for scene in scenes]

    programs = {
        "torch eager": lambda: [s.step(s.loss, False) for s in scenes],
        "torch eager, our mask": lambda: [s.step(s.loss, True) for s in scenes],
        "torch eager, forward": forward,
    }
    if args.compiled:
        compiled = torch.compile(TorchScene.loss)
        programs["torch.compile"] = lambda: [
            s.step(lambda masked, s=s: compiled(s, masked), False) for s in scenes
        ]
    return programs


BARS = (
    ("ours, dense", "torch eager", 3.3),
    ("ours, dense", "torch.compile", 3.0),
    ("ours, occupied samples", "torch eager", 14.0),
    ("ours, occupied samples", "torch eager, our mask", 2.0),
    ("ours, dense, forward", "torch eager, forward", 6.0),
    ("ours, occupied samples", "ours, plain reference", None),
)
"""How many times faster the first shall be than the second."""


def descent(params):
    """A step of Adam on all assets, and no more."""
    adam = optax.adam(0.01)

    @partial(jax.jit, donate_argnums=0)
    def update(state, gradient):
        params, moments = state
        change, moments = adam.update(gradient, moments)
        return optax.apply_updates(params, change), moments

    gradient = jax.tree.map(jnp.ones_like, params)
    state = [(jax.tree.map(jnp.copy, params), adam.init(params))]

    def descend():
        state[0] = jax.block_until_ready(update(state[0], gradient))

    return descend


def main(args: Args) -> None:
    """Measure and print."""
    cam = camera.orbit(jnp.array([0.4]), jnp.array([0.3]), 2.6, 0.75)
    params = jax.vmap(triplane(DENSE).init)(jax.random.split(jax.random.key(0), args.assets))
    dense, sparse_ = ours(DENSE, cam, True), ours(SPARSE, cam, True)
    programs = {
        "ours, dense": over_assets(dense, params),
        "ours, occupied samples": over_assets(sparse_, params),
        "ours, dense, forward": over_assets(ours(DENSE, cam, False), params),
        "ours, plain reference": over_assets(
            ours(replace(DENSE, reference=True), cam, True), params
        ),
        "Adam": descent(params),
    } | (rivals(params, cam, args) if torch else {})
    seconds = timing.alternate(programs, args.repeats)
    figures = {
        "milliseconds": {k: timing.figure(1e3 * s / args.assets) for k, s in seconds.items()},
        "temporaries_mb": {
            "dense": temporary_megabytes(dense, params),
            "occupied": temporary_megabytes(sparse_, params),
        },
        "kept": float(jnp.mean(samples_of(cam)[2](jax.tree.map(lambda a: a[0], params)))),
    }
    ratios = [(a, b, seconds[b] / seconds[a], bar) for a, b, bar in BARS if b in seconds]
    figures["ratios"] = {f"{a} over {b}": timing.figure(r) for a, b, r, _ in ratios}
    figures["adam_share"] = timing.figure(seconds["Adam"] / seconds["ours, dense"])
    timing.show(
        "CPU time of an asset's step, ms",
        ["program", "median [lowest..highest]"],
        [[k, timing.spread(1e3 * s / args.assets, 1)] for k, s in seconds.items()],
    )
    timing.show(
        "How many times faster",
        ["program", "than", "median [lowest..highest]", "bar"],
        [[a, b, timing.spread(r), "" if bar is None else f"{bar}"] for a, b, r, bar in ratios],
    )
    print(
        f"temporaries: dense {figures['temporaries_mb']['dense']:.0f} MB, occupied "
        f"{figures['temporaries_mb']['occupied']:.0f} MB (bar 64); samples kept "
        f"{figures['kept']:.1%}; Adam over the dense step "
        f"{timing.spread(100 * seconds['Adam'] / seconds['ours, dense'], 1)} % (bar 4)"
    )
    timing.save(args.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Args))
