"""What a studio takes from a folder of assets: meshes by name, pictures of them, a catalog.

    pack/meshes/SLUG.glb               the mesh, its texture inside; SLUG is the asset's folder
    pack/meshes/SLUG_lod1.glb, ...     coarser ones, whose texture is SLUG.png beside them
    pack/meshes/SLUG.png               that texture, where there are coarser ones
    pack/meshes/SLUG_hull.glb          the convex hull
    pack/thumbnails/SLUG.png           from the front
    pack/contact_sheet.png             all of them, in the catalog's order
    pack/catalog.json, catalog.csv     what each is and how it was made

Every file is held to its checksum on the way. A pack is written over only where it was one before:
what its catalog names and the new one does not is removed, and nothing else.
"""

import hashlib
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

import jax3d
from jax3d import choices, folder, gallery, image, ledger, mesh, record
from jax3d.mesh.export import TO_FILE
from jax3d.models import props_lrm, props_native
from jax3d.priors import embedded

KIND = "jax3d pack"
CATALOG = "catalog.json"
SHEET = "contact_sheet.png"
THUMBNAIL = 256
"""Side, pixels."""
_SHEET_SIDE = 4096
"""About the longest side of the contact sheet, pixels."""
_PARTS = ("meshes", "thumbnails")
_EMBEDDED = (props_native.NAME, props_lrm.NAME, embedded.NAME)
_WANTED = re.compile(r"mesh(_lod[0-9]+)?\.glb|hull\.glb|mesh\.png|mesh|views\.png")
"""Files of an asset, and parts of its making, that a pack is to have."""


class NotWhole(ValueError):
    """An asset that cannot be packed, and why."""


class Packed(NamedTuple):
    """What became of a pack."""

    entries: list[dict[str, Any]]
    """Of the catalog."""
    skipped: dict[str, str]
    """Assets that are not in it, and why."""
    lacking: dict[str, str]
    """Assets that are, without a file that they should have, and why."""


