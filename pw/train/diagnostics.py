"""The curves of a training beside its losses, its held-out loss, and samples: a callback on Lightning's logger.

    train/grad_norm                  norm of the gradient before it is clipped
    train/ema_distance               |ema - net| / |net|, of the weights that are trained
    train/flow_error/t250-500        squared error of the flow velocity, before weights, by the timestep of a clip
    train/rung_error/k2              the same of the shortcut velocity, by rung: stride = timestep / 2^k
    train/mean_velocity_error/t250-500  the same of MeanFlow's mean velocity, by the timestep where its step begins
    train/jump_error/t250-500        of consistency training: squared distance of the landings from two neighbours
    held_out/flow_error/t250-500     on held-out clips with fixed noise (`pw.train.held_out`); where jumps alone are
                                     trained `held_out/jump_error`: squared distance of the landing from the clip
    gate/t250-500                    mean alpha of the injector's gate there, at stride 0, or that of the jump
    system/clips_per_second          without the time of all this
    system/memory_gb                 peak of this process: of its GPU, or of its CPU memory

They go to `diagnostics.jsonl`, from which `pw.tracking` passes them on. Weights and `metrics.jsonl` are those of a
training without them, to the bit: nothing here draws from a global random generator.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from pw.method.objective import Loss
from pw.parallel.sharded import local_rows
from pw.parallel.team import Team
from pw.run.build import Run
from pw.run.settings import Tracking
from pw.tracking.curves import SAMPLES
from pw.train.held_out import BINS, HeldOut, bin_name, held_out, held_out_errors, timestep_bin, write_samples

RUNGS = 16  # more than any ladder has
BY_TIMESTEP = ("flow_error", "mean_velocity_error", "jump_error")


class Diagnostics(L.Callback):
    """Logs what `tracking` asks for. All processes of a training must have one.

    cost  seconds that it took so far, in this process and call
    """

    def __init__(self, run: Run, tracking: Tracking, folder: Path, team: Team) -> None:
        self.run, self.tracking, self.folder, self.team = run, tracking, folder, team
        self.update = self.updates = 0  # done; since the last line
        self.losses: list[Loss] = []  # since the last line
        self.clips: HeldOut | None = None
        self.gradient = 0.0
        self.cost = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.update = trainer.global_step
        with self._counted():
            if self.tracking.held_out:
                self.clips = held_out(self.run, pl_module, self.tracking.held_out)
        self.start = time.perf_counter() - self.cost

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self._is_due(self.update + 1, self.tracking.every):
            with self._counted():
                self.gradient = self._norm([p.grad for p in pl_module.net.parameters() if p.grad is not None])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.last_loss.error is not None:
            self.losses.append(pl_module.last_loss)
        if trainer.global_step == self.update:
            return
        self.update = trainer.global_step
        self.updates += 1
        with self._counted():
            values: dict[str, float] = {}
            if self._is_due(self.update, self.tracking.every):
                values |= self._curves(pl_module)
            if self._is_due(self.update, self.tracking.held_out_every) and self.clips is not None:
                with trainer.precision_plugin.forward_context():
                    values |= self._held_out(pl_module, self.clips)
            if values:
                trainer.logger.log_metrics(values, self.update)
            if self.tracking.samples_every and self._is_due(self.update, self.tracking.samples_every):
                self._sample(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.tracking_seconds = self.cost

    @contextmanager
    def _counted(self) -> Generator[None]:
        start = time.perf_counter()
        yield
        self.cost += time.perf_counter() - start

    def _is_due(self, update: int, every: int) -> bool:
        return update % every == 0 or update == self.run.train.updates

    def _curves(self, module: Any) -> dict[str, float]:
        seconds = time.perf_counter() - self.cost - self.start  # of the updates since the last line
        self.start += seconds
        values = {"train/grad_norm": self.gradient, "train/ema_distance": self._ema_distance(module)}
        values |= self._training_errors()
        train = self.run.train
        clips, self.updates = self.updates * train.batch_size * train.accumulate, 0
        return values | {"system/clips_per_second": clips / seconds, "system/memory_gb": _peak_memory(module)}

    def _ema_distance(self, module: Any) -> float:
        pairs = zip(module.ema.parameters(), module.net.parameters(), strict=True)
        pairs = [(local_rows(ema)[0], local_rows(online)[0]) for ema, online in pairs if online.requires_grad]
        # one by one: all differences of a large network would take its memory once more
        differences = [torch.linalg.vector_norm(ema - online) for ema, online in pairs]
        return self._of_all(differences) / max(1e-30, self._norm([online for _, online in pairs]))

    def _norm(self, tensors: Sequence[Tensor]) -> float:
        return self._of_all(torch._foreach_norm([local_rows(tensor)[0].detach() for tensor in tensors]))

    def _of_all(self, norms: Sequence[Tensor]) -> float:
        """The norm of tensors from the norms of this process's rows of each."""
        total = float(torch.stack([*norms]).double().square().sum()) if norms else 0.0
        trainer = self.run.trainer
        return (self.team.total(total) / trainer.copies if trainer.split > 1 else total) ** 0.5

    def _training_errors(self) -> dict[str, float]:
        """The mean errors since the last line, over all processes."""
        names = [f"train/{name}/{bin_name(i)}" for name in BY_TIMESTEP for i in range(BINS)]
        names += [f"train/rung_error/k{k}" for k in range(RUNGS)]
        places, errors = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
        if self.losses:
            places = torch.cat([_place(loss, self.run) for loss in self.losses])
            errors = torch.cat([loss.error.double().cpu() for loss in self.losses if loss.error is not None])
        self.losses.clear()
        return self._means(names, places, errors)

    def _means(self, names: Sequence[str], places: Tensor, errors: Tensor) -> dict[str, float]:
        """Name -> mean of the errors at its place, over all processes; without names that have none."""
        sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, places, errors)
        counts = places.bincount(minlength=len(names))
        means = self.team.mean(sums) / self.team.mean(counts)
        return {name: float(mean) for name, mean in zip(names, means, strict=True) if mean.isfinite()}

    def _held_out(self, module: Any, clips: HeldOut) -> dict[str, float]:
        share, trainer = module.share, self.run.trainer
        turns = -(-len(clips) // share.processes)  # the same number of evaluations in every process, as FSDP needs
        indices = [(share.rank + turn * share.processes) % len(clips) for turn in range(turns)]
        errors, gates = held_out_errors(module, clips, indices, share.clips)
        is_counted = torch.tensor([share.rank + turn * share.processes < len(clips) for turn in range(turns)])
        is_counted &= trainer.context == 1 or self.team.place.rank % trainer.context == 0
        places = timestep_bin(clips.sigma[indices])[is_counted]
        name = f"held_out/{'jump' if self.run.objective.jumps_to_data == 'only' else 'flow'}_error"
        values = self._means([f"{name}/{bin_name(i)}" for i in range(BINS)], places, errors[is_counted])
        if values:
            values[name] = sum(values.values()) / len(values)
        if gates:
            alphas = torch.stack([gates[index] for index in indices]).double()[is_counted]
            values |= self._means([f"gate/{bin_name(i)}" for i in range(BINS)], places, alphas)
        _clear_caches(module)
        return values

    def _sample(self, module: Any) -> None:
        if self.clips is not None:
            folder = self.folder / SAMPLES / f"update-{self.update:06d}"
            write_samples(module, self.clips, self.tracking.samples, folder, writes=self.team.place.is_first)
            _clear_caches(module)


def _place(loss: Loss, run: Run) -> Tensor:
    """[B]: the place of each clip's error among those by timestep, or after them that of its rung."""
    assert loss.timestep is not None
    assert loss.stride is not None
    is_jump = loss.term == "consistency" and run.objective.jumps_to_data == "only"
    if is_jump or loss.term != "consistency":
        name = {"flow": "flow_error", "meanflow": "mean_velocity_error", "consistency": "jump_error"}[loss.term]
        return BINS * BY_TIMESTEP.index(name) + timestep_bin(run.schedule.sigma(loss.timestep.cpu()))
    return BINS * len(BY_TIMESTEP) + torch.log2(loss.timestep.cpu() / loss.stride.cpu()).round().long().clamp(
        0, RUNGS - 1
    )


def _clear_caches(module: Any) -> None:
    for net in (module.net, module.ema):
        if net.injector is not None:
            net.injector.clear_cache()


def _peak_memory(module: Any) -> float:
    if module.device.type == "cuda":
        return torch.cuda.max_memory_allocated(module.device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e9
