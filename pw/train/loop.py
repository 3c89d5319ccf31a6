"""Train one run to `outputs/train/<signature>/`: resumable, exact, and done once.

    pw train stage=hires objective=shortcut seed=1
    pw train trainer=fsdp trainer.devices=8 …    (ddp, fsdp, hsdp: `pw.parallel.processes`)

A folder holds `config.yaml`, `metrics.jsonl` (curves), `checkpoints/` while it runs, and at the end `ema.safetensors`,
`online.safetensors` and `done.json`; `not_finite/` if a loss was (`pw.train.not_finite`). A folder without `done.json`
is continued from its last readable checkpoint, by any number of processes. SIGTERM, SIGUSR1, SIGUSR2,
Ctrl-C and a terminal that closes (SIGHUP) end the update that is going on and write a checkpoint.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import math
import os
import resource
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pw.cost.count import checkpoint_copy_bytes, offloaded_bytes, parameters, trained_parameters, training_cost
from pw.data import NO_DATA, Unset
from pw.io.wan_weights import check, locate
from pw.method.weighting import DeltaSigma
from pw.nn import options
from pw.parallel import processes as parallel
from pw.run.build import Run, build
from pw.run.compose import ROOT, ConfigError
from pw.run.provenance import provenance
from pw.train.not_finite import FOLDER, Found, Losses, write

OUTPUTS = ROOT / "outputs"
WITHOUT_GRADIENT = ("flash3", "sage")  # attention kernels, as diffusers calls them
CURVE_EVERY = 10  # updates per line of metrics.jsonl
TURN = 60.0  # seconds of waiting for another runner, after which several processes say to each other that they wait
KEPT = ("last", "previous")  # checkpoints, the newest first

Progress = Callable[[int, int], None]


def training_folder(run: Run, outputs: Path = OUTPUTS) -> Path:
    """Where a training lives: found by signature, never by date."""
    return outputs / "train" / run.training_signature


def is_trained(run: Run, outputs: Path = OUTPUTS) -> bool:
    """Whether the training is done. Raises ConfigError when the folder holds a training of another signature, or its
    `done.json` is cut off."""
    done = training_folder(run, outputs) / "done.json"
    if not done.exists():
        return False
    about = read_json(done)
    if about is None:
        raise ConfigError(f"{done}: is cut off, as a crash of the machine leaves it; remove it to train anew")
    found = about.get("signature")
    if found != run.training_signature:
        raise ConfigError(
            f"{done.parent} holds a training of signature {found}, not {run.training_signature}: move it to "
            f"{done.parent.with_name(str(found))}, or remove it to train anew"
        )
    return True


@dataclass(frozen=True)
class Earlier:
    """A training in the outputs, by what its `config.yaml` says of it.

    key  `Run.trained_key`: what it has in common with those of other code
    """

    folder: Path
    key: str
    code: str
    is_finished: bool


MADE_BY = "# trained from configuration {} by code {}\n"


def earlier_trainings(outputs: Path = OUTPUTS) -> list[Earlier]:
    """All trainings there are, finished or not, the newest first. Older ones that do not say what they are are not
    among them."""
    found = []
    for config in (outputs / "train").glob("*/config.yaml"):
        with config.open(errors="replace") as file:
            lines = [file.readline() for _ in range(2)]
        words = lines[1].split()
        if len(words) == 9 and lines[1] == MADE_BY.format(f"{words[4]} {words[5]}", words[8]):
            done = config.with_name("done.json")
            earlier = Earlier(config.parent, f"{words[4]} {words[5]}", words[8], done.exists())
            found.append(((done if done.exists() else config).stat().st_mtime, earlier))
    return [earlier for _, earlier in sorted(found, key=lambda pair: -pair[0])]


def with_code(run: Run, outputs: Path = OUTPUTS) -> Run:
    """The run with `code=as_trained` heeded: what is finished in the outputs is taken, whatever code made it."""
    if run.code == "current":
        return run
    trained: dict[str, tuple[str, ...]] = {}
    for earlier in earlier_trainings(outputs):
        if earlier.is_finished:
            trained[earlier.key] = (*trained.get(earlier.key, ()), earlier.folder.name)
    return replace(run, trained=trained)


def start_file(start: Run, outputs: Path = OUTPUTS) -> Path:
    """The weights of a start, shipped or trained here."""
    return start.shipped.file if start.shipped else training_folder(start, outputs) / "ema.safetensors"


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically: the final name never holds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(values, indent=1, default=str) + "\n")
    os.replace(partial, path)


def import_stages() -> None:
    """Import Lightning and both stages, the first time, see `import_for_good`."""
    if "pw.stages.hires" not in sys.modules:
        import_for_good("pw.stages.anchor", "pw.stages.hires")


def import_for_good(*modules: str) -> None:
    """Import modules, and meanwhile collect no garbage.

    Those of a training make 900 000 objects, which stay: to look through them again and again takes a fifth of the time
    to import them. They are never looked through again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where it is not, or cut off by a crash of the machine."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def stage_module(run: Run, start: str | None = None, weights: Path | None = None) -> Any:
    """The LightningModule of the run's stage; `start` and `weights` as `Stage` takes them."""
    import_stages()
    from pw.stages.anchor import AnchorModel
    from pw.stages.hires import HiresSynth

    return (AnchorModel if run.stage == "anchor" else HiresSynth)(run, start, weights)


