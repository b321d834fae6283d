"""The curation desk: what a page of a folder's assets may ask, and what it saves (`jax3d serve`).

A choice is in `choices.json` before it is confirmed, and is refused where it was changed elsewhere
meanwhile (`choices.changed`). Only files that the page shows are handed out, and links are not
followed. `server` is the way to it.
"""

import os
import stat
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from etils import epath

from jax3d import bounds, choices, finish, folder, gallery, manifest
from jax3d.batches import MORE, Batches
from jax3d.bounds import Count, Range
from jax3d.choices import Choice

KINDS = {
    ".glb": "model/gltf-binary",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".csv": "text/csv; charset=utf-8",
    ".obj": "text/plain; charset=utf-8",
    ".three": "text/plain; charset=utf-8",
}
"""Of files, by suffix."""


class Refused(Exception):
    """A request that gets no answer but why."""

    def __init__(self, status: int, why: str, **more: Any):
        super().__init__(why)
        self.status, self.answer = status, {"error": why, **more}


class Desk:
    """What is asked of a folder; its methods may be called from several threads."""

    def __init__(self, out: epath.PathLike, sweep: Sequence[str] | None = None):
        """A desk of the folder `out`, whose queue is swept with these options, if any.

        Raises `ValueError` where it is no folder, or its choices cannot be read.
        """
        self.out = epath.Path(out)
        if folder.is_url(out) or not self.out.is_dir():
            raise ValueError(f"{out} is no folder of this machine: give the --out of what was made")
        self.sweep = sweep
        self.batches = Batches(self.out, sweep)
        self._one_at_a_time = threading.Lock()
        self._more: dict[str, Desk] = {}
        self.choices()

    def choices(self) -> dict[str, Choice]:
        """The choices so far, as the file has them now."""
        folder.refuse_links(self.out, [choices.NAME])
        try:
            return choices.read(self.out / choices.NAME)
        except FileNotFoundError:
            return {}

    def page(self) -> str:
        """The page, with all that is finished by now."""
        found = self.since(0)
        records = folder.records(self.out, folder.names(self.out))
        return gallery.page(self.out, finish.page_of(records), self.out.absolute().name, found)

    def since(self, revision: int) -> dict[str, Any]:
        """The choices that are newer than a revision (at 0 all), the newest's, and the queue."""
        found = self.choices()
        newer = {
            name: choice._asdict()
            for name, choice in found.items()
            if choice.revision > revision or not revision
        }
        latest = choices.latest(found)
        return {"choices": newer, "latest": latest, "queue": self.batches.state()}

    def choose(self, body: Mapping) -> dict[str, Any]:
        """Saves one choice: `asset`, `choice`, `note`, and the `revision` that the person saw.

        Raises `Refused`: it is none (400), of no asset here (404), or was changed elsewhere (409).
        """
        _demand_keys(body, "asset", "choice", "note", "revision")
        wanted = Choice(body["choice"], body["note"], body["revision"])
        _demand(choices.check, wanted, "choice")
        name = self._asset(body["asset"])
        with self._one_at_a_time:
            found = self.choices()
            try:
                found = choices.changed(found, name, wanted)
            except choices.Stale as error:
                raise Refused(409, str(error), now=error.current._asdict()) from None
            choices.write(self.out / choices.NAME, found)
        return {"now": found.get(name, Choice())._asdict()}

    def queue(self, body: Mapping) -> dict[str, Any]:
        """Queues assets like one: `asset`, how many `seeds`, and `steps` or null for the recipe's.

        Seeds count on from the greatest that the prompt has here or in the queue. Raises `Refused`.
        """
        _demand_keys(body, "asset", "seeds", "steps")
        _demand(bounds.check_value, body["seeds"], Annotated[int, Range(1, 256)], "seeds")
        _demand(bounds.check_value, body["steps"], Count | None, "steps")
        name = self._asset(body["asset"])
        records = folder.records(self.out, folder.names(self.out))
        if name not in records:
            raise Refused(404, f"the record of {name} cannot be read")
        fields = self._fields(name, records[name])
        steps = {} if body["steps"] is None else {"steps": body["steps"]}
        with self._one_at_a_time:
            jobs = self.batches.waiting()
            used = [r["seed"] for r in records.values() if r["prompt"] == records[name]["prompt"]]
            used += [job.seed for job in jobs if job.prompt == fields.get("prompt", "")]
            seeds = _demand(manifest.seeds, max(used) + 1, body["seeds"])
            lines = [{**fields, **steps, "seed": seed} for seed in seeds]
            queued = _demand(self.batches.add, lines)
        return {"queued": queued, "seeds": [seeds[0], seeds[-1]]}

    def run(self, body: Mapping) -> dict[str, Any]:
        """Does what a page asks of the queue: to `start`, to `pause` or to `cancel`.

        Raises `Refused`.
        """
        _demand_keys(body, "do")
        acts = {"start": self.batches.start, "pause": self.batches.pause}
        acts["cancel"] = self.batches.cancel
        if not isinstance(body["do"], str) or body["do"] not in acts:
            raise Refused(400, f"expected to do one of {', '.join(acts)}")
        _demand(acts[body["do"]])
        return self.batches.state()

    def more_of(self, name: str) -> "Desk":
        """The desk of a batch; raises `Refused` (404) where there is none."""
        with self._one_at_a_time:
            if name not in self._more:
                out = self.out / MORE / name
                if not out.is_dir() or any(map(os.path.islink, (out, out.parent))):
                    raise Refused(404, "there is no such batch here")
                self._more[name] = Desk(out, self.sweep)
            return self._more[name]

    def _fields(self, name: str, about: Mapping) -> dict[str, Any]:
        """What a manifest's line says of an asset like this one, seed and steps aside."""
        if about.get("picture"):
            shown = self.out / name / finish.PICTURE
            if not shown.exists():
                raise Refused(400, f"{name} was made from a picture that is no longer there")
            asked = {"picture": os.fspath(shown.absolute())}
        else:
            asked = {"prompt": about["prompt"]}
        negative = about["recipe"].get("negative")
        return asked | ({"negative": negative} if negative else {}) | about["knobs"]

    def _asset(self, name: Any) -> str:
        if not isinstance(name, str) or not folder.is_asset(self.out, name):
            raise Refused(404, "there is no such asset here")
        return name

    def file(self, where: str, name: str) -> tuple[bytes, str]:
        """Content and kind of a file that the page shows; raises `Refused` (404) for any other."""
        if where == "viewer" and name in gallery.VIEWER:
            path = gallery.VIEWER_FOLDER / name
        elif (name in gallery.DOWNLOADS or name == "views.png") and gallery.is_safe(where):
            if os.path.islink(self.out / where):
                raise Refused(404, "there is no such file here")
            path = Path(self.out) / where / name
        else:
            raise Refused(404, "there is no such file here")
        return _content(path), KINDS.get(path.suffix, "application/octet-stream")


def _content(path: Path) -> bytes:
    """A plain file, which a link is not."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        number = os.open(path, os.O_RDONLY | flags)
    except OSError:
        raise Refused(404, "there is no such file here") from None
    plain = stat.S_ISREG(os.fstat(number).st_mode) and not os.path.islink(path)
    if not plain:
        os.close(number)
        raise Refused(404, "there is no such file here")
    with open(number, "rb") as file:
        return file.read()


def _write(path: epath.Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)  # a link would be written through
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _demand_keys(body: Mapping, *names: str) -> None:
    if {*body} != {*names}:
        raise Refused(400, f"expected an object of {', '.join(names)}")


def _demand(act, *arguments) -> Any:
    """What an act returns; what it refuses is the request's mistake."""
    try:
        return act(*arguments)
    except ValueError as error:
        raise Refused(400, str(error)) from None
