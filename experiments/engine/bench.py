"""Speed of training on this machine, side by side in one run: `pw bench what=train`.

step      An update of `pw.train.loop` (Lightning, curves, signals, EMA) and of a bare PyTorch loop that ends with the
          same weights: `repeats` rounds of ten, in turn, at the tiny scale.
latents   A batch read from latent shards, and a tiny update on it: `repeats` rounds of ten, in turn.
ablation  `ansc` of these arms and seeds by the runner, scored and with its table; then the same trainings and samplings
          by one `pw sample` after the other, as `dry_run=true` prints them, which score nothing. Once each.
start     From starting `pw train` to the end of its first update.
list      `make ablations`.
method    All of `pw.method`, and torch alone: what importing the first takes longer.

start, list and method start processes: one to warm up and up to five that count. Every number is a median; a ratio is
the median of the rounds' ratios.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmarks.speed.metric_speed import BenchRow, report, time_rivals
from experiments.engine.plan import make_plan, parse
from pw.io.arguments import Command, number, option
from pw.io.files import writable_file
from pw.io.paths import ROOT
from pw.parallel.launch import REPORT
from pw.run.signatures import provenance

STARTS = 5  # processes of a kind that are started and counted, at most
START = ("scale=tiny", "stage=hires", "start=none", "trainer=cpu", "train.updates=1")
LISTING = ("-m", "pw", "ablations")
# the package alone imports next to nothing: all of its modules, and the torch that they compute with
METHOD = "import importlib, pkgutil, pw.method, torch; " + (
    "[importlib.import_module(f'pw.method.{m.name}') for m in pkgutil.iter_modules(pw.method.__path__)]"
)

Part = Literal["step", "latents", "ablation", "start", "list", "method"]


@dataclass(frozen=True)
class TrainBenchOptions:
    """What is measured, and how much of it."""

    only: tuple[Part, ...] = option(get_args(Part), "what is measured")
    repeats: int = option(20, "rounds", read=number(1))
    arms: tuple[str, ...] = option(("baseline", "full"), "arms of ansc that are run")
    seeds: str = option("2", "its seeds")
    updates: int = option(20, "its updates of a training", read=number(1))
    count: int = option(8, "its evaluation clips", read=number(1))
    out: Path | None = option(None, "a JSON file, by default named by the processor", read=writable_file("out"))


def median_ratio(these: Sequence[float], those: Sequence[float]) -> float:
    return statistics.median(this / that for this, that in zip(these, those, strict=True))


def bench_step(options: TrainBenchOptions) -> list[BenchRow]:
    from benchmarks.speed.updates import time_updates

    ours, bare = time_updates(options.repeats)
    return [
        BenchRow("step", "an update of pw.train.loop", statistics.median(ours) * 1e3, "ms"),
        BenchRow("step", "of a bare loop", statistics.median(bare) * 1e3, "ms"),
        BenchRow("step", "pw.train.loop against bare", median_ratio(ours, bare), "x", 1.05, "most"),
    ]


def bench_latents(options: TrainBenchOptions) -> list[BenchRow]:
    from benchmarks.speed.updates import time_reading

    reading, training = time_reading(options.repeats)
    return [
        BenchRow("latents", "a batch read", statistics.median(reading) * 1e3, "ms"),
        BenchRow("latents", "a tiny update on it", statistics.median(training) * 1e3, "ms"),
        BenchRow("latents", "rate of reading against training", median_ratio(training, reading), "x", 5, "least"),
    ]


def bench_ablation(options: TrainBenchOptions) -> list[BenchRow]:
    with tempfile.TemporaryDirectory(prefix="pw-bench-") as work:
        call = ("-m", "pw", "ablation", *ablation_words(options))
        commands = alone(python(*call, f"outputs={work}/alone", "dry_run=true"))
        runner = timed(lambda: python(*call, f"outputs={work}/runner"))
        one_by_one = timed(lambda: [python(*words) for words in commands])
    return [
        BenchRow("ablation", "by the runner, with scores", runner, "s"),
        BenchRow("ablation", f"{len(commands)} commands, no scores", one_by_one, "s"),
        BenchRow("ablation", "the runner's speed-up", one_by_one / runner, "x", 2, "least"),
    ]


def alone(printed: str) -> list[list[str]]:
    """The words after `python` of the samplings that a dry run printed: each trains first, so they do all of it."""
    lines = [line.strip() for line in printed.splitlines()]
    return [shlex.split(line)[1:] for line in lines if re.match(r"\S+python -m pw sample", line)]


def bench_start(options: TrainBenchOptions) -> list[BenchRow]:
    times = []
    for _ in range(min(options.repeats, STARTS) + 1):
        with tempfile.TemporaryDirectory(prefix="pw-bench-") as work:
            times.append(first_report("-m", "pw", "train", *START, f"outputs={work}"))
    seconds, cpu = (statistics.median(values[1:]) for values in zip(*times, strict=True))
    return [
        BenchRow("start", "to the end of the first update", seconds, "s", 12, "most"),
        BenchRow("start", "its CPU time, to the process's end", cpu, "s"),
    ]


def first_report(*words: str) -> tuple[float, float]:
    """(seconds to a command's first report of progress, CPU seconds in all). Raises RuntimeError if it fails."""
    reports, theirs = socket.socketpair()
    environment = os.environ | {REPORT: str(theirs.fileno())}
    with reports, tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=log, stderr=log, env=environment, pass_fds=[theirs.fileno()]
            )
        progress = reports.recv(1)  # nothing, if the process ends without
        took = time.perf_counter() - began
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if process.returncode or not progress:
            raise RuntimeError(f"python {shlex.join(words)} failed:\n{log.read()}")
    return took, usage.ru_utime + usage.ru_stime


