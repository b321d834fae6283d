"""The desk: a confirmed choice is on disk, and nobody else's page gets or changes anything."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import threading

import pytest
from browser import NEEDS_CHROMIUM, browse
from made_assets import write_asset

from jax3d import batches, choices, folder, gallery, manifest
from jax3d.choices import Choice
from jax3d.desk import Desk
from jax3d.desk.server import Server

TOKEN = "the-token"
PROMPTS = ["a red chair", "a red chair", "</script><script>alert(1)</script>"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for k, prompt in enumerate(PROMPTS):
        write_asset(folder, k, prompt)
    return folder


@pytest.fixture
def out(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    (tmp_path / "secret.json").write_text('"secret"')
    return tmp_path / "out"


@contextlib.contextmanager
def serving(out):
    with Server(Desk(out), token=TOKEN) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(out):
    with serving(out) as server:
        yield server


def ask(server, method, path, body=None, headers=()):
    """Status, headers and content of the answer to a request, which is sent as it is given."""
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    with contextlib.closing(link):
        sent = {"Content-Type": "application/json"} if body is not None else {}
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        link.request(method, path, content, sent | dict(headers))
        answer = link.getresponse()
        return answer.status, answer.headers, answer.read()


def post(server, name, **body):
    status, _, content = ask(server, "POST", f"/{TOKEN}/{name}", body)
    return status, json.loads(content)


def choose(server, asset, choice, revision=0, note=""):
    return post(server, "choices", asset=asset, choice=choice, note=note, revision=revision)


def since(server, revision=0):
    return json.loads(ask(server, "GET", f"/{TOKEN}/choices?since={revision}")[2])


NAMES = [gallery.slug(prompt, k) for k, prompt in enumerate(PROMPTS)]


def test_the_page_runs_its_own_script_and_no_other(server):
    status, headers, content = ask(server, "GET", f"/{TOKEN}/")
    page = content.decode()
    assert status == 200
    assert server.url == f"http://127.0.0.1:{server.server_port}/{TOKEN}/"
    rules = headers["Content-Security-Policy"]
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert rules.count("'sha256-") == 2  # one script and one style, by their contents
    assert page.count("<script>") == 1
    assert "<script>alert" not in page
    assert not re.search(r"<[^>]+\son[a-z]+=", page)
    data = json.loads(re.search(r'application/json">(.*?)</script>', page, re.S)[1])
    assert [asset["prompt"] for asset in data["assets"]] == PROMPTS
    assert data["desk"]["choices"] == {}
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_files_of_the_page_are_served_as_they_are(server, out):
    for name, kind in {"mesh.glb": "model/gltf-binary", "views.png": "image/png"}.items():
        status, headers, content = ask(server, "GET", f"/{TOKEN}/{NAMES[0]}/{name}")
        assert (status, headers["Content-Type"]) == (200, kind)
        assert content == (out / NAMES[0] / name).read_bytes()
        assert headers["X-Content-Type-Options"] == "nosniff"
    status, headers, content = ask(server, "GET", f"/{TOKEN}/viewer/viewer.min.js")
    assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    status, headers, content = ask(server, "HEAD", f"/{TOKEN}/{NAMES[0]}/mesh.glb")
    assert (status, content) == (200, b"")
    assert int(headers["Content-Length"]) == (out / NAMES[0] / "mesh.glb").stat().st_size


def test_a_confirmed_choice_is_on_disk_and_survives_the_server(out):
    with serving(out) as server:
        assert choose(server, NAMES[0], "star", note='"note" ☃') == (
            200,
            {"now": {"choice": "star", "note": '"note" ☃', "revision": 1}},
        )
        # A killed server leaves just this: it keeps nothing that is not in the file.
        assert choices.read(out / choices.NAME) == {NAMES[0]: Choice("star", '"note" ☃', 1)}
    with serving(out) as server:
        assert since(server)["choices"][NAMES[0]]["choice"] == "star"
        assert choose(server, NAMES[0], "keep", revision=1)[0] == 200
    assert choices.read(out / choices.NAME)[NAMES[0]] == Choice("keep", "", 2)


def test_two_tabs_do_not_lose_a_choice(server, out):
    assert choose(server, NAMES[0], "keep")[0] == 200
    assert choose(server, NAMES[1], "reject")[0] == 200  # the other tab has not seen the first
    status, answer = choose(server, NAMES[0], "reject")
    assert status == 409
    assert answer["now"] == {"choice": "keep", "note": "", "revision": 1}
    assert "changed elsewhere" in answer["error"]
    news = since(server, 1)
    assert news["choices"] == {NAMES[1]: {"choice": "reject", "note": "", "revision": 2}}
    assert news["latest"] == 2
    assert choose(server, NAMES[0], "reject", revision=1)[0] == 200


def test_many_at_once_lose_nothing(tmp_path):
    names = [write_asset(tmp_path / "out", k, "a mug") for k in range(24)]
    with serving(tmp_path / "out") as server:
        some = [
            threading.Thread(
                target=lambda part: [choose(server, n, "keep") for n in part], args=[p]
            )
            for p in (names[::3], names[1::3], names[2::3])
        ]
        for each in some:
            each.start()
        for each in some:
            each.join()
    found = choices.read(tmp_path / "out" / choices.NAME)
    assert {name: choice.choice for name, choice in found.items()} == dict.fromkeys(names, "keep")
    assert sorted(choice.revision for choice in found.values()) == list(range(1, 25))


def test_what_a_script_or_git_writes_is_seen(server, out):
    choices.write(out / choices.NAME, {NAMES[2]: Choice("reject", "", 7)})
    assert since(server, 6)["choices"] == {
        NAMES[2]: {"choice": "reject", "note": "", "revision": 7}
    }
    (out / choices.NAME).write_text("<<<<<<< HEAD")
    status, answer = choose(server, NAMES[0], "keep")
    assert (status, "cannot be read" in answer["error"]) == (500, True)
    assert (out / choices.NAME).read_text() == "<<<<<<< HEAD"


def test_more_like_one_are_lines_of_a_manifest(server, out):
    assert post(server, "queue", asset=NAMES[0], seeds=2, steps=None) == (
        200,
        {"queued": 2, "seeds": [2, 3]},  # the prompt has 0 and 1
    )
    assert post(server, "queue", asset=NAMES[1], seeds=1, steps=800)[1]["seeds"] == [4, 4]
    jobs = manifest.read(out / batches.QUEUE)
    assert [(job.prompt, job.seed, job.steps) for job in jobs] == [
        ("a red chair", 2, None),
        ("a red chair", 3, None),
        ("a red chair", 4, 800),
    ]


def test_more_like_one_has_its_knobs_and_its_picture(tmp_path):
    recipe = {"negative": "blurry"}
    name = write_asset(tmp_path, 0, "x", knobs={"guidance_scale": [30.0, 10.0]}, recipe=recipe)
    shown = write_asset(tmp_path, 1, "a photo", picture="ab" * 32)
    (tmp_path / shown / "picture.png").touch()
    made = Desk(tmp_path)
    made.queue({"asset": name, "seeds": 1, "steps": None})
    made.queue({"asset": shown, "seeds": 1, "steps": None})
    first, second = manifest.read(tmp_path / batches.QUEUE)
    assert (first.negative, first.knobs) == ("blurry", {"guidance_scale": (30.0, 10.0)})
    assert (second.prompt, second.picture) == ("", str(tmp_path / shown / "picture.png"))


@pytest.mark.parametrize(
    "path",
    [
        "/{t}/../secret.json",
        "/{t}/%2e%2e/secret.json",
        "/{t}/..%2fsecret.json",
        "/{t}/../../etc/passwd",
        "/{t}//etc/passwd",
        "/{t}/{n}/../../secret.json",
        "/{t}/{n}/%2e%2e%2fasset.json",
        "/{t}/{n}\\asset.json",
        "/{t}/../asset.json",
        "/{t}/./asset.json",
        "/{t}/viewer/../__init__.py",
        "/{t}/viewer/viewer.src.js",
        "/{t}/{n}",
        "/{t}/{n}/",
        "/{t}/{n}/secret.json",
        "/{t}/{n}/asset.json/x",
        "/{t}/{n}/mesh.glb%00.png",
        "/{t}/locks/desk.json",
        "/{t}/sweep.json",
        "/{t}/choices.json",
        "/{t}/linked/asset.json",
        "/{t}/{n}/mesh.ply",
        "/{t}/{n}/history.csv",
        "/{t}/{n}/params.safetensors",
        "/{t}/" + "x" * 5000,
        "/{t}/nowhere/asset.json",
    ],
)
def test_no_other_path_is_served(server, out, path):
    (out / "linked").symlink_to(out / NAMES[0])
    (out / NAMES[0] / "mesh.ply").symlink_to(out.parent / "secret.json")
    os.mkfifo(out / NAMES[0] / "history.csv")  # reading it would wait for ever
    (out / NAMES[0] / "params.safetensors").mkdir()
    status, _, content = ask(server, "GET", path.format(t=TOKEN, n=NAMES[0]))
    assert status == 404
    assert b"secret" not in content


@pytest.mark.parametrize("path", ["/", "/wrong/", "/the-token-and-more/", "/the-toke/"])
def test_without_the_token_nothing_is_told(server, path):
    for method, body in (("GET", None), ("POST", {"asset": NAMES[0]})):
        status, _, content = ask(server, method, path.format(t=TOKEN), body)
        assert status == 403
        assert b"chair" not in content


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{p}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1:{p}.evil.example"},
        {"Host": ""},
        {"Host": "localhost:{p}, evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "127.0.0.1:{p}"},
        {"Origin": "https://127.0.0.1:{p}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_what_another_page_could_ask_is_refused(server, out, headers):
    headers = {name: value.format(p=server.server_port) for name, value in headers.items()}
    body = {"asset": NAMES[0], "choice": "keep", "note": "", "revision": 0}
    for method, path, sent in (("GET", "", None), ("POST", "choices", body)):
        status, answered, content = ask(server, method, f"/{TOKEN}/{path}", sent, headers)
        assert (status, b"chair" in content) == (403, False)
        assert "Access-Control-Allow-Origin" not in answered
    assert not (out / choices.NAME).exists()


def test_its_own_page_may_ask(server):
    for host in (f"127.0.0.1:{server.server_port}", f"localhost:{server.server_port}"):
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert ask(server, "GET", f"/{TOKEN}/choices?since=0", headers=headers)[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(server, method):
    status, headers, _ = ask(server, method, f"/{TOKEN}/choices")
    assert (status, headers["Allow"]) == (405, "GET, HEAD, POST")


def raw(server, text):
    """The first line that answers bytes which no client would send."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as link:
        link.sendall(text.replace(b"HOST", b"127.0.0.1:%d" % server.server_port))
        return link.makefile("rb").readline()


