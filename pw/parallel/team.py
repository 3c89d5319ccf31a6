"""The processes of a training: the rank of each (`Place`), their communication (`Team`), their share of an update.

`pw train trainer=fsdp trainer.devices=8` starts its own processes (`pw.parallel.launch`); processes of torchrun or srun
are recognised by their environment.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.lazy import Tensor
from pw.parallel.signals import Stopped
from pw.run.settings import Train, Trainer

PLACE, STORE = "PW_PLACE", "PW_STORE"  # environment variables of the processes that `launch` starts
# How long processes wait for each other, by `Place.is_launched`. Those of `launch` end when one of them fails, and one
# may decode videos for days while the others wait; otherwise a timeout is the only sign that a process is gone.
TIMEOUTS = {True: timedelta(days=7), False: timedelta(minutes=30)}


@dataclass(frozen=True)
class Place:
    """The rank of this process among the processes of a training.

    local_rank   rank on its machine, which has index `node`
    store        file through which the processes of `launch` connect; None under torchrun or srun
    is_launched  whether `launch` started it: its launcher checks the run, holds the training's lock and reads reports
    """

    rank: int
    processes: int
    local_rank: int = 0
    node: int = 0
    store: str | None = None
    is_launched: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it is rank 0, which writes the files."""
        return self.rank == 0


