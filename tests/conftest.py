"""Shared test set-up: eight CPU devices, quick compilation, checked shapes."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A program is compiled once in a run, for all workers and the processes that tests start. The
# folder is the run's own: nothing depends on what another has left in the user's cache.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="jax3d-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
# The tests compile much and compute little: without LLVM's optimisation they take half the time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jax3d", "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """A worker would otherwise hold every program of every module: several GB by the end."""
    yield
    jax.clear_caches()
