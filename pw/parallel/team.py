"""The processes of a training once they have met, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pw.parallel.place import Place
from pw.parallel.signals import Stopped
from pw.run.settings import Trainer

if TYPE_CHECKING:
    from torch import Tensor

# How long processes wait for each other, by `Place.is_launched`. Those that `launch` started end when one of them
# fails, and one may decode videos for days while the others are done; elsewhere a long silence is the only sign that a
# process is gone.
TIMEOUTS = {True: timedelta(days=7), False: timedelta(minutes=30)}


@dataclass(frozen=True)
class Team:
    """The processes of a training, connected by gloo (and NCCL on GPUs). All of them must call each method.

    A single process that is not connected answers for itself.
    """

    place: Place
    is_connected: bool = False

    def agreed(self, value: Any) -> Any:
        """The first process's value."""
        if not self.is_connected:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def maximum(self, value: float) -> float:
        """The largest value of any process."""
        return max(self._gathered(value)) if self.is_connected else value

    def total(self, value: float) -> float:
        """The sum over the processes."""
        return sum(self._gathered(value)) if self.is_connected else value

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of each of the values [n], in float64 on the CPU."""
        values = values.detach().double().cpu()
        if self.is_connected:
            import torch.distributed as dist

            dist.all_reduce(values)
            values /= self.place.processes
        return values

    def union(self, names: Iterable[str]) -> list[str]:
        """The names that any process has, sorted."""
        lists = [list(names)] * self.place.processes
        if self.is_connected:
            import torch.distributed as dist

            dist.all_gather_object(lists, lists[0])
        return sorted({name for one in lists for name in one})

    def _gathered(self, value: float) -> list[float]:
        import torch
        import torch.distributed as dist

        # on the CPU, by gloo: it does not wait for what a GPU has yet to compute
        mine = torch.zeros(self.place.processes, dtype=torch.float64)
        mine[self.place.rank] = value
        dist.all_reduce(mine)
        return mine.tolist()

    def wait(self) -> None:
        """Return once every process has called this."""
        self.total(0)


@contextlib.contextmanager
def join_team(trainer: Trainer, place: Place) -> Generator[Team]:
    """Connect to the other processes of a run. Makes a torch process group, unless there is one or no need of one.

    The group is destroyed at the end, but not after a failure: destroying NCCL's waits for all processes, which may
    wait for the one that failed. Under torchrun or srun, processes that succeed leave together, for the first may host
    the store through which the others are connected.
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
        store.set_timeout(timeout)  # not 5 minutes: NCCL begins when the first process has read its 20 GB
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
    """The store through which the processes find each other; None where torch takes it from torchrun's environment."""
    import torch.distributed as dist

    if place.store is not None:
        return dist.FileStore(place.store, place.processes)
    if place.processes == 1:
        return dist.HashStore()
    if "MASTER_ADDR" in os.environ:
        return None
    return dist.TCPStore(*_slurm_address(), place.processes, is_master=place.is_first)


def _slurm_address() -> tuple[str, int]:
    """Host and port at which the first process of a SLURM step listens; both follow from the job."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    environment = SLURMEnvironment(auto_requeue=False)
    return environment.main_address, environment.main_port