def current_place(trainer: Trainer, environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place in a run; None if the processes are not started yet.

    Raises ConfigError if the number of started processes differs from that of `trainer`.
    """
    place = place_from_environment(environment) or (Place(0, 1) if trainer.processes == 1 else None)
    if place is not None and place.processes != trainer.processes:
        raise ConfigError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: that is {trainer.processes} processes, "
            f"and {place.processes} were started; set one to the other"
        )
    return place


def place_from_environment(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place from the environment of `launch`, torchrun or srun; None without one of them."""
    if PLACE in environment:
        rank, processes, local_rank = json.loads(environment[PLACE])
        return Place(rank, processes, local_rank, store=environment[STORE], is_launched=True)
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():  # torchrun
        rank, processes, local_rank = (int(environment[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return Place(rank, processes, local_rank, int(environment.get("GROUP_RANK", 0)))
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun sets it, sbatch does not
        keys = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
        rank, processes, local_rank, node = (int(environment[key]) for key in keys)
        return Place(rank, processes, local_rank, node)
    return None


def check_launch(trainer: Trainer) -> None:
    """Raises ConfigError if `launch` cannot start the processes, because some are on other machines."""
    if trainer.nodes > 1:
        raise ConfigError(
            f"trainer.nodes={trainer.nodes}: processes on several machines are started by torchrun or srun, one for "
            f"each device: torchrun --nnodes {trainer.nodes} --nproc-per-node {trainer.devices} -m pw train …; those "
            "of an ablation by launcher=submitit; trainer.nodes=1 is this machine alone"
        )


def prints_for_user() -> bool:
    """Whether this process prints for the user: the launcher, or under torchrun and srun the first process."""
    place = place_from_environment()
    return place is None or (place.is_first and not place.is_launched)


@dataclass(frozen=True)
class Team:
    """Communication of the processes of a training, by gloo (and NCCL on GPUs).

    All of them must call each method. A single process that is not connected gets its own value.
    """

    place: Place
    is_connected: bool = False

    def broadcast(self, value: Any) -> Any:
        """The first process's value."""
        values = [value]
        if self.is_connected:
            import torch.distributed as dist

            dist.broadcast_object_list(values)
        return values[0]

    def maximum(self, value: float) -> float:
        return max(self._gather(value))

    def total(self, value: float) -> float:
        return sum(self._gather(value))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of each of the values [n], in float64 on the CPU."""
        values = values.detach().double().cpu()
        if self.is_connected:
            import torch.distributed as dist

            dist.all_reduce(values)
            values /= self.place.processes
        return values

    def union(self, names: Iterable[str]) -> list[str]:
        """The names of all processes, sorted."""
        lists = [list(names)] * self.place.processes
        if self.is_connected:
            import torch.distributed as dist

            dist.all_gather_object(lists, lists[0])
        return sorted(set[str]().union(*lists))

    def _gather(self, value: float) -> list[float]:
        if not self.is_connected:
            return [value]
        import torch
        import torch.distributed as dist

        # on the CPU, by gloo: it does not wait for pending work of a GPU
        values = torch.zeros(self.place.processes, dtype=torch.float64)
        values[self.place.rank] = value
        dist.all_reduce(values)
        return values.tolist()

    def wait(self) -> None:
        """Return once every process has called this."""
        self.total(0)


@contextlib.contextmanager
def join_team(trainer: Trainer, place: Place) -> Generator[Team]:
    """Connect to the other processes of a run. Creates a torch process group, unless it exists or is not necessary.

    The group is destroyed at the end, but not after a failure: destroying an NCCL group waits for all processes, which
    may wait for the failed one. Under torchrun or srun, successful processes leave together, because the first one may
    host the store that connects the others.
    """
    import torch
    import torch.distributed as dist

    if trainer.strategy == "single" or dist.is_initialized():
        yield Team(place, dist.is_initialized())
        return
    if trainer.accelerator == "gpu":
        torch.cuda.set_device(place.local_rank)
    backend = "cpu:gloo,cuda:nccl" if trainer.accelerator == "gpu" else "gloo"
    store = _store(place)
    timeout = TIMEOUTS[place.is_launched]
    if store is not None:
        store.set_timeout(timeout)  # more than 5 minutes: NCCL starts after the first process has read 20 GB
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.processes, timeout=timeout)
    has_failed = False
    try:
        team = Team(place, is_connected=True)
        yield team
        if not place.is_launched:
            team.wait()
    except BaseException as error:
        has_failed = not isinstance(error, Stopped)  # which all processes raise after the same update
        raise
    finally:
        if not has_failed or place.processes == 1:
            dist.destroy_process_group()


def _store(place: Place) -> Any:
    """The store that connects the processes; None if torch takes it from torchrun's environment."""
    import torch.distributed as dist

    if place.store is not None:
        return dist.FileStore(place.store, place.processes)
    if place.processes == 1:
        return dist.HashStore()
    if "MASTER_ADDR" in os.environ:
        return None
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)  # host and port of the first process follow from the job
    return dist.TCPStore(slurm.main_address, slurm.main_port, place.processes, is_master=place.is_first)


@dataclass(frozen=True)
class Share:
    """The share of one process in each update of `accumulate` micro-batches with `batch_size` clips.

    As many processes as possible compute whole micro-batches; with more processes, each micro-batch is split into equal
    parts. Raises ConfigError if equal shares are not possible.
    """

    rank: int
    processes: int
    accumulate: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size % self.parts:
            clips = self.accumulate * self.batch_size
            counts = [n for n in range(1, clips + 1) if not self.batch_size % (n // math.gcd(self.accumulate, n))]
            nearest = min(counts, key=lambda n: abs(n - self.processes))
            raise ConfigError(
                f"trainer.devices times trainer.nodes, over trainer.context, is {self.processes}: train.batch_size="
                f"{self.batch_size} and train.accumulate={self.accumulate} cannot be shared equally by them; "
                f"use {nearest}, or train.accumulate={self.processes}"
            )

    @classmethod
    def of(cls, train: Train, rank: int = 0, processes: int = 1) -> Share:
        return cls(rank, processes, train.accumulate, train.batch_size)

    @property
    def groups(self) -> int:
        """Micro-batches that are computed at once."""
        return math.gcd(self.accumulate, self.processes)

    @property
    def parts(self) -> int:
        return self.processes // self.groups

    @property
    def part(self) -> int:
        """Index of this process's part of a micro-batch."""
        return self.rank % self.parts

    @property
    def micro_batches(self) -> int:
        """Micro-batches, or parts of them, that this process computes in sequence in an update."""
        return self.accumulate // self.groups

    @property
    def clips(self) -> int:
        """Clips in each of `micro_batches`."""
        return self.batch_size // self.parts

    def index(self, turn: int) -> int:
        """Index, in all micro-batches of the training, of the turn-th one of this process."""
        update, turn = divmod(turn, self.micro_batches)
        return update * self.accumulate + turn * self.groups + self.rank // self.parts

    def total_clips(self, clips: int) -> int:
        """Clips of the whole micro-batch if this process has `clips` of them."""
        return clips * self.parts

    def of_batch(self, batch: Tensor) -> Tensor:
        """[B, …] of the whole micro-batch -> this process's part, [B / parts, …]."""
        length = len(batch) // self.parts
        return batch[self.part * length : (self.part + 1) * length] if self.parts > 1 else batch