POST = b"POST /the-token/choices HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /the-token/ HTTP/1.1\r\n\r\n", 403),
        (b"GET /the-token/ HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET http://evil.example/the-token/ HTTP/1.1\r\nHost: HOST\r\n\r\n", 403),
        (b"BREW /the-token/ HTTP/1.1\r\nHost: HOST\r\n\r\n", 501),
        (b"GET /the-token/ HTTP/9.9\r\nHost: HOST\r\n\r\n", 505),
        (b"GET /the-token/ HTTP/1.1\r\nHost: HOST\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"nonsense\r\n\r\n", 400),
        (POST + b"\r\n", 411),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 411),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}", 411),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 1e3\r\n\r\n", 400),
        (POST + b"Content-Length: 99999999999\r\n\r\n", 413),  # of which nothing is waited for
        (POST + b"Content-Length: 65537\r\n\r\n", 413),
    ],
)
def test_odd_requests_are_refused(server, text, status):
    assert raw(server, text).split()[1] == b"%d" % status


def test_a_body_that_is_not_read_is_no_request(server):
    host = b"Host: 127.0.0.1:%d\r\n" % server.server_port
    hidden = b"GET /the-token/choices?since=0 HTTP/1.1\r\n" + host + b"\r\n"
    head = b"GET /the-token/choices?since=0 HTTP/1.1\r\n" + host
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as link:
        link.sendall(head + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden)
        answers = b"".join(iter(lambda: link.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 200") == 1


BODY = {"asset": NAMES[0], "choice": "keep", "note": "", "revision": 0}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 60_000, 400),
        (b"\xff", 400),
        (b"[]", 400),
        ({}, 400),
        (BODY | {"more": 1}, 400),
        (BODY | {"choice": "kept"}, 400),
        (BODY | {"choice": {"a": 1}}, 400),
        (BODY | {"note": "x" * 10_001}, 400),
        (BODY | {"note": "\x1b[2J"}, 400),
        (BODY | {"note": 3}, 400),
        (BODY | {"revision": -1}, 400),
        (BODY | {"revision": "0"}, 400),
        (BODY | {"revision": 10**40}, 400),
        (BODY | {"asset": "0009-nothing"}, 404),
        (BODY | {"asset": "../out"}, 404),
        (BODY | {"asset": "viewer"}, 404),
        (BODY | {"asset": ["x"]}, 404),
        (BODY | {"note": "x" * 70_000}, 413),
    ],
)
def test_what_is_no_choice_is_refused(server, out, body, status):
    assert ask(server, "POST", f"/{TOKEN}/choices", body)[0] == status
    assert not (out / choices.NAME).exists()