def pack(
    out: epath.PathLike,
    target: str | os.PathLike,
    keep: choices.Choices | None = None,
    licence: str | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Packed:
    """Packs the assets of a folder.

    Args:
      out: The folder; it may be a bucket's URL.
      target: The folder of the pack, on this machine: missing, empty, or a pack.
      keep: Those whose choice is `kept` are packed; None: all that were made.
      licence: The note on rights in the catalog, in place of `licence_of`.
      told: Called with each asset's name once it is in the pack.

    Where no asset is whole, an earlier pack stays as it was.

    Raises:
      ValueError: There is nothing to pack, or `target` is no place for it.
      OSError: A file cannot be read or written.
    """
    out, target = epath.Path(out), Path(target)
    names = _names(out, keep)
    before = _demand_place(target)
    new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    fresh = target / ".packing"
    shutil.rmtree(fresh, ignore_errors=True)
    for part in _PARTS:
        (fresh / part).mkdir(parents=True)
    made = Packed([], {}, {})
    try:
        for name in names:
            try:
                entry = _entry(out, name, fresh, licence, made.lacking)
            except NotWhole as error:
                made.skipped[name] = str(error)
                continue
            entry["note"] = keep[name].note if keep is not None else ""
            entry["starred"] = keep is not None and keep[name].choice == "star"
            made.entries.append(entry)
            told(name)
        if made.entries:
            _write_sheet(fresh, made.entries)
            _write_catalog(fresh, made.entries)
            _publish(fresh, target, before)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if new and not any(target.iterdir()):
            target.rmdir()
    return made


def write_zip(target: str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes a pack as one archive: the files that its catalog names, under the folder's name.

    The same pack gives the same bytes. Raises `ValueError` where `target` is no pack.
    """
    target, path = Path(target), Path(path)
    root = target.resolve().name
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        with zipfile.ZipFile(fresh, "x", zipfile.ZIP_DEFLATED) as archive:
            for name in _listed(record.read_json(target / CATALOG), target):
                info = zipfile.ZipInfo(f"{root}/{name}")
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                archive.writestr(info, (target / name).read_bytes())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def licence_of(about: dict) -> str:
    """The note on rights of an asset, from its record: by whom it was made, and from what."""
    names = about["critic"].split(", then ")
    maker = about["recipe"].get("maker") or {}
    note = f"Made by {about['critic']} (jax3d {about['versions'].get('jax3d', 'unknown')})"
    if all(name in _EMBEDDED for name in names) and not maker.get("weights"):
        note += ": networks of jax3d, Apache-2.0, trained on synthetic props alone"
    else:
        note += ": their licences say what may be done with what they make"
    if about.get("picture"):
        note += ". Made from a picture, whose rights remain its owner's"
    return f"{note}."


# ---------------------------------------------------------------- what is asked


def _names(out: epath.Path, keep: choices.Choices | None) -> list[str]:
    names = folder.names(out) if keep is None else [n for n, c in keep.items() if c.kept]
    if keep is None:
        about = folder.records(out, names)
        names = [name for name in names if about.get(name, {}).get("best", True)]
    if not names:
        why = "it holds no assets" if keep is None else "no asset is kept or starred"
        raise ValueError(f"{out}: nothing to pack: {why}")
    return sorted(names)


def _demand_place(target: Path) -> list[str]:
    """The files of the pack that is there; raises `ValueError` where something else is."""
    if target.is_file() or folder.is_url(target):
        raise ValueError(f"{target} is no folder of this machine: choose another --out")
    folder.refuse_links(epath.Path(target), (*_PARTS, ".packing"))
    # One that was cut short while it was put in place has its catalog where it was made.
    catalogs = [p for p in (target / CATALOG, target / ".packing" / CATALOG) if p.exists()]
    there = target.iterdir() if target.is_dir() else ()
    if not catalogs and any(path.name != ".packing" for path in there):
        raise ValueError(f"{target} is not empty, and no pack: choose another --out")
    return [name for path in catalogs for name in _listed(record.read_json(path), target)]


def _listed(catalog: dict, target: Path) -> list[str]:
    """The files that a catalog names, itself among them; raises `ValueError` where it is none."""
    if catalog.get("kind") != KIND or not isinstance(catalog.get("files"), list):
        raise ValueError(f"{target / CATALOG} is no catalog of a pack: choose another --out")
    part = f"({'|'.join(_PARTS)})"
    safe = re.compile(rf"({part}/)?[A-Za-z0-9][A-Za-z0-9._-]*")
    strange = [n for n in catalog["files"] if not isinstance(n, str) or not safe.fullmatch(n)]
    if strange:
        raise ValueError(f"{target / CATALOG} names {strange[0]!r}, which is no file of a pack")
    return catalog["files"]


# ---------------------------------------------------------------- one asset


def _entry(out, name, fresh, licence, lacking) -> dict[str, Any]:
    """Writes the files of an asset; returns its entry. Raises `NotWhole`."""
    source = out / name
    about = _about(source)
    files = {n: s for n, s in about["files"].items() if _WANTED.fullmatch(n)}
    content = {n: _content(source / n, s["sha256"]) for n, s in files.items()}
    levels = sorted((n for n in files if "_lod" in n), key=lambda n: int(n[8:-4]))
    if failed := [f"{n}: {why}" for n, why in about["errors"].items() if _WANTED.fullmatch(n)]:
        lacking[name] = "; ".join(failed)
    meshes = fresh / "meshes"
    try:
        (meshes / f"{name}.glb").write_bytes(content["mesh.glb"])
        size = np.ptp(mesh.load_glb(meshes / f"{name}.glb").vertices, axis=0)[TO_FILE]
        lods = []
        for level in levels:
            file = f"{name}{level[4:]}"
            glb = mesh.with_texture(content[level], f"{name}.png")
            (meshes / file).write_bytes(glb)
            lods.append({"file": f"meshes/{file}", "faces": mesh.glb_faces(glb)})
        faces = mesh.glb_faces(content["mesh.glb"])
    except ValueError as error:
        raise NotWhole(str(error)) from error
    if lods:
        (meshes / f"{name}.png").write_bytes(content["mesh.png"])
    if "hull.glb" in content:
        (meshes / f"{name}_hull.glb").write_bytes(content["hull.glb"])
    thumbnail = _write_thumbnail(fresh, name, content.get("views.png"))
    width, height, depth = (round(float(x), 6) for x in size)
    return {
        "slug": name,
        "prompt": about["prompt"],
        "seed": about["seed"],
        "licence": licence_of(about) if licence is None else licence,
        "width_m": width,
        "height_m": height,
        "depth_m": depth,
        "height_asked_m": (about["recipe"].get("mesh") or {}).get("height"),
        "faces": faces,
        "status": about["status"],
        "metrics": about["metrics"],
        "mesh": f"meshes/{name}.glb",
        "lods": lods,
        "texture": f"meshes/{name}.png" if lods else None,
        "hull": f"meshes/{name}_hull.glb" if "hull.glb" in content else None,
        "thumbnail": thumbnail,
    }


def _about(source: epath.Path) -> dict:
    if not gallery.is_safe(source.name):
        raise NotWhole("that is no name of an asset")
    try:
        about = record.read(source / record.NAME)
    except FileNotFoundError:
        raise NotWhole("there is no such asset") from None
    except ValueError as error:
        raise NotWhole(str(error)) from None
    if about["status"] == "failed":
        raise NotWhole(f"it failed: {'; '.join(map(str, about['errors'].values()))}")
    if "mesh.glb" not in about["files"]:
        why = "; ".join(f"{n}: {told}" for n, told in about["errors"].items())
        raise NotWhole(f"it has no mesh{': ' * bool(why)}{why}")
    lods = [n for n in about["files"] if re.fullmatch(r"mesh_lod[0-9]+\.glb", n)]
    if lods and "mesh.png" not in about["files"]:
        raise NotWhole("it has coarser meshes, and not their texture, mesh.png")
    return about


def _content(path: epath.Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotWhole(f"{path.name} is missing") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise NotWhole(f"{path.name} is damaged: it does not match its checksum")
    return content


def _write_thumbnail(fresh: Path, name: str, views: bytes | None) -> str | None:
    """The first of the views, which lie in a row."""
    if views is None:
        return None
    path = fresh / "thumbnails" / f"{name}.png"
    path.write_bytes(views)
    row = image.read_image(path)
    image.write_png(path, image.resize(row[:, : len(row)], (THUMBNAIL, THUMBNAIL)))
    return f"thumbnails/{name}.png"


# ---------------------------------------------------------------- all of them


def _write_sheet(fresh: Path, entries: Sequence[dict]) -> None:
    """The thumbnails on a grid that is about square; an asset without one leaves a gap."""
    columns = math.ceil(math.sqrt(len(entries)))
    side = max(16, min(THUMBNAIL, _SHEET_SIDE // columns))
    cells = np.ones((len(entries), side, side, 3), np.float32)
    for cell, entry in zip(cells, entries, strict=True):
        if entry["thumbnail"]:
            cell[:] = image.resize(image.read_image(fresh / entry["thumbnail"]), (side, side))
    image.write_png(fresh / SHEET, image.contact_sheet(cells, columns))


def _write_catalog(fresh: Path, entries: Sequence[dict]) -> None:
    flat = [_row(entry) for entry in entries]
    plain = [name for name in entries[0] if name != "metrics"]
    metrics = dict.fromkeys(name for entry in entries for name in entry["metrics"])
    metrics = [name for name in metrics if name not in plain]
    (fresh / "catalog.csv").write_bytes(ledger.table([*plain, *metrics], flat))
    written = [path for part in (".", *_PARTS) for path in (fresh / part).iterdir()]
    files = [path.relative_to(fresh).as_posix() for path in written if path.is_file()]
    about = {
        "kind": KIND,
        "version": 1,
        "made_with": f"jax3d {jax3d.__version__}",
        "axes": "metres, +y up, front towards +z",
        "assets": entries,
        "files": sorted([*files, CATALOG]),
    }
    (fresh / CATALOG).write_text(record.dumps(about), encoding="utf-8")


def _row(entry: dict) -> dict:
    """An entry as a row of the table."""
    lods = " ".join(level["file"] for level in entry["lods"])
    row = {k: "" if v is None else v for k, v in entry.items() if k != "metrics"}
    known = {k: v for k, v in entry["metrics"].items() if v is not None}
    return {**known, **row, "lods": lods}


def _publish(fresh: Path, target: Path, before: Iterable[str]) -> None:
    """Puts the files in their places, the catalog last, and removes what the old one had more."""
    files = _listed(record.read_json(fresh / CATALOG), fresh)
    for part in _PARTS:
        (target / part).mkdir(exist_ok=True)
    for name in sorted(files, key=lambda name: name == CATALOG):
        os.replace(fresh / name, target / name)
    for name in set(before) - set(files):
        (target / name).unlink(missing_ok=True)
