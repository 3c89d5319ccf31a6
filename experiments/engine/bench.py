"""`pw bench what=train`: the speed of training on this machine. Begin with `run`.

step      An update of `pw.train.loop` (Lightning, curves, signals, EMA) and of a bare PyTorch loop that ends with the
          same weights: `repeats` alternating rounds of ten updates, at the tiny scale.
tracking  The share of a training at the tiny scale that curves and held-out loss take (tracking=mlflow, no samples).
latents   Reading a batch from latent shards, and a tiny update on it: `repeats` alternating rounds of ten.
ablation  `ansc` by the runner, with scores and table; then the same trainings and samplings by one `pw sample` after
          the other, as `dry_run=true` prints them, without scores. Once each.
start     From the start of `pw train` to the end of its first update.
list      `make ablations`.
method    Import time of all modules of `pw.method`, minus that of torch.

start, list and method start processes: one to warm up, then at most five that count. Every number is a median; a ratio
is the median over rounds.
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

MAX_STARTS = 5  # counted processes per part
START = ("scale=tiny", "stage=hires", "start=none", "trainer=cpu", "train.updates=1")
LISTING = ("-m", "pw", "ablations")
# the package itself imports almost nothing, so import all of its modules, and torch
METHOD = "import importlib, pkgutil, pw.method, torch; " + (
    "[importlib.import_module(f'pw.method.{m.name}') for m in pkgutil.iter_modules(pw.method.__path__)]"
)

Part = Literal["step", "tracking", "latents", "ablation", "start", "list", "method"]


@dataclass(frozen=True)
class TrainBenchOptions:
    """The options of `pw bench what=train`."""

    only: tuple[Part, ...] = option(get_args(Part), "what is measured")
    repeats: int = option(20, "rounds", read=number(1))
    arms: tuple[str, ...] = option(("baseline", "full"), "arms of ansc that are run")
    seeds: str = option("2", "seeds of ansc")
    updates: int = option(20, "updates of each training of ansc", read=number(1))
    count: int = option(8, "evaluation clips of ansc", read=number(1))
    out: Path | None = option(None, "a JSON file, by default named after the processor", read=writable_file("out"))


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def bench_step(options: TrainBenchOptions) -> list[BenchRow]:
    from benchmarks.speed.updates import time_updates

    loop, bare_loop = time_updates(options.repeats)
    return [
        BenchRow("step", "an update of pw.train.loop", statistics.median(loop) * 1e3, "ms"),
        BenchRow("step", "of a bare loop", statistics.median(bare_loop) * 1e3, "ms"),
        BenchRow("step", "pw.train.loop against bare", median_ratio(loop, bare_loop), "x", 1.05, "most"),
    ]


def bench_tracking(options: TrainBenchOptions) -> list[BenchRow]:
    from benchmarks.speed.updates import tracking_share

    share, relay = tracking_share(160)
    return [
        BenchRow("tracking", "its share of 160 tiny updates", 100 * share, "%", 1, "most"),
        BenchRow("tracking", "CPU time of its own process", relay, "s"),
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
    with tempfile.TemporaryDirectory(prefix="pw-bench-") as folder:
        words = ("-m", "pw", "ablation", *ablation_words(options))
        commands = sample_commands(python(*words, f"outputs={folder}/alone", "dry_run=true"))
        runner = measure_seconds(lambda: python(*words, f"outputs={folder}/runner"))
        sequential = measure_seconds(lambda: [python(*command) for command in commands])
    return [
        BenchRow("ablation", "by the runner, with scores", runner, "s"),
        BenchRow("ablation", f"{len(commands)} commands, no scores", sequential, "s"),
        BenchRow("ablation", "the runner's speed-up", sequential / runner, "x", 2, "least"),
    ]


def sample_commands(output: str) -> list[list[str]]:
    """The arguments of Python for each `pw sample` that a dry run printed; each command also trains its run."""
    commands = re.findall(r"^  (?:\S+python -m )?pw (sample .*)$", output, re.M)
    return [["-m", "pw", *shlex.split(command)] for command in commands]


def bench_start(options: TrainBenchOptions) -> list[BenchRow]:
    times = []
    for _ in range(min(options.repeats, MAX_STARTS) + 1):
        with tempfile.TemporaryDirectory(prefix="pw-bench-") as folder:
            times.append(first_report("-m", "pw", "train", *START, f"outputs={folder}"))
    seconds, cpu = (statistics.median(values[1:]) for values in zip(*times, strict=True))
    return [
        BenchRow("start", "to the end of the first update", seconds, "s", 12, "most"),
        BenchRow("start", "its CPU time, to the process's end", cpu, "s"),
    ]


def first_report(*words: str) -> tuple[float, float]:
    """(seconds to the first progress report of a command, total CPU seconds). Raises RuntimeError if it fails."""
    reports, child_end = socket.socketpair()
    env = os.environ | {REPORT: str(child_end.fileno())}
    with reports, tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        with child_end:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=log, stderr=log, env=env, pass_fds=[child_end.fileno()]
            )
        progress = reports.recv(1)  # empty if the process ends without a report
        seconds = time.perf_counter() - start
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if process.returncode or not progress:
            raise RuntimeError(f"python {shlex.join(words)} failed:\n{log.read()}")
    return seconds, usage.ru_utime + usage.ru_stime


def bench_list(options: TrainBenchOptions) -> list[BenchRow]:
    _, seconds = time_rivals({"list": lambda: len(python(*LISTING))}, min(options.repeats, MAX_STARTS))
    return [BenchRow("list", "make ablations", seconds["list"], "s", 1, "most")]


def bench_method(options: TrainBenchOptions) -> list[BenchRow]:
    calls = {"method": lambda: len(python("-c", METHOD)), "torch": lambda: len(python("-c", "import torch"))}
    _, seconds = time_rivals(calls, min(options.repeats, MAX_STARTS))
    return [
        BenchRow("method", "import of torch", seconds["torch"], "s"),
        BenchRow("method", "pw.method beyond that", seconds["method"] - seconds["torch"], "s", 0.2, "most"),
    ]


def python(*words: str) -> str:
    """The stdout of a Python command. Raises RuntimeError if it fails."""
    process = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"python {shlex.join(words)} failed:\n{process.stdout}{process.stderr}")
    return process.stdout


def measure_seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# light processes first, before this process imports torch
PARTS: dict[str, Callable[[TrainBenchOptions], list[BenchRow]]] = {
    "list": bench_list,
    "method": bench_method,
    "start": bench_start,
    "ablation": bench_ablation,
    "step": bench_step,
    "tracking": bench_tracking,
    "latents": bench_latents,
}


def ablation_words(options: TrainBenchOptions) -> tuple[str, ...]:
    """The words of `pw ablation` that are timed."""
    return (
        *("name=ansc", f"arms={','.join(options.arms)}", f"seeds={options.seeds}", "tracking=none"),
        *(f"train.updates={options.updates}", f"start.updates={options.updates}"),
        f"sampling.count={options.count}",
    )


def run(options: TrainBenchOptions) -> int:
    """Measure, print and write the results; exit status 1 if a process failed. Raises ConfigError."""
    make_plan(parse(ablation_words(options)))  # checks the options
    results: list[BenchRow] = []
    for part in (part for part in PARTS if part in options.only):
        print(f"{part} …", file=sys.stderr, flush=True)
        try:
            results += PARTS[part](options)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    call = {"load": os.getloadavg(), "repeats": options.repeats, "ablation": ablation_words(options), **provenance()}
    report("train", results, options.out, call)
    return 0


main = Command(TrainBenchOptions, run)
