"""Locks: one holder at a time, dead ones are taken over, live ones are named."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from jax3d import lock


@pytest.fixture
def path(tmp_path):
    (tmp_path / "out" / "locks").mkdir(parents=True)
    return epath.Path(tmp_path / "out" / "locks" / "main.json")


def plant(path, age=0.0, **changes):
    """A lock of this very process with some of its words changed, touched `age` seconds ago."""
    own = lock.Holder(
        socket.gethostname(), lock._place(), os.getpid(), lock._born(os.getpid()), time.time(), "x"
    )
    path.write_text(json.dumps(own._asdict() | changes))
    then = time.time() - age
    os.utime(path, (then, then))


def test_a_second_holder_is_refused_by_name(path):
    with (
        lock.held(path),
        pytest.raises(
            ValueError, match=r"/out is written to by process \d+ on .*--wait"
        ) as refusal,
        lock.held(path),
    ):
        pass
    assert f"process {os.getpid()} on {socket.gethostname()}, since 0 s" in str(refusal.value)


def test_a_lock_is_gone_when_its_holder_is_done(path):
    for _ in range(2):
        with lock.held(path):
            assert lock.read(path).pid == os.getpid()
        assert not list(path.parent.iterdir())
    with pytest.raises(KeyError), lock.held(path):
        raise KeyError
    assert not list(path.parent.iterdir())


LIVE = {
    "this process": {},
    "another user's process 1": {"pid": 1, "born": lock._born(1)},
    "another host, lately": {"host": "elsewhere", "place": "elsewhere", "age": 100.0},
    "another host, with a clock ahead": {"host": "elsewhere", "place": "elsewhere", "age": -1e4},
    "another boot, lately": {"place": "this host, before", "age": 30.0},
    "this process, silent for long": {"age": 1e5},
}
DEAD = {
    "a number that is free": {"pid": 2**22 - 1},
    "a number that another process has": {"born": "1"},
    "a number that init has": {"pid": 1, "born": "1"},
    "another host, silent": {"host": "elsewhere", "place": "elsewhere", "age": 130.0},
    "another boot, silent": {"place": "this host, before", "age": 1e5},
}


@pytest.mark.parametrize("name", LIVE)
def test_live_holders_are_respected(path, name):
    plant(path, **LIVE[name])
    before = path.read_text()
    with pytest.raises(ValueError, match=r"written to by process \d+ on "), lock.held(path):
        pass
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["main.json"]


@pytest.mark.parametrize("name", DEAD)
def test_dead_holders_are_taken_over(path, name):
    plant(path, **DEAD[name])
    with lock.held(path):
        assert lock.read(path).token != "x"
    assert not list(path.parent.iterdir())


GARBAGE = ["", "{", "null", "{}", "[]", '"x"', '{"pid": 1}', "\x00" * 9]
WRONG = [{"pid": "7"}, {"pid": 0}, {"pid": -1}, {"pid": 2**40}, {"begun": "x"}, {"host": None}]


@pytest.mark.parametrize("content", GARBAGE)
def test_a_lock_that_cannot_be_read_counts_by_its_age(path, content):
    path.write_text(content)
    with (
        pytest.raises(ValueError, match=r"locked by .*main\.json, which cannot be"),
        lock.held(path),
    ):
        pass
    then = time.time() - 130
    os.utime(path, (then, then))
    with lock.held(path):
        pass


@pytest.mark.parametrize("changes", WRONG)
def test_a_lock_with_wrong_words_is_none_that_can_be_read(path, changes):
    plant(path, **changes)
    assert lock.read(path) is None


def test_who_waits_gets_it_when_the_holder_is_done(path):
    done = []
    holder = lock.held(path)
    holder.__enter__()
    threading.Timer(0.5, lambda: (done.append(True), holder.__exit__(None, None, None))).start()
    with pytest.warns(UserWarning, match=r"waiting: .* since 0 s"), lock.held(path, wait=True):
        assert done


def test_a_killed_process_holds_nothing(path):
    code = f"""
import time
from etils import epath
from jax3d import lock
with lock.held(epath.Path({str(path)!r})):
    print("held", flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {child.pid} on"), lock.held(path):
            pass
        child.send_signal(signal.SIGKILL)
        # It is dead and not yet buried: nobody has waited for it.
        while lock._is_alive(child.pid, lock.read(path).born):
            time.sleep(0.01)
        assert child.returncode is None
        with lock.held(path):
            assert lock.read(path).pid == os.getpid()


def test_a_holder_gives_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with lock.held(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_was_taken_over_by_another_is_left_to_it(path):
    with lock.held(path):
        plant(path, token="another's")
    assert lock.read(path).token == "another's"


def test_a_stale_lock_that_has_changed_hands_is_put_back(path):
    plant(path, token="new")
    stale = lock.read(path)._replace(token="old")
    lock._take_away(path, stale)
    assert lock.read(path).token == "new"
    assert [p.name for p in path.parent.iterdir()] == ["main.json"]


def contend(path, log):
    path = epath.Path(path)
    for _ in range(20):
        try:
            with lock.held(path), open(log, "a") as file:
                file.write("+")
                file.flush()
                time.sleep(0.001)
                file.write("-")
        except ValueError:
            time.sleep(0.001)


def test_of_many_at_once_one_holds_it(path, tmp_path):
    plant(path, pid=2**22 - 1)
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    crowd = [context.Process(target=contend, args=(str(path), log)) for _ in range(3)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
        assert each.exitcode == 0
    text = log.read_text()
    assert text == "+-" * (len(text) // 2)
    assert text
