"""Shared test set-up: eight CPU devices, quick compilation, checked shapes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What a test compiles must not depend on what another run has left in the user's cache.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
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