@pytest.mark.parametrize(
    "changes",
    [{"seeds": 0}, {"seeds": 257}, {"seeds": True}, {"seeds": None}, {"steps": 0}, {"steps": "9"}],
)
def test_what_cannot_be_queued_is_refused(server, out, changes):
    body = {"asset": NAMES[0], "seeds": 1, "steps": None} | changes
    assert ask(server, "POST", f"/{TOKEN}/queue", body)[0] == 400
    assert not (out / batches.QUEUE).exists()


def test_a_form_of_another_page_is_refused(server, out):
    headers = {"Content-Type": "text/plain"}
    assert ask(server, "POST", f"/{TOKEN}/choices", BODY, headers)[0] == 415
    assert not (out / choices.NAME).exists()


def test_nothing_is_written_or_read_through_links(server, out):
    victim = out.parent / "secret.json"
    for name in (choices.NAME, batches.QUEUE):
        (out / name).symlink_to(victim)
    assert choose(server, NAMES[0], "keep")[0] == 500
    assert post(server, "queue", asset=NAMES[0], seeds=1, steps=None)[0] == 500
    for name in (choices.NAME, batches.QUEUE):
        (out / name).unlink()
        (out / f"{name}.new").symlink_to(victim)
    assert choose(server, NAMES[0], "keep")[0] == 200
    assert post(server, "queue", asset=NAMES[0], seeds=1, steps=None)[0] == 200
    assert victim.read_text() == '"secret"'


