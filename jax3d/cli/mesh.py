"""`jax3d mesh`."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jax3d import camera as cameras
from jax3d.bounds import Range
from jax3d.cli import cache, terminal
from jax3d.cli.signals import Stop
from jax3d.fields.gaussians import GaussiansConfig, from_gaussians
from jax3d.mesh import MeshConfig, Views, compare, load_glb, painted, photograph, splats, write_glb
from jax3d.mesh.splats.placed import Placed, placed
from jax3d.render import splat
from jax3d.types import Camera, Look, Params

UNSEEN = 8
"""Views around the asset, none of which the texture is made from, at which the mesh is judged."""


@dataclass(frozen=True)
class Options:
    """Makes a textured mesh of a file of Gaussians, or of an asset."""

    source: tyro.conf.Positional[str] = ""
    """A .ply, .splat, .spz or .glb of 3D Gaussians, or the folder of an asset."""
    out: Path = Path("mesh.glb")
    """File to write, .glb; one that is there is replaced."""
    up: splats.Up | None = None
    """Which of the file's axes points up; None: -y in .ply and .splat, +y in .spz and .glb."""
    stray: Annotated[float, Range(0, 0.25)] = 0.001
    """Share of the Gaussians that may lie far out at either end of an axis, and be left out."""
    views: Annotated[int, Range(4, 1000)] = 40
    """Pictures from which the texture is made."""
    size: Annotated[int, Range(16, 4096)] = 512
    """Side of these, pixels."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: MeshConfig(resolution=160, faces=10_000, texture=1024)
    )


class Source(NamedTuple):
    """What is meshed."""

    config: Any
    """Of its representation."""
    params: Params
    placed: Placed | None = None
    """How a file's Gaussians lie in the file; None where they are an asset's."""


def run(options: Options, stop: Stop) -> int:
    """Writes one mesh; raises `ValueError` for a source that is none, before any work is done."""
    del stop  # ended at once: nothing would be worth keeping
    started = time.perf_counter()
    _demand_writable(options)
    source = _read(options)
    if options.cache:
        cache.turn_on()
    views = _photographed(source, _everywhere(options.views), options.size)
    terminal.say(f"{options.views} pictures of it, {_since(started)}")
    made = painted(source.config.build(), source.params, options.mesh, views)
    side = options.mesh.texture
    terminal.say(f"{len(made.faces)} faces, texture of {side} x {side}, {_since(started)}")
    write_glb(options.out, made if source.placed is None else source.placed.back(made))
    psnr, inside = _judge(options.out, source, options.size)
    terminal.say(
        f"{options.out}: {psnr:.2f} dB against {options.source} at {UNSEEN} views that its texture "
        f"was not made from, {inside:.2f} dB where that is opaque; {_since(started)}"
    )
    return 0


def _demand_writable(options: Options) -> None:
    """Finds out what can be refused before anything is read."""
    source, out = Path(options.source), options.out
    if options.mesh.lods or options.mesh.hull or options.mesh.height:
        raise ValueError("lods, hull, height: go with assets; `jax3d export` makes them of one")
    if not options.source:
        raise ValueError("no source: give a .ply, .splat, .spz or .glb, or an asset's folder")
    if not source.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    if out.suffix.lower() != ".glb":
        raise ValueError(
            f"{out}: a mesh is written as .glb; `jax3d export` also writes OBJ and PLY"
        )
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name a file in it")
    if out.exists() and out.samefile(source):
        raise ValueError(f"{out} is the source itself: give another --out")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: there is no such folder")
    if not source.is_dir():
        splats.demand_known(source)


def _read(options: Options) -> Source:
    """The Gaussians of a file, or the parameters of an asset's folder."""
    path = Path(options.source)
    if path.is_dir():
        # Imported here: a file needs no recipes.
        from jax3d import folder

        asset = folder.load_asset(path)
        return Source(asset.recipe.outcome, asset.params)
    known = splats.read(path, options.up)
    try:
        there = placed(known, options.stray)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    count, k = known.sh.shape[:2]
    left = f", {there.strays} strays left out" if there.strays else ""
    terminal.say(f"{path}: {count} Gaussians of degree {int(np.sqrt(k)) - 1}{left}")
    config = GaussiansConfig(
        capacity=len(there.gaussians.means), start=1, degree=int(np.sqrt(k)) - 1, densify=None
    )
    params = from_gaussians(there.gaussians, config, jax.random.key(0))
    return Source(config, params, there)


def _photographed(source: Source, camera: Camera, size: int) -> Views:
    """Pictures of the source, with room for all of its Gaussians."""
    views = photograph(source.config.build(), source.params, camera, size)
    if not views.overflow:
        return views
    own = source.config.splat
    room = splat.room(own, source.config.capacity) + views.overflow
    config = dataclasses.replace(source.config, splat=dataclasses.replace(own, hits=room))
    return photograph(config.build(), source.params, camera, size)


def _everywhere(count: int) -> Camera:
    """Cameras evenly spread over a sphere, which see a ball of 0.95 m whole."""
    height = 1 - (2 * jnp.arange(count) + 1) / count
    azimuth = jnp.arange(count) * jnp.pi * (3 - jnp.sqrt(5.0))
    fovy = jnp.radians(42.0)
    return cameras.orbit(azimuth, jnp.arcsin(height), 1.02 * 0.95 / jnp.sin(fovy / 2), fovy)


def _judge(out: Path, source: Source, size: int) -> tuple[float, float]:
    """PSNR of the file's pictures, over white, against those of the source: whole, and where the
    source is opaque, which leaves out what its soft outline makes of a mesh's sharp one."""
    mesh = load_glb(out)
    mesh = mesh if source.placed is None else source.placed.there(mesh)
    camera = cameras.around(UNSEEN, 20.0)
    views = _photographed(source, camera, size)
    rgb = views.rgb + (1 - views.alpha)[..., None]
    likeness = compare(mesh, rgb, camera, Look.albedo())
    opaque = (likeness.rgb - rgb)[views.alpha > 0.98]
    error = np.mean(opaque**2) if opaque.size else np.nan
    return likeness.psnr, float(-10 * np.log10(max(error, 1e-10)))


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.0f} s"
