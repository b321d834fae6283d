"""The desk over HTTP: which requests are answered, and what is told of them.

It listens on 127.0.0.1 alone, and every address begins with a token that only the person at this
machine is told:

    GET  /TOKEN/                      the page
    GET  /TOKEN/viewer/NAME           its viewer
    GET  /TOKEN/FOLDER/NAME           a file of an asset, of those that the page shows
    GET  /TOKEN/choices?since=N       the choices that were changed after revision N, and the queue
    POST /TOKEN/choices               one choice
    POST /TOKEN/queue                 more assets like one, into the queue
    POST /TOKEN/run                   begins, pauses or cancels the sweep of the queue (`batches`)
    GET  /TOKEN/more/001/...          all of this of what a sweep has made

Nothing else has an address, so no path can lead out of the folder. A request that another page
could have made is refused by its Host, Origin or content type: a page that a name server points at
this machine, or a form, gets nothing.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from jax3d.batches import MORE
from jax3d.desk import Desk, Refused

MOST_BODY = 1 << 16
"""Bytes of a request's body."""
PATIENCE = 20.0
"""Seconds for which a connection may be silent."""


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
        if not {*origins} <= {f"http://{host}" for host in self.server.hosts}:
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
        """Reads some of what is left before the end, or the system may cut off the answer."""
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
