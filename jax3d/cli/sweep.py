"""`jax3d sweep`."""

from dataclasses import dataclass

import jax
import tyro

from jax3d import cluster, ledger, manifest
from jax3d.bounds import Count, Natural, NonNegative
from jax3d.cli import making, terminal
from jax3d.cli.signals import Stop
from jax3d.manifest import Job


@dataclass(frozen=True)
class Options(making.Making):
    """Makes the assets of a manifest, on all devices; goes on where it was killed."""

    manifest: tyro.conf.Positional[str] = ""
    """A .jsonl or .csv file: one asset a line with its prompt and, where it differs from the
    recipe, seed, steps, negative prompt and knobs."""
    dollars_per_hour: NonNegative | None = None
    """Price of a device, to tell the cost of an asset."""
    processes: Count | None = None
    """Of how many processes this is one, each with its share of the assets in the same OUT. They
    need not run at the same time."""
    process: Natural | None = None
    """Which one this is, from 0."""
    distributed: bool = False
    """The processes start together and number themselves by `jax.distributed`. Slurm, MPI,
    Kubernetes and TPU pods are recognised; elsewhere tell `processes` and `process` as well."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where a distributed run is not recognised."""

    def mistake(self) -> str | None:
        """A process is one of several, or numbers itself."""
        if self.distributed:
            return None
        if self.processes is None:
            return None if self.process is None else "process needs --processes, of which it is one"
        if self.process is not None and self.process < self.processes:
            return None
        return (
            f"process is {self.process}; of {self.processes} processes it is one from 0 to "
            f"{self.processes - 1}"
        )


def run(options: Options, stop: Stop) -> int:
    """Makes the assets, or this process's share of them, and tells what they cost."""
    jobs = read_jobs(options)
    making.split_cpu(options.cpu_devices, len(jobs))
    if not options.distributed and options.processes is None:
        rows, code = making.make(options, jobs, stop)
    else:
        me, count = _roll_call(options)
        share, worker = range(me, len(jobs), count), f"process-{me}-of-{count}"
        rows, code = making.make(options, jobs, stop, share=share, worker=worker)
    if code < 128:
        terminal.say(ledger.summary(rows, options.dollars_per_hour))
    return code


def read_jobs(options: Options) -> list[Job]:
    """What a sweep is to make; raises `ValueError` without a manifest."""
    if not options.manifest:
        raise ValueError("no manifest: give a .jsonl or .csv file with one asset a line")
    return manifest.read(options.manifest, options.seed)


def _roll_call(options: Options) -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not options.distributed:
        return options.process, options.processes
    found = cluster.roll_call(options.coordinator, options.processes, options.process)
    if found.devices is not None:
        jax.config.update("jax_cuda_visible_devices", found.devices)
        jax.config.update("jax_rocm_visible_devices", found.devices)
    return found.process, found.processes
