"""A sweep on a Ray cluster whose machines come and go.

pip install "jax3d-assets[ray]"
python launch/ray_sweep.py MANIFEST.jsonl --out DIR [--chunk 64] [--workers N] [--gpus 1]

Every option of `jax3d sweep` applies; `DIR` is seen by all machines, or is a gs:// URL. An actor
stands for one accelerator host and takes chunks of the manifest; when it dies, its chunk goes to
the next free actor, which finds the checkpoints by the chunk's name and goes on from there, and
another actor is asked for. Calling the script again makes what is missing.
"""

import os
import socket
import sys
from collections import deque
from dataclasses import dataclass

import jax
import ray
import tyro

from jax3d import cli, ledger, manifest
from jax3d.cli import cache, making, sweep
from jax3d.making import generate
from jax3d.priors.open import open_critic


@dataclass(frozen=True)
class Args:
    """A sweep on Ray. Manifest and all other options are those of `jax3d sweep`."""

    chunk: int = 64
    """Assets that an actor takes at a time; each chunk compiles once."""
    workers: int | None = None
    """Actors; None: one a machine. More than the machines at hand wait for machines to come."""
    cpus: float | None = None
    """Of an actor; None: those of the smallest machine."""
    gpus: float | None = None
    """Of an actor; None: those of the smallest machine that has one."""
    tpus: float = 0
    """Chips of an actor."""
    address: str | None = None
    """Of the cluster, or "auto"; None takes RAY_ADDRESS, or starts one on this machine."""
    deaths: int = 20
    """Actors that may die before any chunk is finished."""


class Worker:
    """One accelerator host."""

    def __init__(self, command: sweep.Options, jobs):
        """Opens the critic."""
        self.command, self.jobs = command, jobs
        if command.cache:
            cache.turn_on()
        if command.cpu_devices is not None:
            jax.config.update("jax_num_cpu_devices", command.cpu_devices)
        self.critic = open_critic(command.prior, command.dtype)

    def ready(self) -> str:
        """Where it is."""
        return f"pid {os.getpid()} on {socket.gethostname()}"

    def make(self, chunk: range) -> tuple[int, int]:
        """Makes what is missing of a chunk; returns how many assets that was, in how many steps."""
        command, made, steps = self.command, [], [0]
        generate(
            command.whole_recipe(),
            self.critic,
            self.jobs,
            command.out,
            config=command.engine,
            share=chunk,
            worker=name(chunk),
            # Of a machine that went away, the lock is known to be stale after two minutes only.
            wait=True,
            report=lambda progress: steps.append(progress.steps),
            finished=made.append,
        )
        return len(made), steps[-1]


def name(chunk: range) -> str:
    """Of a chunk, whoever makes it."""
    return f"chunk-{chunk.start}-{chunk.stop}"


def run(args: Args, hire, chunks: list[range], workers: int) -> None:
    """Hands out the chunks until all are made.

    Raises `RuntimeError` when actors only die, and what a chunk raises.
    """
    queue, dead = deque(chunks), 0
    busy = {}  # by the reply that is awaited: the actor, where it is, and its chunk

    def call():
        worker = hire()
        busy[worker.ready.remote()] = (worker, None, None)

    for _ in range(workers):
        call()
    while queue or any(chunk is not None for *_, chunk in busy.values()):
        (reply,), _ = ray.wait(list(busy))
        worker, where, chunk = busy.pop(reply)
        try:
            answer = ray.get(reply)
        except ray.exceptions.RayActorError as error:
            dead += 1
            if dead > args.deaths:
                raise RuntimeError(f"{dead} actors died and none made a chunk") from error
            if chunk is not None:
                print(f"{name(chunk)}: its actor died; it goes on elsewhere", flush=True)
                queue.appendleft(chunk)
            call()
            continue
        if chunk is None:
            where = answer
        else:
            dead = 0
            assets, steps = answer
            print(f"{name(chunk)}: {assets} assets made in {steps} steps", flush=True)
        if queue:
            chunk = queue.popleft()
            print(f"{name(chunk)}: taken by {where}", flush=True)
            busy[worker.make.remote(chunk)] = (worker, where, chunk)
        else:
            ray.kill(worker)  # and its machine may go


def resources(args: Args) -> tuple[dict, int]:
    """What an actor asks for, and how many actors there are to be."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    hosts = [node for node in nodes if "GPU" in node or "TPU" in node] or nodes
    cpus = min(node.get("CPU", 0) for node in hosts) if args.cpus is None else args.cpus
    gpus = min(node.get("GPU", 0) for node in hosts) if args.gpus is None else args.gpus
    asked = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    if args.tpus:
        asked["resources"] = {"TPU": args.tpus}
    return asked, args.workers or len(hosts)


def main(argv: list[str]) -> int:
    """Runs the sweep; exit codes are those of `jax3d sweep`."""
    args, rest = tyro.cli(Args, args=argv, return_unknown_args=True)
    # This process only looks after the others; should it see an accelerator, it is theirs.
    jax.config.update("jax_platforms", "cpu")
    try:
        _, command = cli.parse(["sweep", *rest])
        jobs = sweep.read_jobs(command)
        chunks = manifest.chunks(len(jobs), args.chunk)
        critic = open_critic(command.prior, command.dtype)
        claim = (command.whole_recipe(), critic, jobs, command.out)
        # Finds mistakes before any machine is asked for, and claims the folder.
        generate(*claim, config=command.engine, share=[])
        ray.init(address=args.address, log_to_driver=True)
        asked, workers = resources(args)
        actor = ray.remote(Worker).options(max_restarts=0, **asked)
        stored = ray.put(jobs)
        run(args, lambda: actor.remote(command, stored), chunks, min(workers, len(chunks)))
        ray.shutdown()
        rows = generate(*claim, config=command.engine)
    except (ValueError, OSError, ImportError) as error:
        print(f"ray_sweep: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(ledger.summary(rows, command.dollars_per_hour))
    return making.exit_code(rows, range(len(jobs)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
