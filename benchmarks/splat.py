"""The Gaussian splatter against PyTorch: forward and backward, one view.

    python benchmarks/splat.py [--json FILE] [--repeats 5]

2000 Gaussians at 64 x 64 pixels and 5000 at 128 x 128: a ball of them, of degree 0, seen over
white; the loss is the mean squared distance to grey, its gradient goes to all five groups of
parameters. PyTorch runs the same formulas, eager: "tile loop" takes each tile of 8 x 8 pixels
with the Gaussians whose box reaches it, nearest first; "dense" takes every Gaussian at every pixel
of the smaller scene. Needs the extra `[torch]`; without it only our figures are printed.
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path

import timing

timing.pin()

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jax3d import camera
from jax3d.render import ewa, splat
from jax3d.types import Gaussians

try:
    import torch
except ImportError:
    torch = None

MOST_DENSE = 1e7
"""Pairs of a pixel and a Gaussian that the dense programs are run for."""
SCENES = {"2k @ 64^2": (2000, 64, 3.5), "5k @ 128^2": (5000, 128, 1.6)}
"""How many, the picture's side, and by how much we are to be faster than the tile loop."""
CAMERA = camera.orbit(jnp.array([0.4]), jnp.array([0.3]), 2.6, 0.75)
TILE = 8
"""The fastest of 8, 16 and 32 for PyTorch's loop."""


@dataclass(frozen=True)
class Args:
    """Options."""

    json: Path | None = None
    repeats: int = 5
    dense: bool = True
    """Also run the dense programs, ours and PyTorch's, which take seconds."""


def dense(n: int, side: int, args: Args) -> bool:
    """Whether the dense programs are run."""
    return args.dense and n * side**2 < MOST_DENSE


def ball(n: int) -> Gaussians:
    """Gaussians of about the distance of their neighbours."""
    keys = jax.random.split(jax.random.key(0), 5)
    return Gaussians(
        means=0.8 * jax.random.ball(keys[0], 3, shape=(n,)),
        quats=jax.random.normal(keys[1], (n, 4)),
        scales=0.5 * n ** (-1 / 3) * jnp.exp(0.4 * jax.random.normal(keys[2], (n, 3))),
        opacities=jax.nn.sigmoid(1.5 * jax.random.normal(keys[3], (n,))),
        sh=0.5 * jax.random.normal(keys[4], (n, 1, 3)),
    )


def loss(show, scene: Gaussians, side: int):
    """Of one of our renderers."""
    size = (side, side)
    out = show(scene, ewa.view_of(CAMERA, size), size)
    rgb = out.rgb + (1 - out.alpha)[..., None]
    return jnp.mean((rgb - 0.5) ** 2)


def ours(show, scene: Gaussians, side: int):
    """A program: the loss and its gradient."""
    program = jax.jit(jax.value_and_grad(lambda scene: loss(show, scene, side)))
    return lambda: jax.block_until_ready(program(scene))