def train(run: Run, outputs: Path = OUTPUTS, progress: Progress | None = None) -> Path:
    """Train, or continue, or return at once if done: the folder with `ema.safetensors`.

    Trains the start it departs from first, if need be. progress(update, updates) is called as either goes. Several
    processes are started here, unless this is one of them.
    Raises ValueError when a start does not fit, when Wan's weights are wanting, or when the loss is not finite, and
    Stopped when a signal came: the checkpoint is there.
    """
    folder = training_folder(run, outputs)
    if run.is_as_trained:
        return folder
    weights = None
    if not is_trained(run, outputs):
        weights = check_weights(run)
        check_attention(run)
    check_share(run)
    place = parallel.place(run.trainer)
    if place is None:
        if not is_trained(run, outputs):
            parallel.check_launch(run.trainer)
        _train_start(run, outputs, progress)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, parallel.Team(parallel.Place(0, 1))):
            if not is_trained(run, outputs):
                check_device(run)
                command = [
                    sys.executable,
                    *("-m", "pw", "train"),
                    *run.config.overrides,
                    f"outputs={outputs.absolute()}",
                ]
                parallel.launch(command, run.trainer.processes, folder / "logs", progress)
        return folder
    with parallel.joined(run.trainer, place) as team:
        start = _train_start(run, outputs, progress)
        if start is not None and run.trainer.split > 1:
            gc.collect()  # Lightning leaves a split network on its device, and refers to it in circles
        folder.mkdir(parents=True, exist_ok=True)
        with nullcontext() if place.is_launched else _alone(folder, team):
            if not team.agreed(is_trained(run, outputs)):
                _train(run, folder, None if start is None else str(start), weights, progress, team)
    return folder


def _train_start(run: Run, outputs: Path, progress: Progress | None) -> Path | None:
    """The weights that a training departs from, trained if need be; None where it has no start."""
    if run.start_run is None:
        return None
    if run.start_run.shipped is None:
        train(run.start_run, outputs, progress)
    return start_file(run.start_run, outputs)


@contextmanager
def _alone(folder: Path, team: parallel.Team) -> Generator[None]:
    """Hold a training's lock: a second runner waits, which it says, then finds it done.

    Of several processes the first holds it for all. The others hear of it again and again, however long it waits: one
    that is silent for long is taken to be gone.
    """
    from filelock import FileLock

    lock = FileLock(folder / ".lock")
    try:
        is_held = team.place.is_first and _is_acquired(lock, 0)
        if team.place.is_first and not is_held:
            logging.getLogger("pw").warning("%s is being trained by another process; waiting for it", folder)
        while not team.agreed(is_held):
            is_held = team.place.is_first and _is_acquired(lock, TURN)
        yield
    finally:
        lock.release()


