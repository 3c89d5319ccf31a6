"""Lightning's strategies for one device, DDP and FSDP2, with checkpoints that any number of processes can continue."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from pw.parallel.sharded import Shards, local_rows, read_rest, snapshot, write_checkpoint
from pw.parallel.team import Place
from pw.run.settings import Trainer


def check_precision(precision: Precision) -> None:
    """Raises RuntimeError if autocast would keep its casts of weights until a training step ends.

    With FSDP2, those made without gradient for a target would serve the evaluation with gradient, too: the weights of
    linear layers then have no gradient, and nothing says so.
    """
    with precision.forward_context():
        if precision.precision == "bf16-mixed" and torch.is_autocast_cache_enabled():
            raise RuntimeError("autocast caches its casts: weights would have no gradient (pw.parallel.strategy)")


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint of one file directly to its path.

    Lightning's plugin holds it in memory twice, and first writes it to the system's temporary folder, which may be too
    small.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))


class PlaceEnvironment(TorchElasticEnvironment):
    """A `Place` as Lightning's cluster environment: like torchrun's, for processes that Lightning does not start."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def world_size(self) -> int:
        return self.place.processes

    def global_rank(self) -> int:
        return self.place.rank

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with the checkpoints of `pw.parallel.sharded`."""

    def __init__(self, place: Place) -> None:
        super().__init__(data_parallel_size=place.processes, tensor_parallel_size=1)
        self.place = place
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.last_write: Future[None] | None = None  # the last checkpoint, see `save_checkpoint`
        self._checkpoint_path: Path | None = None

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner: Optimizer = getattr(optimizer, "_optimizer", optimizer)
        parameters = [p for group in inner.param_groups for p in group["params"]]
        state = {number: inner.state.get(parameter, {}) for number, parameter in enumerate(parameters)}
        return {"state": flat_optimizer_state(state), "param_groups": inner.state_dict()["param_groups"]}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Copy a checkpoint to the CPU and write it in the background; `last_write` is done when it is on the disk."""
        tensors = {**checkpoint.pop("state_dict"), **checkpoint["optimizer_states"][0]["state"]}
        checkpoint["optimizer_states"][0]["state"] = {}
        self.last_write = self.writer.submit(snapshot(tensors, checkpoint, self.place), Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        self._checkpoint_path = Path(checkpoint_path)
        if self._checkpoint_path.is_dir():
            return read_rest(self._checkpoint_path)
        return torch.load(self._checkpoint_path, map_location="cpu", weights_only=True, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self._load(self.lightning_module.state_dict(), checkpoint.get("state_dict", {}))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (optimizer,) = self.optimizers
        saved = checkpoint["optimizer_states"][0]
        state = {}
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            empty = {key: torch.zeros_like(parameter.detach()) for key in ("exp_avg", "exp_avg_sq")}
            state[number] = {"step": torch.zeros(()), **empty}
        self._load(flat_optimizer_state(state), flat_optimizer_state(saved["state"]))
        optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})

    def _load(self, targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Fill the targets with their rows of the checkpoint: from its folder, or from the `tensors` of its file."""
        assert self._checkpoint_path is not None
        shards = Shards(self._checkpoint_path) if self._checkpoint_path.is_dir() else None
        for name, tensor in targets.items():
            local, first_row = local_rows(tensor)
            if shards is not None:
                local.copy_(shards.rows(name, first_row, len(local) if local.ndim else None))
            else:
                local.copy_(tensors[name][first_row : first_row + len(local)] if local.ndim else tensors[name])


def lightning_strategy(trainer: Trainer, place: Place) -> Strategy:
    """The Lightning strategy of `trainer.strategy`."""
    if trainer.strategy == "single":
        return SingleDeviceStrategy(
            "cuda:0" if trainer.accelerator == "gpu" else "cpu", checkpoint_io=DirectCheckpointIO()
        )
    if trainer.strategy == "ddp":
        return DDPStrategy(checkpoint_io=DirectCheckpointIO())
    return ShardedStrategy(place)


def flat_optimizer_state(state: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """An optimizer's tensors by name: `optimizer.<index of the parameter>.exp_avg` and so on."""
    return {f"optimizer.{number}.{key}": value for number, values in state.items() for key, value in values.items()}