class TorchScene:
    """The same scene for PyTorch."""

    def __init__(self, scene: Gaussians, side: int):
        self.leaves = [torch.tensor(np.asarray(x)).requires_grad_() for x in jax.tree.leaves(scene)]
        view = ewa.view_of(CAMERA, (side, side))
        self.viewmat, self.k = (torch.tensor(np.asarray(x[0])) for x in view)
        self.side = side

    def project(self):
        """Means, conics, colours and boxes of what is in front, nearest first."""
        means, quats, scales, opacities, sh = self.leaves
        w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
        rotation = torch.stack(
            [
                *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
                *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
                *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
            ],
            -1,
        ).reshape(-1, 3, 3)
        half = self.viewmat[:3, :3] @ (rotation * scales[:, None])
        x, y, depth = (means @ self.viewmat[:3, :3].T + self.viewmat[:3, 3]).unbind(-1)
        focal, centre = self.k[0, 0], self.k[0, 2]
        zero, limit = torch.zeros_like(x), 0.65 * self.side / focal
        hold = lambda a: (a / depth).clamp(-limit, limit)  # noqa: E731
        jacobian = focal * torch.stack(
            [1 / depth, zero, -hold(x) / depth, zero, 1 / depth, -hold(y) / depth], -1
        ).reshape(-1, 2, 3)
        root = jacobian @ half
        cov = root @ root.transpose(1, 2) + 0.3 * torch.eye(2)
        a, b, c = cov[:, 0, 0], cov[:, 0, 1], cov[:, 1, 1]
        conic = torch.stack([c, -b, a], -1) / (a * c - b * b)[:, None]
        mean = focal * torch.stack([x, y], -1) / depth[:, None] + centre
        rgb = (ewa.SH0 * sh[:, 0] + 0.5).clamp(min=0)
        with torch.no_grad():
            reach = torch.sqrt(2 * torch.log((255 * opacities).clamp(min=1)))
            box = (reach * torch.sqrt(torch.stack([a, c]))).T
            order = torch.argsort(depth)
        return [value[order] for value in (mean, conic, opacities, rgb, box)]

    def blend(self, pixels, mean, conic, opacity, rgb):
        """Colours over white of pixels `[p, 2]`."""
        dx, dy = (mean - pixels[:, None]).unbind(-1)
        a, b, c = conic.unbind(-1)
        alpha = opacity * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        alpha = alpha.clamp(max=splat.MOST)
        alpha = torch.where(alpha >= ewa.CUT, alpha, 0.0)
        after = torch.cumprod(1 - alpha, -1)
        alpha = torch.where(after > splat.DARK, alpha, 0.0)
        after = torch.cumprod(1 - alpha, -1)
        before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], -1)
        return (before * alpha) @ rgb + after[:, -1:]

    def pixels(self, left: int, top: int, side: int):
        """Centres of a square of pixels."""
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        return torch.stack([column + left, row + top], -1).reshape(-1, 2) + 0.5

    def dense(self):
        """The loss, every Gaussian at every pixel."""
        *values, _ = self.project()
        rgb = self.blend(self.pixels(0, 0, self.side), *values)
        return ((rgb - 0.5) ** 2).mean()

    def tiles(self):
        """The loss, tile by tile."""
        *values, box = self.project()
        low, high = (values[0] - box).detach(), (values[0] + box).detach()
        total = 0.0
        for top in range(0, self.side, TILE):
            for left in range(0, self.side, TILE):
                corner = torch.tensor([left, top], dtype=torch.float32)
                near = ((high > corner) & (low < corner + TILE)).all(-1).nonzero()[:, 0]
                if len(near):
                    part = [value[near] for value in values]
                    rgb = self.blend(self.pixels(left, top, TILE), *part)
                    total = total + ((rgb - 0.5) ** 2).sum()
                else:
                    total = total + 3 * TILE**2 * 0.25
        return total / (3 * self.side**2)

    def step(self, loss):
        """Forward and backward."""
        for leaf in self.leaves:
            leaf.grad = None
        value = loss()
        value.backward()
        return value.item()


def rivals(scene: Gaussians, side: int, args: Args) -> dict:
    """PyTorch's programs, checked to have our loss and gradient."""
    torch.set_num_threads(1)
    theirs = TorchScene(scene, side)
    programs = {"torch, tile loop": lambda: theirs.step(theirs.tiles)}
    if dense(len(scene.means), side, args):
        programs["torch, dense"] = lambda: theirs.step(theirs.dense)
    value, slopes = jax.jit(jax.value_and_grad(lambda s: loss(splat.splat, s, side)))(scene)
    for program in programs.values():
        np.testing.assert_allclose(program(), float(value), rtol=1e-4)
        for leaf, slope in zip(theirs.leaves, jax.tree.leaves(slopes), strict=True):
            scale = float(jnp.abs(slope).max())
            np.testing.assert_allclose(leaf.grad.numpy(), slope, atol=1e-3 * scale)
    return programs


def main(args: Args) -> None:
    """Measure and print."""
    figures, rows, ratios = {}, [], []
    for name, (n, side, bar) in SCENES.items():
        scene = ball(n)
        size = (side, side)
        overflow = splat.splat(scene, ewa.view_of(CAMERA, size), size).overflow
        assert not overflow.any(), f"{name}: {overflow} hits had no room"
        programs = {"ours": ours(splat.splat, scene, side)}
        if dense(n, side, args):
            programs["ours, plain reference"] = ours(splat.splat_reference, scene, side)
        programs |= rivals(scene, side, args) if torch else {}
        seconds = timing.alternate(programs, args.repeats)
        figures[name] = {k: timing.figure(1e3 * s) for k, s in seconds.items()}
        rows += [[f"{name}, {k}", timing.spread(1e3 * s, 1)] for k, s in seconds.items()]
        for other, s in seconds.items():
            if other != "ours":
                aim = f"{bar}" if other == "torch, tile loop" else ""
                ratios.append([name, other, timing.spread(s / seconds["ours"]), aim])
    timing.show("CPU time of a step, ms", ["program", "median [lowest..highest]"], rows)
    columns = ["ours", "than", "median [lowest..highest]", "bar"]
    timing.show("How many times faster", columns, ratios)
    timing.save(args.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Args))
