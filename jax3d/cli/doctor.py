"""`jax3d doctor`."""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from jax3d import __version__
from jax3d.cli import terminal
from jax3d.cli.signals import Stop

PACKAGE = "jax3d-assets"
EXTRAS = {
    "cuda": ("jax_cuda12_plugin", "NVIDIA GPUs"),
    "tpu": ("libtpu", "TPUs"),
    "diffusers": ("diffusers", "critics handed over from Python"),
    "torch": ("torch", "benchmarks beside PyTorch"),
    "ray": ("ray", "sweeps by launch/ray_sweep.py"),
    "test": ("pytest", "the tests"),
}
"""Of each extra a module that only it brings, and what it is for."""
GIB = 2**30


@dataclass(frozen=True)
class Options:
    """Tells devices, versions, memory and extras, and what to install."""


def run(options: Options, stop: Stop) -> int:
    """Tells how the machine is; returns 1 where something must be installed, which is told last."""
    del options, stop
    terminal.say(
        f"jax3d {__version__}, Python {platform.python_version()} at {sys.executable}, "
        f"{platform.system()} {platform.machine()}"
    )
    mend = []
    for line in (*versions(mend), *devices(mend), *memory(), *extras(), *ffmpeg(mend)):
        terminal.say(line)
    for line in mend:
        terminal.say(f"to do: {line}")
    terminal.say("something is to be done" if mend else "all is well")
    return 1 if mend else 0


def versions(mend: list[str]) -> Iterator[str]:
    """The packages that jax3d needs, as they are installed."""
    try:
        needed = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        mend.append(f"{PACKAGE} is not installed here, only its source is found: pip install -e .")
        return
    found, missing = [], []
    for requirement in needed:
        if "extra ==" in requirement:
            continue
        name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield f"packages: {', '.join(found)}"
    if missing:
        mend.append(f"{', '.join(missing)}: missing; pip install {' '.join(missing)}")


def devices(mend: list[str]) -> Iterator[str]:
    """What JAX computes on, and what it leaves idle."""
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError) as error:
        words = " ".join(str(error).split())
        mend.append(f"JAX finds no device: {words}")
        return
    for device in found:
        stats = device.memory_stats() or {}
        room = ""
        if "bytes_limit" in stats:
            free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
            room = f", {free / GIB:.1f} of {stats['bytes_limit'] / GIB:.1f} GiB free"
        yield f"device {device.id}: {device.platform}, {device.device_kind}{room}"
    yield f"backend: {jax.default_backend()}"
    if jax.default_backend() == "cpu" and (idle := accelerator()):
        extra, what = idle
        told = os.environ.get("JAX_PLATFORMS")
        mend.append(
            f"{what} is not used: JAX_PLATFORMS is {told}"
            if told
            else f"{what} is not used: pip install '{PACKAGE}[{extra}]'"
        )


def accelerator() -> tuple[str, str] | None:
    """The extra for an accelerator whose driver the system shows, and what that is."""
    if Path("/proc/driver/nvidia/version").exists():
        return "cuda", "an NVIDIA GPU"
    if any(Path("/dev").glob("accel[0-9]*")):
        return "tpu", "a TPU"
    return None


def memory() -> Iterator[str]:
    """Of the host: cores and memory, and what a container leaves of it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = f"host: {cores} cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        told += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB"
    limit = _read("/sys/fs/cgroup/memory.max")
    if limit.isdecimal():
        told += f" ({int(limit) / GIB:.1f} GiB for this container)"
    if free := re.search(r"MemAvailable: +([0-9]+) kB", _read("/proc/meminfo")):
        told += f", {int(free[1]) * 1024 / GIB:.1f} GiB available"
    yield told


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def extras() -> Iterator[str]:
    """Which extras are there, and how the others are had."""
    for name, (module, purpose) in EXTRAS.items():
        there = find_spec(module) is not None
        state = "there" if there else f"not installed: pip install '{PACKAGE}[{name}]'"
        yield f"extra {name} ({purpose}): {state}"


def ffmpeg(mend: list[str]) -> Iterator[str]:
    """The encoder of turntables."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        yield f"ffmpeg: {get_ffmpeg_exe()}"
    except (ImportError, RuntimeError):
        mend.append("no ffmpeg, so no turntable.mp4: pip install --force-reinstall imageio-ffmpeg")
