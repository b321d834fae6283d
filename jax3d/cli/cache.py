"""Compiled programs on disk, so that a second run does not compile what a first one did.

The cache is JAX's own. It lies in the user's cache folder, unless JAX was told another by
`JAX_COMPILATION_CACHE_DIR`, and what was not used for longest goes when it has grown too large.
"""

import hashlib
import platform
import sys
from pathlib import Path

import jax
import platformdirs

MOST_BYTES = 2 * 2**30
"""Size of the cache; programs of an asset take some MB, those of Stable Diffusion some 100 MB."""

LEAST_SECONDS = 0.2
"""Programs that compile faster are not worth a file."""


def turn_on() -> None:
    """Keeps compiled programs from now on; tells it where that cannot be, and goes on without."""
    if not jax.config.jax_enable_compilation_cache or jax.config.jax_compilation_cache_dir:
        return
    folder = platformdirs.user_cache_path("jax3d", appauthor=False) / "programs" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError as error:
        print(f"jax3d: no cache of compiled programs: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _machine() -> str:
    """Of machines that share a home, one must not run what was compiled for another's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        described = "\n".join(sorted(set(told)))
    except OSError:
        described = platform.processor()
    text = f"{platform.machine()}\n{described}"
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
