"""A sweep whose folder is a bucket: Google's storage, emulated.

pip install "etils[epath-gcs]" "gcsfs<2026" gcp-storage-emulator

Later versions of gcsfs rename by a call that the emulator does not know, and try it for a minute.
"""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from toys import free_port, recipe_file

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

# TensorStore wants to be told which generation of an object it got, as the real service tells it.
SERVER = """
import sys
from gcp_storage_emulator.handlers import objects

download = objects.download

def told(request, response, storage, *args, **kwargs):
    try:
        one = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = one["generation"]
    except objects.NotFound:
        pass  # so does the original
    download(request, response, storage, *args, **kwargs)

objects.download = told
from gcp_storage_emulator.server import create_server
create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""
# Dies by SIGKILL after so many blocks, if it takes so many, and tells where it began.
SWEEP = """
import os, signal, sys
from jax3d import cli
from jax3d.optimize import engine

left, advance = int(sys.argv[1]), engine._Run.advance

def counted(self, stage):
    global left
    if left == int(sys.argv[1]):
        print("began at", sum(track.step for track in self.pools[stage].who if track))
    advance(self, stage)
    left -= 1
    if left == 0:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)

engine._Run.advance = counted
sys.exit(cli.main(sys.argv[2:]))
"""
LOOK = """
from etils import epath
props = epath.Path("gs://bucket/props")
print(*sorted(path.name for path in props.iterdir()))
print((props / "ledger.csv").read_text())
"""


@pytest.fixture
def env():
    """The environment in which gs:// is a server of this machine."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)]) as server:
        while True:
            try:
                socket.create_connection(("localhost", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None
                time.sleep(0.1)
        url = f"http://localhost:{port}"
        yield os.environ | {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "FSSPEC_GCS_TOKEN": "anon",
        }
        server.kill()


@pytest.mark.slow
def test_a_sweep_into_a_bucket_goes_on_after_a_kill(env, tmp_path):
    jobs, config = tmp_path / "jobs.jsonl", tmp_path / "recipe.py"
    jobs.write_text(3 * (json.dumps({"prompt": "a red chair"}) + "\n"))
    config.write_text(recipe_file(steps=20))
    options = ["--config", str(config), "--engine.block", "2", "--engine.checkpoint-every", "1"]
    options += ["--engine.slots", "2", "--cpu-devices", "1"]

    def run(code, *argv):
        argv = [sys.executable, "-c", code, *argv]
        return subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, timeout=500)

    begun = []
    for blocks, code in ((7, -signal.SIGKILL), (0, 0)):
        argv = ["sweep", str(jobs), "--out", "gs://bucket/props", *options]
        said = run(SWEEP, str(blocks), *argv)
        assert said.returncode == code, said.stdout
        begun += [int(line.split()[-1]) for line in said.stdout.splitlines() if "began" in line]
    # Two assets were at step 14; of the checkpoints the last or the one before was whole.
    assert begun[0] == 0
    assert begun[1] in (20, 24, 28)
    names, *ledger = run(LOOK).stdout.splitlines()
    folders = [f"000{k}-a-red-chair" for k in range(3)]
    assert names.split() == [*folders, "index.html", "ledger.csv", "sweep.json", "viewer"]
    rows = list(csv.DictReader(ledger))
    assert [row["path"] for row in rows] == folders
    assert {(row["steps"], row["status"]) for row in rows} == {("20", "done")}
