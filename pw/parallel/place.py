"""Which of several processes this one is.

`pw train trainer=fsdp trainer.devices=8` starts its own processes (`pw.parallel.launch`); those that torchrun or srun
started are recognised by their environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from pw.io.arguments import ConfigError
from pw.run.settings import Trainer

PLACE, STORE = "PW_PLACE", "PW_STORE"  # environment variables of the processes that `launch` starts


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is, in torch's terms its rank.

    local_rank   among those of its machine, which has number `node`
    store        file by which processes that `launch` started find each other; None under torchrun or srun
    is_launched  whether `launch` started it: its launcher checks the run, holds the training's lock and hears reports
    """

    rank: int
    processes: int
    local_rank: int = 0
    node: int = 0
    store: str | None = None
    is_launched: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0


def current_place(trainer: Trainer, environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place among those of a run; None when they have yet to be started.

    Raises ConfigError when another number of processes was started than `trainer` says.
    """
    place = place_from_environment(environment) or (Place(0, 1) if trainer.processes == 1 else None)
    if place is not None and place.processes != trainer.processes:
        raise ConfigError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: that is {trainer.processes} processes, "
            f"and {place.processes} were started; set one to the other"
        )
    return place


def place_from_environment(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that `launch`, torchrun or srun gave this process; None without one of them."""
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
    """Raises ConfigError when `launch` cannot start the processes: some are on other machines."""
    if trainer.nodes > 1:
        raise ConfigError(
            f"trainer.nodes={trainer.nodes}: processes on several machines are started by torchrun or srun, one for "
            f"each device: torchrun --nnodes {trainer.nodes} --nproc-per-node {trainer.devices} -m pw train …; those "
            "of an ablation by launcher=submitit; trainer.nodes=1 is this machine alone"
        )


def prints_for_user() -> bool:
    """Whether this process is the one that prints: the launcher, or under torchrun and srun the first."""
    place = place_from_environment()
    return place is None or (place.is_first and not place.is_launched)
