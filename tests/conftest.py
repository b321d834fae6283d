"""Shared test set-up: four CPU devices, checked shapes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

from jaxtyping import install_import_hook

install_import_hook("jax3d", "beartype.beartype")
