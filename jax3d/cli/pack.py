"""`jax3d pack`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from jax3d.bounds import Text
from jax3d.cli import terminal
from jax3d.cli.signals import Stop


@dataclass(frozen=True)
class Options:
    """Packs kept assets for a studio: meshes by name, thumbnails, a catalog."""

    folder: tyro.conf.Positional[str] = ""
    """Of the assets: the --out of what made them."""
    keep: str | None = None
    """The choices.json that the page saves: packs what is kept or starred. None packs all."""
    out: str = "pack"
    """Folder of the pack: missing, empty, or an earlier pack, which is replaced."""
    zip: bool = False
    """Write the pack as one archive as well, OUT.zip."""
    licence: Text | None = None
    """The note on rights in the catalog; None: by whom each asset was made, and from what."""


def run(options: Options, stop: Stop) -> int:
    """Packs; returns 1 where an asset is not whole, which is told."""
    del stop  # ended at once: nothing is in place before all is made
    if not options.folder:
        raise ValueError("no folder: give that of the assets, such as out")
    # Imported here: help does not wait for JAX.
    from jax3d import choices, pack

    keep = None if options.keep is None else choices.read(options.keep)
    made = pack.pack(options.folder, options.out, keep, options.licence)
    for name, why in made.skipped.items():
        terminal.say(f"{name} is not packed: {why}")
    for name, why in made.lacking.items():
        terminal.say(f"{name} is packed without {why}")
    if made.entries and options.zip:
        archive = Path(options.out).resolve()
        pack.write_zip(archive, archive.with_name(f"{archive.name}.zip"))
    terminal.say(
        f"{len(made.entries)} of {len(made.entries) + len(made.skipped)} assets packed"
        f"{f': {options.out}/{pack.CATALOG}' if made.entries else ''}"
    )
    return 1 if made.skipped or made.lacking else 0