def bench_list(options: TrainBenchOptions) -> list[BenchRow]:
    _, seconds = time_rivals({"list": lambda: len(python(*LISTING))}, min(options.repeats, STARTS))
    return [BenchRow("list", "make ablations", seconds["list"], "s", 1, "most")]


def bench_method(options: TrainBenchOptions) -> list[BenchRow]:
    rivals = {"method": lambda: len(python("-c", METHOD)), "torch": lambda: len(python("-c", "import torch"))}
    _, seconds = time_rivals(rivals, min(options.repeats, STARTS))
    return [
        BenchRow("method", "import of torch", seconds["torch"], "s"),
        BenchRow("method", "pw.method beyond that", seconds["method"] - seconds["torch"], "s", 0.2, "most"),
    ]


def python(*words: str) -> str:
    """What a command printed. Raises RuntimeError if it fails."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"python {shlex.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


# light processes first, while this one has not imported torch
PARTS: dict[str, Callable[[TrainBenchOptions], list[BenchRow]]] = {
    "list": bench_list,
    "method": bench_method,
    "start": bench_start,
    "ablation": bench_ablation,
    "step": bench_step,
    "latents": bench_latents,
}


def ablation_words(options: TrainBenchOptions) -> tuple[str, ...]:
    """The ablation that is timed."""
    return (
        *("name=ansc", f"arms={','.join(options.arms)}", f"seeds={options.seeds}", "mlflow=false"),
        *(f"train.updates={options.updates}", f"start.updates={options.updates}"),
        f"sampling.count={options.count}",
    )


def run(options: TrainBenchOptions) -> int:
    """Measure, print and write; exit status 0, or 1 when a process failed. Raises ConfigError."""
    make_plan(parse(ablation_words(options)))  # is there such an ablation
    measured: list[BenchRow] = []
    for part in (part for part in PARTS if part in options.only):
        print(f"{part} …", file=sys.stderr, flush=True)
        try:
            measured += PARTS[part](options)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    about = {"load": os.getloadavg(), "repeats": options.repeats, "ablation": ablation_words(options), **provenance()}
    report("train", measured, options.out, about)
    return 0


main = Command(TrainBenchOptions, run)