def test_what_a_sweep_has_made_has_a_desk_of_its_own(server, out, made):
    shutil.copytree(made, out / "more" / "001")
    (out / "more" / "002").symlink_to(out.parent)
    status, _, content = ask(server, "GET", f"/{TOKEN}/more/001/{NAMES[0]}/mesh.glb")
    assert (status, content) == (200, (made / NAMES[0] / "mesh.glb").read_bytes())
    assert ask(server, "GET", f"/{TOKEN}/more/001/")[0] == 200
    assert post(server, "more/001/choices", **BODY)[0] == 200
    assert choices.read(out / "more" / "001" / choices.NAME) == {NAMES[0]: Choice("keep", "", 1)}
    assert not (out / choices.NAME).exists()
    for path in ("more/002/", "more/003/", "more/001", "more/..%2f/", "more/../", "more/1/"):
        assert ask(server, "GET", f"/{TOKEN}/{path}")[0] == 404


def test_a_sweep_is_begun_only_where_it_was_allowed(server, out):
    assert post(server, "run", do="start")[0] == 400
    assert post(server, "run", do="format")[0] == 400
    assert post(server, "run", do=["start"])[0] == 400
    assert not (out / "more").exists()


def test_a_folder_has_one_desk(out):
    with (
        folder.held(Desk(out).out, "desk", wait=False),
        pytest.raises(ValueError, match="is written to by process"),
        folder.held(Desk(out).out, "desk", wait=False),
    ):
        pass


@pytest.mark.parametrize("where", ["nowhere", "secret.json", "gs://bucket/out"])
def test_only_a_folder_of_this_machine_is_served(out, where):
    where = where if "://" in where else out.parent / where
    with pytest.raises(ValueError, match="no folder of this machine"):
        Desk(where)


@NEEDS_CHROMIUM
def test_the_page_saves_what_the_keys_say_and_shows_it_again(out, tmp_path, monkeypatch):
    keys, plain = [], gallery.page

    def page(*arguments):
        # Within the page's own script, since no other would be run.
        press = (
            "for (const key of KEYS) document.dispatchEvent(new KeyboardEvent('keydown', { key }));"
        )
        press = press.replace("KEYS", json.dumps(keys))
        return plain(*arguments).replace("</script>\n</body>", f"{press}</script>\n</body>")

    monkeypatch.setattr(gallery, "page", page)
    with serving(out) as server:
        keys[:] = ["k", "x", "s", "Home", "u", "k"]
        browse(server.url, tmp_path / "profile", "--dump-dom")
        found = choices.read(out / choices.NAME)
        assert [found[name].choice for name in NAMES] == [None, "keep", "star"]
        assert choose(server, NAMES[0], "star", revision=found[NAMES[0]].revision)[0] == 200
        keys.clear()
        dom = browse(f"{server.url}#{NAMES[0]}", tmp_path / "profile", "--dump-dom")
    assert re.findall(r'<article [^>]*data-choice="([a-z]*)"', dom) == ["star", "keep", "star"]
    assert "3 kept (2 starred), 0 rejected, 0 to judge" in dom
    assert re.search(r'<dialog[^>]*data-state="ready"', dom)  # the mesh is shown under the policy
    assert "alert(1)</" not in re.sub(r"<script.*?</script>", "", dom, flags=re.S)
