"""The risk of `pw gpu-check` that a training is not the same twice, or not the same after a kill and a resume.

Four shortcut trainings of 24 updates on random latents, at the tokens of `proxy` with a narrow network of two blocks:
one in this process, one in another, and one that is killed there at its 20th update and goes on here from its 16th.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.gpu_machine import Figure, Machine
from benchmarks.speed.risks_of_numbers import Figures
from pw.io.files import sha256
from pw.io.lazy import torch
from pw.run.build import Run, build

UPDATES, CHECKPOINT, KILLED = 24, 8, 20  # progress is reported at each tenth update
CLIPS = 8
LEAST_FREE = 8e9  # bytes on disk: three checkpoints of 0.8 GB and two files of weights, for each of three trainings
TRAINING = (
    *("stage=hires", "objective=shortcut", "text=none", "guidance=off", "tracking=none", "start=none"),
    *(f"train.updates={UPDATES}", f"train.checkpoint_every={CHECKPOINT}"),
)
# 45 million weights; heads of 128 channels as Wan's, for which kernels are made
NARROW = ("backbone.num_attention_heads=8", "backbone.ffn_dim=4096", "backbone.text_dim=512")
# share of the way trained that two trainings may lie apart where kernels add in any order; 1 would be another training
MAX_APART = 0.25
MAX_WAY = 0.1  # of the weights' size: that of other random weights, instead of those that were trained, is 1.4


def training(machine: Machine, deterministic: bool) -> Figures:
    """Of a training elsewhere, and of the resumed one: whether weights differ (1) by hash from those of the first, and
    how far they are apart, as a share of the way that training took them."""
    from pw.train.loop import train

    folder = machine.scratch
    run = _run(machine, folder, deterministic)
    torch.set_num_threads(run.trainer.threads)  # as `pw train` does: another number rounds differently
    one = train(run, folder / "one")
    child = multiprocessing.get_context("spawn").Process(target=_again_then_killed, args=(run.config.overrides, folder))
    child.start()
    child.join()
    if child.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the second process ended with status {child.exitcode}, not by its kill")
    if not any((folder / "killed").rglob("*.ckpt")):
        raise RuntimeError("the killed training left no checkpoint")
    is_exact = deterministic or not machine.is_gpu
    again = _compared(run, one, folder / "again" / one.relative_to(folder / "one"), "again", is_exact)
    return again | _compared(run, one, train(run, folder / "killed"), "resumed", is_exact)


def _run(machine: Machine, folder: Path, deterministic: bool) -> Run:
    from benchmarks.speed.updates import write_latents
    from pw.io.files import check_space

    check_space("TMPDIR", folder, LEAST_FREE if machine.is_gpu else 1e8, "free some, or set it to another folder")
    words = (*TRAINING, *(NARROW if machine.is_gpu else ()), f"trainer.deterministic={str(deterministic).lower()}")
    latents = folder / "latents"
    latents.mkdir()
    write_latents(latents, machine.run("proxy", *words), CLIPS)
    return machine.run("proxy", *words, "data=latents", f"data.urls={latents}")


def _again_then_killed(overrides: Sequence[str], folder: Path) -> None:
    from pw.train.loop import train

    def kill(update: int, updates: int) -> None:
        if update == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    run = build(overrides)
    torch.set_num_threads(run.trainer.threads)
    train(run, folder / "again")
    train(run, folder / "killed", kill)


def _compared(run: Run, one: Path, other: Path, name: str, is_exact: bool) -> Figures:
    from safetensors.torch import load_file

    from pw.stages import stage_module

    files = [folder / "online.safetensors" for folder in (one, other)]
    differs = float(sha256(files[0]) != sha256(files[1]))
    first, second = (load_file(file) for file in files)
    untrained = stage_module(run)
    with torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu"):  # where Lightning has it drawn
        untrained.configure_model()
    start = untrained.net.state_dict()
    way = sum(float((first[key].double() - start[key].double()).square().sum()) for key in first) ** 0.5
    apart = sum(float((first[key].double() - second[key].double()).square().sum()) for key in first) ** 0.5
    size = sum(float(tensor.double().square().sum()) for tensor in start.values()) ** 0.5
    return {
        "way": Figure(way / size, MAX_WAY),
        f"{name}_differs": Figure(differs, 0 if is_exact else 1),
        f"{name}_apart": Figure(apart / way, 0 if is_exact else MAX_APART),
    }
