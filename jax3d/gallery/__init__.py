"""One page that shows many assets and lets a person choose: `index.html`, offline and from disk.

A page from `file://` may not fetch its neighbours, so each mesh lies beside its GLB once more as
a script that hands over base64, and is loaded by a click. Pictures load when they are scrolled to
and one WebGL context lives at a time, so thousands of assets fit on a page.

Prompts are text from anywhere: they enter the page as JSON with `<`, `>` and `&` escaped, and
the DOM as text only; folders are named by `slug` and checked.

From disk a browser keeps the choices, and the page hands them out as `choices.json`; where it is
served (`jax3d serve`) they go to the server, and meshes come as they are.
"""

import base64
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from etils import epath

_HERE = Path(__file__).parent
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DOWNLOADS = (
    "mesh.glb",
    "mesh.obj",
    "mesh.ply",
    "turntable.mp4",
    "turntable.gif",
    "picture.png",
    "asset.json",
    "history.csv",
    "params.safetensors",
)
"""Files of an asset that the page hands out, beside `views.png`."""
VIEWER_FOLDER = _HERE / "viewer"
VIEWER = ("viewer.min.js", "LICENSE.three")


class Asset(TypedDict):
    """What the page says of an asset whose files lie in `out_dir / folder`.

    Shown where they exist: `views.png` (square views in a row, the front first), `mesh.glb` (the
    3D view), and the downloads.
    """

    folder: str
    """As `slug` makes it."""
    prompt: str
    seed: NotRequired[int]
    metrics: NotRequired[dict[str, float]]
    """Numbers to show and to sort by."""
    knobs: NotRequired[dict[str, str]]
    """Settings to choose by, where they differ between assets."""
    family: NotRequired[str]
    """What kind of thing it is, to choose by."""


def slug(prompt: str, index: int) -> str:
    """A folder name for an asset, unique by `index`: `0007-a-red-chair`.

    ASCII letters, digits and hyphens, at most 53 characters, whatever the prompt holds.
    """
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
    return f"{index:04d}-{words[:48].strip('-') or 'asset'}"


def is_safe(name: str) -> bool:
    """Whether a folder of this name may stand in a page's addresses; those of `slug` may."""
    return _FOLDER.fullmatch(name) is not None


def write_gallery(
    out_dir: epath.PathLike, assets: Sequence[Asset], title: str = "jax3d assets"
) -> epath.Path:
    """Write `index.html`, its `viewer/`, and `mesh.js` beside each `mesh.glb`; return the page.

    Call it again whenever assets were added: the page is written anew. Raises `ValueError` for a
    folder name that `slug` would not make, or one that appears twice.
    """
    out_dir = epath.Path(out_dir)
    _demand_folders(assets)
    for asset in assets:
        glb = out_dir / asset["folder"] / "mesh.glb"
        script = glb.with_suffix(".js")
        if glb.exists() and not (script.exists() and script.stat().mtime >= glb.stat().mtime):
            write_mesh_script(glb)
    (out_dir / "viewer").mkdir(parents=True, exist_ok=True)
    for name in VIEWER:
        (out_dir / "viewer" / name).unlink(missing_ok=True)
        epath.Path(VIEWER_FOLDER / name).copy(out_dir / "viewer" / name, overwrite=True)

    path = out_dir / "index.html"
    fresh = path.with_name("index.html.new")
    fresh.unlink(missing_ok=True)  # a link would be written through
    fresh.write_text(page(out_dir, assets, title), encoding="utf-8")
    fresh.replace(path)
    return path


def page(
    out_dir: epath.PathLike,
    assets: Sequence[Asset],
    title: str = "jax3d assets",
    desk: Mapping[str, Any] | None = None,
) -> str:
    """The page itself; errors as those of `write_gallery`.

    `desk` is what a server tells a page that it serves: the `choices` so far, by folder, and the
    revision of the `latest` (`jax3d.desk`). None is a page from disk.
    """
    _demand_folders(assets)
    out_dir = epath.Path(out_dir)
    shown = [_entry(out_dir, asset) for asset in assets]
    text = (_HERE / "page.html").read_text(encoding="utf-8")
    return text.replace("{{DATA}}", _script_json({"title": title, "assets": shown, "desk": desk}))


def _demand_folders(assets):
    folders = [asset["folder"] for asset in assets]
    for folder in folders:
        if not is_safe(folder):
            raise ValueError(
                f"{folder!r} is no safe folder name; use jax3d.gallery.slug(prompt, i)"
            )
    if len(set(folders)) != len(folders):
        raise ValueError("two assets share a folder; give each its own index in slug(prompt, i)")


def _entry(out_dir, asset):
    folder = out_dir / asset["folder"]
    numbers = {"seed": asset.get("seed"), **asset.get("metrics", {})}
    return {
        "folder": asset["folder"],
        "prompt": asset["prompt"],
        # JSON has no NaN, and a metric that is none has nothing to sort by.
        "numbers": {k: v for k, v in numbers.items() if v is not None and math.isfinite(v)},
        "knobs": asset.get("knobs", {}),
        "family": asset.get("family", ""),
        "views": (folder / "views.png").exists(),
        "files": [name for name in DOWNLOADS if (folder / name).exists()],
    }


def write_mesh_script(glb: epath.PathLike) -> None:
    """Writes `mesh.js`, the bytes of `mesh.glb` for a page that may not read files, beside it."""
    glb = epath.Path(glb)
    script = glb.with_suffix(".js")
    encoded = base64.b64encode(glb.read_bytes()).decode()
    script.unlink(missing_ok=True)  # a link would be written through
    script.write_text(f'window.jax3dMesh("{encoded}");\n', encoding="utf-8")


def _script_json(data):
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
