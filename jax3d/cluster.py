"""Which of several processes this is, as `jax.distributed` finds out in a cluster.

The roll call is all that the processes of a sweep do together: assets do not communicate. A
process that stayed in the group would be ended by the death of any other, and by being minutes
behind the first that is done. So the call is answered by a child, and the process itself is a JAX
of its own that never hears of the others.
"""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import jax


class Place(NamedTuple):
    """Where a process stands among its like."""

    process: int
    """From 0."""
    processes: int
    devices: str | None
    """The GPUs of this machine that are this process's, as `jax_cuda_visible_devices` has them;
    None where it may take all."""


def roll_call(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 300,
) -> Place:
    """Waits until all processes are there and says which of them this one is.

    Args:
      coordinator: HOST:PORT of process 0; as the other two, None where the cluster is recognised
        (`jax.distributed.initialize` says which are).
      processes: How many there are.
      process: Which one this is, from 0.
      timeout: Seconds to wait for the others.

    Raises:
      ValueError: The cluster is not recognised, or the others do not come.
    """
    words = json.dumps([coordinator, processes, process, timeout])
    # The child needs no accelerator, and would take it from this process.
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    child = subprocess.run(
        [sys.executable, "-m", "jax3d.cluster", words], env=env, capture_output=True, text=True
    )
    if child.returncode:
        said = [line for line in child.stderr.splitlines() if "Error" in line or "ERROR" in line]
        why = said[-1].strip() if said else f"exit code {child.returncode}"
        raise ValueError(f"the processes have not found each other: {why}")
    return Place(*json.loads(child.stdout.splitlines()[-1]))


def _answer(coordinator, processes, process, timeout) -> Place:
    # The service would only catch SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout)
    devices = jax.config.read("jax_cuda_visible_devices")
    return Place(jax.process_index(), jax.process_count(), None if devices == "all" else devices)


if __name__ == "__main__":
    print(json.dumps(_answer(*json.loads(sys.argv[1]))), flush=True)
