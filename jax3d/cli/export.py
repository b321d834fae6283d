"""`jax3d export`."""

import dataclasses
from dataclasses import dataclass

import tyro
from etils import epath

from jax3d import bounds
from jax3d.cli import cache, terminal
from jax3d.cli.making import OfMesh, Short
from jax3d.cli.options import parse
from jax3d.cli.signals import Stop
from jax3d.mesh import MeshConfig
from jax3d.recipe import Pictures


@dataclass(frozen=True)
class Options:
    """Makes meshes, pictures and turntables of finished assets again, at other sizes."""

    folders: tyro.conf.Positional[tuple[str, ...]] = ()
    """Of assets, such as out/0000-a-red-chair. What no option says stays as each was made."""
    out: str | None = None
    """Folder of the new files, one within it for each asset; None: they replace the old ones."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    short: Short = dataclasses.field(default_factory=OfMesh)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    pictures: Pictures = dataclasses.field(default_factory=Pictures)
    argv: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    """The arguments themselves: each asset has defaults of its own."""


def run(options: Options, stop: Stop) -> int:
    """Exports one asset after the other; returns 1 where a file of one could not be made.

    Raises `ValueError`, before anything is written, where a folder holds no asset.
    """
    if not options.folders:
        raise ValueError("no folder: give one or more of assets, such as out/0000-a-red-chair")
    # Imported here: what meshes and writes is not needed to tell the options.
    from jax3d import finish, folder

    sources = [epath.Path(name) for name in options.folders]
    targets = _targets(sources, options.out)
    assets = [_of_asset(options, folder.load_asset(source).recipe) for source in sources]
    if options.cache:
        cache.turn_on()
    code = 0
    with stop.patience():
        for source, target, own in zip(sources, targets, assets, strict=True):
            record = finish.export(source, target, mesh=own.mesh, pictures=own.pictures)
            terminal.say(f"{target}: {', '.join(sorted(record['files']))}")
            for name, why in record["errors"].items():
                terminal.say(f"{target}: {name} is not made: {why}")
                code = 1
            if stop():
                return stop.exit_code
    return code


def _of_asset(options: Options, recipe) -> Options:
    """The options where the asset's own recipe is the default."""
    own = dataclasses.replace(options, mesh=recipe.mesh, pictures=recipe.pictures)
    own = parse(own, list(options.argv), "jax3d export")
    bounds.check(own)
    return dataclasses.replace(own, mesh=own.short.of(own.mesh))


def _targets(sources: list[epath.Path], out: str | None) -> list[epath.Path]:
    """Where each asset's files go; raises `ValueError` where two would share a folder."""
    if out is None:
        return sources
    names = [source.resolve().name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two folders are called {name}: export them to an --out each")
    return [epath.Path(out) / name for name in names]
