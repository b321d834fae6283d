"""How a signal ends the command: at once, or after the block of steps that is on its way.

Python's own handlers run between two bytecodes, so a compilation of a minute would keep Ctrl-C
waiting. The interpreter also writes the number of each signal to a descriptor, at once; a thread
listens there.
"""

import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a process to end, as far as the system knows them."""

CLOSED_PIPE = 13
"""SIGPIPE, which stands for an output that nobody reads any more; Python ignores the signal."""


class Stop:
    """Whether the command was asked to end; true from the first signal on."""

    def __init__(self, scratch: Path | None = None):
        """`scratch` is a folder that goes when the process ends at once."""
        self.scratch = scratch
        self.number: int | None = None
        """Of the first signal."""
        self._patient = False

    def __call__(self) -> bool:
        """Asked between two blocks of steps."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """What shells make of a process that the signal ended."""
        return 128 + self.number

    @contextmanager
    def patience(self) -> Iterator[None]:
        """While it lasts, the first signal only asks, and the second ends the process."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def hear(self, number: int) -> None:
        """Does what a signal says."""
        name = signal.Signals(number).name
        if self._patient and self.number is None:
            self.number = number
            print(
                f"jax3d: {name}: saving after this block of steps, and the same command goes on "
                "from there; a second signal ends it at once",
                file=sys.stderr,
                flush=True,
            )
            return
        # Nothing of the interpreter may be waited for: it may be inside a compilation.
        os.write(2, f"jax3d: ended by {name}\n".encode())
        if self.scratch is not None:
            _remove(self.scratch)
        os._exit(128 + number)


@contextmanager
def listening(scratch: Path | None = None) -> Iterator[Stop]:
    """Heeds signals while it lasts; only Python's main thread can, elsewhere nothing is heeded.

    A signal that the process was started to ignore, as by `nohup`, stays ignored.
    """
    stop = Stop(scratch)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    heeded = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in heeded}
    outer = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(ours, stop, heeded), daemon=True)
    listener.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(outer)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        listener.join()
        ours.close()


def _listen(numbers: socket.socket, stop: Stop, heeded: list[int]) -> None:
    while number := numbers.recv(1):
        if number[0] in heeded:
            stop.hear(number[0])


def _remove(scratch: Path) -> None:
    """Removes a folder in which threads may be at work: under another name they do not find it."""
    gone = scratch.with_name(f"{scratch.name}-gone")
    try:
        scratch.rename(gone)
    except OSError:
        gone = scratch
    shutil.rmtree(gone, ignore_errors=True)
