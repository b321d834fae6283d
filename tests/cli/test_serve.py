"""`jax3d serve`: what it refuses, and what a kill leaves."""

import http.client
import json
import signal
import subprocess
import sys
import urllib.parse

import pytest
from etils import epath
from made_assets import write_asset

from jax3d import choices, cli, folder
from jax3d.choices import Choice


def test_a_kill_loses_no_confirmed_choice(tmp_path):
    name = write_asset(tmp_path / "out", 0, "a red chair")
    argv = [sys.executable, "-m", "jax3d", "serve", str(tmp_path / "out")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            where = urllib.parse.urlsplit(process.stdout.readline().split()[1])
            body = json.dumps({"asset": name, "choice": "star", "note": "", "revision": 0})
            link = http.client.HTTPConnection(where.netloc, timeout=60)
            headers = {"Content-Type": "application/json"}
            link.request("POST", f"{where.path}choices", body, headers)
            assert link.getresponse().status == 200
            link.close()
        finally:
            process.send_signal(signal.SIGKILL)
    assert where.hostname == "127.0.0.1"
    assert choices.read(tmp_path / "out" / choices.NAME) == {name: Choice("star", "", 1)}
    with folder.held(epath.Path(tmp_path / "out"), "desk", wait=False):
        pass  # the dead one's lock is no hindrance


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["serve"], "no folder"),
        (["serve", "nowhere"], "nowhere is no folder of this machine"),
        (["serve", "out", "--port", "70000"], "--port is 70000"),
        (["serve", "out"], "choices.json cannot be read"),
    ],
)
def test_what_cannot_be_served_is_told(tmp_path, monkeypatch, capsys, argv, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / choices.NAME).write_text("{")
    assert cli.main(argv) == 2
    assert told in capsys.readouterr().err
