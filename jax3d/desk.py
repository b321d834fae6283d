"""The curation desk: a page of a folder's assets that saves what a person chooses (`jax3d serve`).

It is for the person at this machine. It listens on 127.0.0.1 alone, and every address begins with a
token that only that person is told:

    GET  /TOKEN/                      the page
    GET  /TOKEN/viewer/NAME           its viewer
    GET  /TOKEN/FOLDER/NAME           a file of an asset, of those that the page shows
    GET  /TOKEN/choices?since=N       the choices that were changed after revision N
    POST /TOKEN/choices               one choice
    POST /TOKEN/queue                 more assets like one, into the queue
    POST /TOKEN/run                   begins, pauses or cancels the sweep of the queue (`batches`)
    GET  /TOKEN/more/001/...          all of this of what a sweep has made

Nothing else has an address, so no path can lead out of the folder, and links are not followed. A
request that another page could have made is refused by its Host, Origin or content type: a page
that a name server points at this machine, or a form, gets nothing. A choice is in `choices.json`
before it is confirmed, and is refused where it was changed elsewhere meanwhile (`choices.changed`).
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Annotated, Any

from etils import epath

from jax3d import bounds, choices, finish, folder, gallery, manifest
from jax3d.batches import MORE, Batches
from jax3d.bounds import Count, Range
from jax3d.choices import Choice

MOST_BODY = 1 << 16
"""Bytes of a request's body."""
PATIENCE = 20.0
"""Seconds for which a connection may be silent."""

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


# ---------------------------------------------------------------- HTTP


class Server(ThreadingHTTPServer):
    """Serves a desk on 127.0.0.1; `serve_forever` and `shutdown` as of any server."""

    daemon_threads = True
    # The port of a server that was killed is free at once; of a live one it never is.
    allow_reuse_address = os.name == "posix"

    def __init__(self, desk: Desk, port: int = 0, token: str | None = None):
        """Raises `OSError` where the port is taken; 0 is any that is free."""
        self.desk = desk
        self.token = secrets.token_urlsafe(24) if token is None else token
        super().__init__(("127.0.0.1", port), _Handler)
        port = self.server_port
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")

    def server_bind(self) -> None:
        """Does not ask a name server who 127.0.0.1 is, as its base does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def handle_error(self, request: socket.socket, client_address: Any) -> None:
        """A connection that breaks is no error of ours; any other is told."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