def _is_acquired(lock: Any, seconds: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _train(
    run: Run, folder: Path, start: str | None, weights: Path | None, progress: Progress | None, team: parallel.Team
) -> None:
    import_stages()
    import lightning.pytorch as L
    import torch

    from pw.parallel.sharded import Placed, strategy

    quiet()
    check_device(run)
    _check_kernel(run)
    place = team.place
    if place.is_first:
        check_disk(run, folder)
        check_host_memory(run)
        write_config(run, folder)
    module = stage_module(run, start, weights if run.departs_from_wan else None)
    module.share = parallel.Share.of(run.train, place.rank // run.trainer.context, run.trainer.shares)
    keeper = _keeper(run, folder, progress, team)
    if run.train.updates == 0:
        if place.is_first:
            module.configure_model()
            export(folder, module, team)
            write_done(run, folder, module)
        team.wait()
        return
    module.share_text(team)
    trainer = L.Trainer(
        accelerator=run.trainer.accelerator,
        strategy=strategy(run.trainer, place),
        devices=run.trainer.devices,
        num_nodes=run.trainer.nodes,
        plugins=[Placed(place)],
        precision="bf16-mixed" if run.train.precision == "bf16" else "32-true",
        max_steps=run.train.updates,
        accumulate_grad_batches=module.share.micro_batches,
        gradient_clip_val=run.optimizer.clip,
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    resume = team.agreed(last_checkpoint(folder) if place.is_first else None)
    if resume is not None and resume[0].is_dir() and run.trainer.split == 1:
        resume = (_as_one_file(resume[0], team), resume[1])
    first = 0 if resume is None else resume[1] * module.share.micro_batches
    checkpoint = None if resume is None else str(resume[0])
    trainer.fit(module, batches(run, first, module.share), ckpt_path=checkpoint, weights_only=True)
    if run.trainer.offload_activations:
        torch.accelerator.empty_host_cache()  # which no larger blocks, those of the next stage, could be taken from
    if keeper.stopped_by:
        raise parallel.Stopped(keeper.stopped_by)
    if place.is_first:
        write_done(run, folder, module)
        on_disk(folder, "ema.safetensors", "online.safetensors", "done.json")
        for path in (folder / "checkpoints").glob("*"):
            remove(path)
    if told := int(team.most(keeper.told)):  # too late for a checkpoint, but there may be more to do after this
        raise parallel.Stopped(told)


def export(folder: Path, module: Any, team: parallel.Team) -> None:
    """Write `online.safetensors` and `ema.safetensors`, whole. All processes must call it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from pw.parallel.sharded import exported

    for name in ("online", "ema"):
        state = exported(module.net if name == "online" else module.ema, keep=team.place.is_first)
        if not team.place.is_first:
            continue
        partial = folder / f".{name}.partial"
        try:
            save_file(state, partial)
        except SafetensorError as error:  # a full disk
            raise OSError(f"{partial}: {error}") from error
        os.replace(partial, folder / f"{name}.safetensors")
        del state  # before the next one is put together: 20 GB each


def on_disk(folder: Path, *names: str) -> None:
    """Wait until files are where a power cut leaves them: what they replace is about to go."""
    for path in (*(folder / name for name in names), folder):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_done(run: Run, folder: Path, module: Any) -> None:
    """`done.json`: the mark of a finished training, and what it took."""
    import torch

    write_json(
        folder / "done.json",
        {
            "signature": run.training_signature,
            "updates": run.train.updates,
            "train_flops": training_flops(run, module),
            "cpu_seconds": round(module.cpu_seconds, 2),
            "wall_seconds": round(module.wall_seconds, 2),
            # ru_maxrss is in KiB on Linux, in bytes on macOS
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            // (1024 if sys.platform == "linux" else 1 << 20),
            "parameters": sum(p.numel() for p in module.net.parameters()),
            "trained_parameters": sum(p.numel() for p in module.net.parameters() if p.requires_grad),
            "torch": torch.__version__,
            **provenance(),
            "code": run.training_code,
            "configuration": run.configuration_signature,
            "start": run.start_run.training_signature if run.start_run else None,
            "shipped_start": _shipped(run),
            "passed_over": list(module.passed_over),
            "processes": run.trainer.processes,
            "strategy": run.trainer.strategy,
        },
    )


def _shipped(run: Run) -> dict[str, Any] | None:
    """What is stamped where the start, or what it was tuned from, came with the repository."""
    start = run.start_run
    while start is not None and start.shipped is None:
        start = start.start_run
    card = None if start is None else start.shipped
    return None if card is None else {"name": card.name, "updates": card.updates, "sha256": card.sha256}


def write_config(run: Run, folder: Path, command: str = "train") -> None:
    """`config.yaml`: the resolved configuration, the command (`train` or `sample`) that makes it again, and by which
    code it was trained."""
    from omegaconf import OmegaConf

    folder.mkdir(parents=True, exist_ok=True)
    head = f"# pw {command} {shlex.join(run.config.overrides)}\n"
    partial = folder / ".config.yaml"
    if command == "train":
        head += MADE_BY.format(run.trained_key, run.training_code)
    partial.write_text(head + OmegaConf.to_yaml(OmegaConf.create(run.config.values)))
    os.replace(partial, folder / "config.yaml")


def written_overrides(folder: Path) -> list[str]:
    """The overrides that `write_config` noted at the head of a `config.yaml`. Raises ConfigError when it is cut off."""
    head, newline, _ = (folder / "config.yaml").read_text().partition("\n")
    earlier = head.startswith("# python -m pw.")  # as written before there was one command line
    if not newline or not (earlier or head.startswith("# pw ")):
        raise cut_off(folder / "config.yaml")
    return shlex.split(head)[4 if earlier else 3 :]  # "# pw train …"


def cut_off(config: Path) -> ConfigError:
    """What to raise where a `config.yaml` does not hold what `write_config` wrote."""
    return ConfigError(
        f"{config}: does not say how it was trained, it is cut off or empty; put it back, or remove {config.parent} to "
        "train anew"
    )


def training_flops(run: Run, module: Any) -> float:
    """Floating-point operations of the whole training: a counted forward, times 3 for an update with gradient, plus
    2 more forwards for the targets of a consistency update. Backward is taken as two forwards, as is usual."""
    if run.text is not None:  # a counted forward in fp32 could run out of memory, at the end of a week
        return training_cost(run).flops
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pw.nn.backbone import Backbone
    from pw.nn.networks import use_kernel
    from pw.stages.stage import SeededDraws

    clips = run.source.batch(run.seed, 0, 1)
    # the one that was trained may be split, or compiled, or have a kernel that is for GPUs, which it has left by now
    net = Backbone(run.backbone, run.injector).to(module.device)
    use_kernel(net, "sdpa")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        data, condition = module.prepare(clips.to(module.device), SeededDraws(run.seed, 0))
        full = torch.full((1,), float(run.schedule.num_timesteps), dtype=torch.float64)
        module.velocity(net, condition)(data, full, full)
    forwards = {"flow": 3, "consistency": 5}
    turns = getattr(run.objective, "turns", None)
    count = sum(
        forwards["consistency" if turns is not None and turns.is_consistency(update) else "flow"]
        for update in range(run.train.updates)
    )
    return float(counter.get_total_flops()) * run.train.batch_size * run.train.accumulate * count


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest readable checkpoint and its update; an unreadable one is set aside with a warning."""
    import torch

    for name in KEPT:
        path = folder / "checkpoints" / f"{name}.ckpt"
        if not path.exists():
            continue
        try:
            if path.is_dir():
                from pw.parallel.sharded import read_rest

                checkpoint = read_rest(path)
            else:
                checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            found = checkpoint["pw_signature"]
            if found != folder.name:
                raise ConfigError(f"{path} is a checkpoint of signature {found}, not {folder.name}; remove it")
            return path, int(checkpoint["global_step"])
        except ConfigError:
            raise
        except Exception as error:
            logging.getLogger("pw").warning("%s is unreadable (%s); trying the one before", path, error)
            aside = path.with_suffix(".unreadable")
            remove(aside)
            path.rename(aside)
    return None


def _as_one_file(shards: Path, team: parallel.Team) -> Path:
    """A checkpoint that split processes left, as a file for those that each have all of the network."""
    from pw.parallel.sharded import as_one_file, write_checkpoint

    path = shards.with_name("whole.ckpt")
    if team.place.is_first:
        write_checkpoint(as_one_file(shards), path)
    team.wait()
    return path


def remove(path: Path) -> None:
    """Delete a checkpoint, a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def batches(run: Run, first: int, share: parallel.Share | None = None) -> Any:
    """The share's batches (all, by default) from number `first` on, endless: {"clips": see `Stage.prepare`, "index"}.

    The position in the data is the batch number alone, so nothing of a data loader needs saving.
    """
    from torch.utils.data import DataLoader, IterableDataset

    mine = share or parallel.Share.of(run.train)

    class Batches(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            turn = first
            while True:
                index = mine.index(turn)
                yield {"clips": clips(run, index, mine), "index": index}
                turn += 1

    return DataLoader(Batches(), batch_size=None)


def clips(run: Run, index: int, share: parallel.Share) -> Any:
    """The index-th batch: of encoded clips the share's part, of pixels all."""
    from pw.data.latents import LatentClips

    if isinstance(run.source, LatentClips):  # by position: a part is a smaller batch of a higher number
        return run.source.batch(run.seed, index * share.parts + share.part, share.clips)
    return run.source.batch(run.seed, index, run.train.batch_size)


def _keeper(run: Run, folder: Path, progress: Progress | None, team: parallel.Team) -> Any:
    """The callback that keeps curves and checkpoints, reports progress, and stops: at a loss that is not finite, or
    when a signal came to any of the processes, which then end the same update."""
    import lightning.pytorch as L
    import torch

    partial, last, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("partial", *KEPT))

    class Keeper(L.Callback):
        stopped_by = 0
        passed_before: Sequence[str] = ()
        is_writing = False  # whether there is a checkpoint that has yet to be given its name

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.strategy = trainer.strategy
            self.began, self.cpu_began = time.perf_counter(), time.process_time()
            self.before: tuple[float, float] = getattr(pl_module, "_spent", (0.0, 0.0))
            self.share = pl_module.share
            self.curve: list[dict[str, float]] = []
            self.losses: dict[str, list[Any]] = {}
            self.micro_batches: list[Any] = []
            self.recent: list[tuple[int, str, Any]] = []  # (update, term, its losses here) since the last look at them

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.before = getattr(pl_module, "_spent", self.before)  # a network that is split is restored late
            self.losses = {term: list(values) for term, values in getattr(pl_module, "_losses", {}).items()}
            self.done = trainer.global_step
            if team.place.is_first:
                _truncate(folder / "metrics.jsonl", self.done)
                remove(folder / "checkpoints" / "whole.ckpt")
            self.told = 0
            if threading.current_thread() is threading.main_thread():
                # Lightning's own, set before, deadlock where there are several processes; at the end, and after a
                # failure, it puts back those that were there before its own
                for number in parallel.heeded():
                    signal.signal(number, self.hear)
            # its question whether one of them came waits, before each micro-batch, until the GPU has nothing left to do
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

        def hear(self, number: int, frame: Any) -> None:
            if self.told and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.told = number  # no more than that: a handler may interrupt anything

        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            pl_module._spent = tuple(checkpoint["pw_spent"])
            pl_module._losses = checkpoint.get("pw_losses", {})  # none in those written before it could be stopped
            self.passed_before = checkpoint.get("pw_passed_over", [])

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["pw_spent"] = list(self.spent())
            checkpoint["pw_losses"] = self.means()
            checkpoint["pw_passed_over"] = self.passed_over()
            checkpoint["pw_signature"] = run.training_signature

        def spent(self) -> tuple[float, float]:
            wall, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu_began
            return self.before[0] + wall, self.before[1] + team.total(cpu)

        def passed_over(self) -> list[str]:
            """Clips that could not be read by any of the processes, nor by those before, by name."""
            found = getattr(run.source, "passed_over", list)
            return team.union([*self.passed_before, *found()])

        def means(self) -> dict[str, Any]:
            """The losses since the last point of the curve, each the mean over the processes."""
            return {term: team.mean(torch.stack([v.cpu() for v in values])) for term, values in self.losses.items()}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            term, value = pl_module.last_loss
            self.micro_batches.append(value)
            if trainer.global_step == self.done:
                return
            self.done = trainer.global_step
            # one for each update, of however many micro-batches it was made here
            values = torch.stack(self.micro_batches)
            self.losses.setdefault(term, []).append(values.mean())
            self.recent.append((self.done, term, values))
            self.micro_batches.clear()
            ends = self.done == run.train.updates
            saves = self.done % run.train.checkpoint_every == 0 and not ends
            if self.done % CURVE_EVERY == 0 or ends or saves:
                self.settle(waits=ends)
                self.point(trainer)  # before a checkpoint: a loss that is not finite must not be saved
            self.stopped_by = 0 if ends else int(team.most(self.told))
            if self.stopped_by:
                self.check(self.means())
                trainer.should_stop = True
            if saves or self.stopped_by:
                self.save(trainer)
            if progress is not None and (self.done % CURVE_EVERY == 0 or ends):
                progress(self.done, run.train.updates)

        def check(self, losses: dict[str, Any]) -> dict[str, float]:
            means = {f"loss_{term}": float(values.mean()) for term, values in losses.items()}
            if not all(map(math.isfinite, means.values())):
                recent = [Losses(update, term, tuple(values.tolist())) for update, term, values in self.recent]
                told = not_finite(run, folder, recent, self.share, team)
                with suppress(OSError):  # a disk that is full, too, must not hide it
                    self.settle(waits=True)
                    self.flush()
                raise ValueError(f"{told}; {before_it(folder)}; try a lower optimizer.lr")
            self.recent.clear()
            return means

        def check_weights(self, pl_module: Any) -> None:
            """A gradient that is not finite shows in the losses of the next update, and there may be none."""
            from pw.parallel.sharded import rows_here

            finite = torch.stack([rows_here(p)[0].isfinite().all() for p in pl_module.net.parameters()])
            if team.most(float(not finite.all())):
                with suppress(OSError):
                    self.settle(waits=True)
                    self.flush()
                raise ValueError(
                    f"weights are not finite after update {self.done}, though the losses were: a gradient was not; "
                    f"{before_it(folder)}; try a lower optimizer.lr"
                )

        def point(self, trainer: Any) -> None:
            means = self.check(self.means())
            self.losses.clear()
            self.curve.append({"step": self.done, **means, "lr": trainer.optimizers[0].param_groups[0]["lr"]})

        def save(self, trainer: Any) -> None:
            self.check_weights(trainer.lightning_module)
            self.flush()
            self.settle(waits=True)  # the one before
            if team.place.is_first:
                partial.parent.mkdir(exist_ok=True)
                remove(partial)
            team.wait()
            trainer.save_checkpoint(partial)
            self.is_writing = True
            self.settle(waits=bool(self.stopped_by))

        def settle(self, *, waits: bool) -> None:
            """Give a checkpoint its name once every process has written its part, which may go on in the background."""
            if not self.is_writing:
                return
            written = getattr(self.strategy, "written", None)
            if written is not None and (waits or written.done()):
                written.result()  # a full disk is heard of here
            if team.most(0 if written is None else not written.done()):
                return
            self.is_writing = False
            if team.place.is_first:
                if last.exists():
                    remove(previous)
                    os.replace(last, previous)
                os.replace(partial, last)

        def flush(self) -> None:
            if team.place.is_first:
                with (folder / "metrics.jsonl").open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in self.curve)
            self.curve.clear()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.flush()
            pl_module.wall_seconds, pl_module.cpu_seconds = self.spent()
            pl_module.passed_over = self.passed_over()
            if not self.stopped_by:
                self.check_weights(pl_module)
                export(folder, pl_module, team)  # before Lightning lets go of what is split

    return Keeper()


def not_finite(run: Run, folder: Path, recent: Sequence[Losses], share: parallel.Share, team: parallel.Team) -> str:
    """What to tell of a loss that is not finite; each process whose it is writes the batch, see `pw.train.not_finite`.

    recent  the losses here since they were last found finite
    """
    here = {losses.update: losses for losses in recent if losses.first_bad is not None}
    update = -int(team.most(-min(here, default=run.train.updates)))
    value, told = "", f"its batch is in {folder / FOLDER}"
    if update in here:
        turn = here[update].first_bad
        assert turn is not None
        value = f" ({here[update].term} {here[update].values[turn]})"
        index = share.index((update - 1) * share.micro_batches + turn)
        found = Found(
            run.training_signature,
            run.configuration_signature,
            run.seed,
            index,
            update,
            here[update].term,
            share.rank,
            share.processes,
        )
        try:
            # by its number it is the one that was trained on
            path = write(folder, team.place.rank, found, clips(run, index, share), recent)
            told = f"its batch is in {path.with_suffix('.safetensors')}, look at it with `pw replay {path}`"
        except (OSError, ValueError) as error:
            told = f"its batch, number {index}, could not be written ({error})"
    team.wait()  # the first that ends takes the others along
    return f"the loss is not finite at update {update}{value}; {told}"


def before_it(folder: Path) -> str:
    """Where a training that stopped can be taken up."""
    before = any((folder / "checkpoints" / f"{name}.ckpt").exists() for name in KEPT)
    return f"the last checkpoint before it is in {folder / 'checkpoints'}" if before else "no checkpoint is before it"


def _truncate(path: Path, step: int) -> None:
    """Drop the lines of a curve beyond `step`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except ValueError:  # the last line of a run that was killed, or of a disk that was full
            continue
    partial = path.with_name(f".{path.name}")
    partial.write_text("".join(kept))
    os.replace(partial, path)


def quiet() -> None:
    """Silence what Lightning says to nobody: tips, hardware lists, data-loader advice."""
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec|isinstance\\(treespec).*")
    # the loss does nothing in place to what the network returns
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers.hooks.context_parallel")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def check_weights(run: Run) -> Path | None:
    """The folder of Wan's weights, of which all that a training needs was found whole; None if it needs none.

    Loads no tensor. Raises ConfigError (WeightsError) saying what is missing, or of another size than the run.
    """
    parts = ["transformer"] if run.departs_from_wan else []
    if isinstance(run.codec, options.WanVAE) and run.config.choices["data"] != "latents":
        parts += ["vae"] if run.text is None else ["vae", "text_encoder", "tokenizer"]
    if not parts:
        return None
    folder = locate(run.trainer.weights)
    check(folder, parts)
    if run.departs_from_wan:
        run.backbone.check(json.loads((folder / "transformer" / "config.json").read_text()), folder)
    return folder


def check_device(run: Run) -> None:
    """Raises ConfigError when the run asks for a GPU that is not there."""
    if run.trainer.accelerator == "gpu":
        import torch

        if not torch.cuda.is_available():
            remedy = "trainer=cpu" if run.trainer.strategy == "single" else "trainer.accelerator=cpu"
            raise ConfigError(f"trainer={run.config.choices['trainer']}: torch sees no CUDA device here; set {remedy}")
        if torch.cuda.device_count() < run.trainer.devices:
            raise ConfigError(
                f"trainer.devices={run.trainer.devices}: torch sees {torch.cuda.device_count()} CUDA devices here; "
                "set trainer.devices to that"
            )


def check_attention(run: Run) -> None:
    """Raises ConfigError when a training has no use for the attention kernel that was chosen."""
    kernel = run.trainer.attention
    if kernel in WITHOUT_GRADIENT and run.train.updates:
        raise ConfigError(
            f"trainer.attention={kernel}: is for sampling, it has no gradient; to train set trainer.attention to sdpa, "
            "cudnn or flash"
        )


def _check_kernel(run: Run) -> None:
    """Raises ValueError when the attention kernel cannot be computed here, by computing a little."""
    from pw.nn.networks import Network, check_kernel

    network = Network(run.backbone, run.injector, run.trainer.attention, run.trainer.compile, run.seed)
    trains = run.train.precision if run.train.updates else None
    check_kernel(network, "cuda" if run.trainer.accelerator == "gpu" else "cpu", trains)


def check_share(run: Run) -> None:
    """Raises ConfigError when several processes cannot make the update that one would."""
    share = parallel.Share.of(run.train, 0, run.trainer.shares)
    if share.parts == 1:
        return
    weighting = getattr(run.objective, "weighting", None)
    if isinstance(weighting, DeltaSigma) and weighting.normalise == "batch":
        raise ConfigError(
            "weighting.normalise=batch: weighs a clip by the others of its batch, and trainer.devices="
            f"{run.trainer.devices} cuts batches of train.batch_size={run.train.batch_size} into parts; set "
            f"weighting.normalise=expected, or train.accumulate={run.trainer.processes}"
        )


def check_disk(run: Run, folder: Path) -> None:
    """Raises ConfigError when checkpoints (two kept, a third being written) and the two exports cannot fit."""
    kept, trained = parameters(run.backbone, run.injector), trained_parameters(run)
    network = 4 * kept  # fp32
    average = network if run.trainer.split > 1 else 4 * trained  # frozen weights are there once where they are whole
    checkpoint = network + average + 8 * trained
    need = 2 * network + (3 * checkpoint if run.train.updates > run.train.checkpoint_every else 0)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise ConfigError(
            f"{folder}: {need / 1e9:.3g} GB are needed for checkpoints and weights, {free / 1e9:.3g} GB are free; free "
            "some, or set outputs=DIR elsewhere"
        )


def check_host_memory(run: Run) -> None:
    """Raises ConfigError when `trainer.offload_activations` is to keep more in CPU memory than is free."""
    from pw.io.host import free_memory

    if not run.trainer.offload_activations:
        return
    devices, split = run.trainer.devices, run.trainer.split
    checkpoint = min(devices, split) * checkpoint_copy_bytes(run)  # of several copies one is written
    need, free = devices * offloaded_bytes(run) + checkpoint, free_memory()
    if need > free:
        beside = f", {checkpoint / 1e9:.3g} GB of them for a checkpoint as it is written" if checkpoint else ""
        raise ConfigError(
            f"trainer.offload_activations=true: {need / 1e9:.3g} GB of CPU memory are needed{beside}, {free / 1e9:.3g} "
            "GB are free; set it to false, or fewer scale.frames"
        )


def check_data(run: Run) -> None:
    """Raises ConfigError when there is nothing to train on."""
    if isinstance(run.source, Unset):
        raise ConfigError(NO_DATA)


def outputs_folder(value: str) -> Path:
    """What `outputs=` names. Raises ConfigError when nothing can be written there."""
    folder = Path(value).expanduser().resolve()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not value or not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"outputs={value}: wants a folder that can be written, e.g. outputs=outputs/trial")
    return folder


def command_line(arguments: list[str]) -> tuple[Run, Path, int | None]:
    """(run, outputs, evaluation seed) of a command: overrides, `outputs=`, `evaluation_seed=`. Raises ConfigError."""
    own = {k: v for k, _, v in (word.partition("=") for word in arguments) if k in ("outputs", "evaluation_seed")}
    outputs = outputs_folder(own["outputs"]) if "outputs" in own else OUTPUTS
    run = with_code(build([word for word in arguments if word.partition("=")[0] not in own]), outputs)
    training_folder(run)  # composes the runs it needs, too
    check_share(run)
    place = parallel.place(run.trainer)
    if not is_trained(run, outputs):
        check_data(run)
        if place is None:
            parallel.check_launch(run.trainer)
    check_device(run)
    seed = own.get("evaluation_seed")
    if seed is not None and not seed.isdecimal():
        raise ConfigError(f"evaluation_seed={seed}: wants a whole number")
    return run, outputs, None if seed is None else int(seed)


class _Shown:
    """The line of progress, with the time left at the pace since this call began to train; a line now and then where
    there is no terminal."""

    def __init__(self, run: Run) -> None:
        self.updates, self.is_heard = run.train.updates, parallel.is_heard(run.trainer)
        self.every = 0.0 if sys.stderr.isatty() else 15.0
        self.first: tuple[int, int, float] | None = None
        self.last = time.perf_counter()

    def __call__(self, update: int, updates: int) -> None:
        now = time.perf_counter()
        if self.first is None or self.first[1] != updates:
            self.first = (update, updates, now)
        if not self.is_heard or (now - self.last < self.every and update < updates):
            return
        self.last = now
        first, _, since = self.first
        left = f", about {(now - since) / (update - first) * (updates - update):.0f} s left" if update > first else ""
        end = "\r" if sys.stderr.isatty() and update < updates else "\n"
        what = "" if updates == self.updates else "its start: "
        with parallel.unheard(sys.stderr):
            print(f"{what}update {update} of {updates}{left}   ", end=end, file=sys.stderr, flush=True)


def tell(run: Run, work: Callable[[Progress], Path]) -> int:
    """Exit code of a command's work, which trains: its progress, and what went wrong, are told in a line."""
    shown = _Shown(run)

    def progress(update: int, updates: int) -> None:
        parallel.report(update=update, updates=updates)
        shown(update, updates)

    try:
        import torch

        torch.set_num_threads(run.trainer.threads)
        folder = work(progress)
    except (parallel.Stopped, KeyboardInterrupt) as stopped:
        number = stopped.signal if isinstance(stopped, parallel.Stopped) else signal.SIGINT
        if parallel.is_heard(run.trainer):
            name = signal.Signals(number).name
            words = f"stopped by {name}; the same command goes on from the last checkpoint, if there is one"
            with parallel.unheard(sys.stderr):
                print(words, file=sys.stderr, flush=True)
        return 128 + number
    except (ValueError, OSError) as error:
        if not parallel.tell_failure(error):
            print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not parallel.tell_failure(error):
            raise
        return 1
    if parallel.is_heard(run.trainer):
        print(folder)
    return 0


def main(arguments: list[str]) -> int:
    """Train one run from the command line, with a line of progress."""
    try:
        run, outputs, _ = command_line(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parallel.end_with_parent()
    return tell(run, lambda progress: train(run, outputs, progress))
