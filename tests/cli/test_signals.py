"""Signals: a run saves after its block, everything else ends at once, and nothing is left over."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jax3d.cli import signals

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

# Stands for a command: it says when it has begun, and its loop for blocks of steps.
STAND_IN = """
import sys, tempfile, time
from jax3d import cli
from jax3d.cli import configs

def run(options, stop):
    open(tempfile.mkdtemp() + "/half", "w").close()
    print("begun", flush=True)
    {body}

configs.run = run
sys.exit(cli.main(["configs"]))
"""
PATIENT = """
    with stop.patience():
        print("patient", flush=True)
        while not stop():
            time.sleep(0.01)
        print("saved", flush=True)
    return stop.exit_code
"""
DEAF = """
    with stop.patience():
        print("asked", flush=True)
        time.sleep(60)
"""
IMPATIENT = "time.sleep(60)"
# A call that does not come back to the interpreter, as a compilation does not.
IN_C = """
    import ctypes
    ctypes.CDLL(None).sleep(60)
"""


def start(body, tmp_path, **options):
    # The tests themselves may run where SIGHUP is ignored, which a process inherits.
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    code += STAND_IN.format(body=textwrap.dedent(body).strip().replace("\n", "\n    "))
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        **options,
    )
    assert process.stdout.readline() == "begun\n", process.stderr.read()
    assert list(tmp_path.iterdir())
    return process


@pytest.mark.parametrize("number", CODES)
def test_a_run_is_asked_to_save_and_ends_by_the_code_of_the_signal(tmp_path, number):
    process = start(PATIENT, tmp_path)
    assert process.stdout.readline() == "patient\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == CODES[number]
    assert out == "saved\n"
    assert err.count("\n") == 1
    assert err.startswith(f"jax3d: {number.name}: saving after this block of steps")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("body", [IMPATIENT, IN_C])
def test_elsewhere_a_signal_ends_at_once(tmp_path, number, body):
    process = start(body, tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (CODES[number], f"jax3d: ended by {number.name}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("second", CODES)
def test_the_second_signal_ends_at_once(tmp_path, second):
    process = start(DEAF, tmp_path)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    assert "a second signal" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(second)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (CODES[second], f"jax3d: ended by {second.name}\n")
    assert not list(tmp_path.iterdir())


def test_what_nohup_ignores_stays_ignored(tmp_path):
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code = ignore + STAND_IN.format(body=PATIENT.strip().replace("\n", "\n"))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout.readline() == "begun\n"
    # What is read ahead here would be missing from `communicate`.
    assert process.stdout.readline() == "patient\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 143


def test_handlers_are_as_before_when_the_command_has_ended():
    before = [signal.getsignal(number) for number in signals.ENDING]
    with signals.listening() as stop:
        assert [signal.getsignal(number) for number in signals.ENDING] != before
        assert not stop()
    assert [signal.getsignal(number) for number in signals.ENDING] == before
    assert signal.set_wakeup_fd(-1) == -1