_NAME = r"[A-Za-z0-9._-]"
_PATH = re.compile(
    rf"/[A-Za-z0-9_-]{{1,100}}((?:/{MORE}/[0-9]{{3,9}}){{0,8}})/(?:({_NAME}*)|({_NAME}+)/({_NAME}+))"
)
"""The token, batches of batches, and a file, or a folder and a file."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "jax3d", ""
    timeout = PATIENCE
    server: Server

    def do_GET(self):
        self._reply(self._get)

    do_HEAD = do_GET

    def do_POST(self):
        self._reply(self._post)

    def _other(self):
        self._reply(self._refuse_method)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _other

    def _refuse_method(self, *_):
        raise Refused(405, "GET, HEAD and POST are what can be asked here")

    def _reply(self, act) -> None:
        """Answers a request, whatever it is."""
        if self.command != "POST" and {"content-length", "transfer-encoding"} & {
            name.lower() for name in self.headers
        }:
            self.close_connection = True  # its body is not read, nor taken for a request
        try:
            self._demand_ours()
            content, kind, *more = act(*self._address())
            self._send(200, content, kind, *more)
        except Refused as refused:
            self._send_error(refused.status, refused.answer)
        except (ValueError, OSError) as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            self._send_error(500, {"error": " ".join(str(error).split())})

    def _demand_ours(self) -> None:
        """Refuses what another page may have sent, and addresses without the token."""
        headers = self.headers
        hosts, origins = headers.get_all("Host", []), headers.get_all("Origin", [])
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise Refused(403, "Host is not this server")
        if any(origin.removeprefix("http://") not in self.server.hosts for origin in origins):
            raise Refused(403, "Origin is another page")
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Refused(403, "the request comes from another page")
        token = re.match(r"/([A-Za-z0-9_-]*)", self.path)
        if token is None or not secrets.compare_digest(token[1], self.server.token):
            raise Refused(403, "the address lacks the token: take the one that jax3d serve told")

    def _address(self) -> tuple[Desk, str, str, str]:
        """Whose an address is, its two parts after that, and its query."""
        path, _, query = self.path.partition("?")
        found = _PATH.fullmatch(path)
        if found is None:
            raise Refused(404, "there is no such address")
        batches, alone, where, name = found.groups()
        desk = self.server.desk
        for each in re.findall("[0-9]+", batches):
            desk = desk.more_of(each)
        return (desk, where, name, query) if where else (desk, "", alone, query)

    def _get(self, desk: Desk, where: str, name: str, query: str):
        if where:
            return desk.file(where, name)
        if name in ("", "index.html"):
            page = desk.page()
            return page.encode(), "text/html; charset=utf-8", policy(page)
        if name == "choices":
            since = re.fullmatch(r"since=([0-9]{1,16})", query)
            if since is None:
                raise Refused(400, "expected ?since= and a revision")
            return _json(desk.since(int(since[1])))
        raise Refused(404, "there is no such address")

    def _post(self, desk: Desk, where: str, name: str, query: str):
        act = {"choices": desk.choose, "queue": desk.queue, "run": desk.run}.get(name)
        if where or query or act is None:
            raise Refused(404, "there is no such address")
        return _json(act(self._body()))

    def _body(self) -> dict:
        """The JSON object that was sent; what is too large is not read."""
        headers = self.headers
        if headers.get_content_type() != "application/json":
            raise Refused(415, "expected application/json")
        lengths = headers.get_all("Content-Length", [])
        if headers.get("Transfer-Encoding") or len(lengths) != 1:
            raise Refused(411, "expected one Content-Length")
        if not re.fullmatch(r"[0-9]{1,18}", lengths[0]):
            raise Refused(400, "Content-Length is no length")
        if int(lengths[0]) > MOST_BODY:
            raise Refused(413, f"at most {MOST_BODY} bytes are read")
        content = self.rfile.read(int(lengths[0]))
        if len(content) < int(lengths[0]):
            raise ConnectionResetError("the body was cut short")
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise Refused(400, "the body is no JSON") from None
        if not isinstance(body, dict):
            raise Refused(400, "the body is no object")
        return body

    def finish(self):
        """Reads some of what is left before the end, or the system would cut off the last answer."""
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1.0)
            left = 16 * MOST_BODY
            while left > 0 and (got := self.rfile.read1(MOST_BODY)):
                left -= len(got)
        super().finish()

    def _send_error(self, status: int, answer: Mapping) -> None:
        self.close_connection = True  # of its body nothing may be left to be read as a request
        content, kind = _json(answer)
        self._send(status, content, kind)

    def send_error(self, code, message=None, explain=None):
        """What the base class refuses by itself, such as headers that cannot be read."""
        self.request_version = self.protocol_version  # of what could not be read none is known
        self._send_error(code, {"error": message or self.responses.get(code, ("refused",))[0]})

    def _send(self, status: int, content: bytes, kind: str, csp: str = "default-src 'none'"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", csp)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        if status == 405:
            self.send_header("Allow", "GET, HEAD, POST")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """Says nothing: addresses hold the token."""


def _json(answer: Mapping) -> tuple[bytes, str]:
    return json.dumps(answer).encode(), "application/json"


def policy(page: str) -> str:
    """The Content-Security-Policy of a page: its own script and style, by their hashes."""

    def hashes(tag):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digests = (hashlib.sha256(each.encode()).digest() for each in found)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src 'self' {hashes('script')}; style-src {hashes('style')}; "
        "img-src 'self' blob: data:; media-src 'self'; connect-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
