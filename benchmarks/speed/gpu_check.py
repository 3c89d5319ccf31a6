"""`pw gpu-check`: what only a GPU can show, in parts of eight minutes: part=a risks, b 2K and c 4K timed.

Each risk (`RISKS`) is measured in a process of its own with a time limit: one that crashes, hangs, or runs out of
memory has failed, and the next begins on an empty card. A risk passes if its figures are within their bounds. What the
card cannot do (memory by the plan, a kernel that is not there, no time left) is skipped with the reason.

The file is rewritten after every risk: `risks` has name, part, status, figures, bounds, seconds and reason of each.
Another call leaves out what passed with this code, this torch and this card.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from benchmarks.speed import risks_of_memory, risks_of_numbers, risks_of_training
from benchmarks.speed.gpu_machine import Figure, Machine, Skipped
from benchmarks.speed.metric_speed import device as processor
from pw.io.arguments import Command, ConfigError, did_you_mean, number, option
from pw.io.files import read_json, writable_file, write_json
from pw.io.host import may_have_gpu
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS, import_suite_first, silence_libraries
from pw.io.progress import duration
from pw.run.settings import Trainer
from pw.run.signatures import provenance

KERNELS = get_args(get_type_hints(Trainer)["attention"])
PATTERNS = ("window", "topk", "anchor")
PROBE_SECONDS = 120.0
NOTHING: dict[str, Any] = {"status": "skipped", "figures": {}, "bounds": {}, "seconds": 0.0, "reason": ""}
NO_GPU = "device=cuda: {}; call it on a machine with a GPU, or set device=cpu to see it run on tiny shapes"


@dataclass(frozen=True)
class Risk:
    """One thing to check.

    measure  its figures; raises Skipped where the machine cannot have them
    seconds  that it takes on an H200; a guess, no GPU has run it. It may take three times as long, at least a minute
    """

    name: str
    part: Literal["a", "b", "c"]
    measure: Callable[[Machine], Mapping[str, Figure]]
    seconds: float

    @property
    def limit(self) -> float:
        return max(60.0, 3 * self.seconds)


RISKS = (
    *(Risk(f"attention_{k}", "a", partial(risks_of_numbers.attention, kernel=k), 10) for k in KERNELS),
    *(Risk(f"attention_{p}", "a", partial(risks_of_numbers.attention, pattern=p), 30) for p in PATTERNS),
    Risk("training_deterministic", "a", partial(risks_of_training.training, deterministic=True), 45),
    Risk("training", "a", partial(risks_of_training.training, deterministic=False), 45),
    Risk("decode", "a", risks_of_numbers.decode, 15),
    Risk("decode_memory", "a", risks_of_memory.tile, 15),
    Risk("denoise_memory_2k", "a", partial(risks_of_memory.denoise, scale="2k"), 15),
    Risk("denoise_memory_4k", "a", partial(risks_of_memory.denoise, scale="4k"), 20),
    Risk("offload_group", "a", partial(risks_of_numbers.weights, word="trainer.offload=group", most=0.0), 20),
    Risk(
        "storage_fp8",
        "a",
        partial(risks_of_numbers.weights, word="trainer.storage=fp8", most=risks_of_numbers.MAX_FP8),
        20,
    ),
    Risk("copy_of_frames", "a", risks_of_memory.copy, 10),
    *(Risk(f"block_4k_{k}", "a", partial(risks_of_numbers.block, kernel=k), 15) for k in KERNELS if k != "sage"),
    Risk("generate_2k", "b", partial(risks_of_memory.bench, scale="2k", stock_steps=2, compiles="true"), 300),
    Risk("generate_4k", "c", partial(risks_of_memory.bench, scale="4k", stock_steps=0, compiles="always"), 420),
)


def _names(text: str) -> tuple[str, ...]:
    known, names = [risk.name for risk in RISKS], tuple(text.split(","))
    for name in names:
        if name not in known:
            raise ValueError(f"one of {', '.join(known)}{did_you_mean(name, known, '; ')}")
    return names


@dataclass(frozen=True)
class GpuCheckOptions:
    """The options of `pw gpu-check`."""

    part: tuple[Literal["a", "b", "c"], ...] = option(("a", "b", "c"), "risks, 2K timed, 4K timed; one after the other")
    only: tuple[str, ...] = option((), "risks by name, of these parts", read=_names)
    minutes: float = option(8.0, "at most for each part", read=number(1, 600, float))
    device: Literal["cuda", "cpu"] = option("cuda", "a CPU checks what it can on tiny shapes")
    fresh: bool = option(False, "also check again what passed")
    out: Path | None = option(
        None, "the JSON file, by default outputs/gpu_check/<device>.json", read=writable_file("out")
    )


def check_gpu(options: GpuCheckOptions) -> int:
    """Exit status: 0 nothing failed, 1 a risk did. Raises ConfigError without a GPU."""
    card = _card(options.device)
    out = options.out or OUTPUTS / "gpu_check" / f"{re.sub(r'[^A-Za-z0-9]+', '-', card['device']).strip('-')}.json"
    about = {**card, "torch": metadata.version("torch"), **provenance()}
    rows = {} if options.fresh else _rows_of(out, about)
    chosen = [r for r in RISKS if r.part in options.part and (not options.only or r.name in options.only)]

    def record(risk: Risk, outcome: Mapping[str, Any]) -> None:
        rows[risk.name] = {"name": risk.name, "part": risk.part, **outcome}
        write_json(out, {**about, "risks": [rows[r.name] for r in RISKS if r.name in rows]})

    for part in options.part:
        _check_part([risk for risk in chosen if risk.part == part], options, out.parent, rows, record)
    statuses = [rows[risk.name]["status"] for risk in chosen]
    _say(", ".join(f"{statuses.count(status)} {status}" for status in ("pass", "fail", "skipped")))
    print(out)
    return int("fail" in statuses)


def _check_part(
    risks: Sequence[Risk],
    options: GpuCheckOptions,
    folder: Path,
    rows: Mapping[str, Mapping[str, Any]],
    record: Callable[[Risk, Mapping[str, Any]], None],
) -> None:
    """Check the risks of a part that have not passed, until its minutes are over."""
    todo = [risk for risk in risks if rows.get(risk.name, {}).get("status") != "pass"]
    if not risks:
        return
    guess = duration(sum(risk.seconds for risk in todo)) if todo else "no time"
    _say(f"part {risks[0].part}: {len(risks)} risks, {len(risks) - len(todo)} passed before, the rest about {guess}")
    end = time.monotonic() + 60 * options.minutes
    for index, risk in enumerate(todo, start=1):
        left = end - time.monotonic()
        over = f"the {options.minutes:g} minutes of part {risk.part} are over; call again to go on, or set minutes="
        if index > 1 and left < risk.seconds:
            record(risk, {**NOTHING, "reason": over})
            continue
        _say(f"{index} of {len(todo)}: {risk.name}, about {duration(risk.seconds)} …")
        outcome = check(risk, options.device, min(risk.limit, left), folder)
        if outcome["seconds"] >= left < risk.limit:  # it was not given its time
            outcome |= {"status": "skipped", "reason": over}
        record(risk, outcome)
        _say(f"  {_in_words(outcome)}")


def _in_words(outcome: Mapping[str, Any]) -> str:
    """`pass in 12 s: error 0.0031 (at most 0.01)`"""
    bounds = outcome["bounds"]
    values = {name: "not finite" if v is None else f"{v:.3g}" for name, v in outcome["figures"].items()}
    figures = [f"{name} {text}{f' ({bounds[name]})' if name in bounds else ''}" for name, text in values.items()]
    details = "; ".join([*figures, *filter(None, [outcome["reason"]])])
    return f"{outcome['status']} in {duration(outcome['seconds'])}{': ' if details else ''}{details}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rows_of(out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier call found with this code and card, by name."""
    content = read_json(out) if out.exists() else None
    if not isinstance(content, dict) or any(content.get(key) != about[key] for key in ("device", "torch", "code")):
        return {}
    return {row["name"]: row for row in content["risks"]}


def _card(device: str) -> dict[str, Any]:
    """Name, memory and compute capability of the device. Raises ConfigError without a GPU."""
    if device == "cpu":
        return {"device": processor()}
    if not may_have_gpu():  # told without importing torch
        raise ConfigError(NO_GPU.format("there is no GPU here"))
    answer = in_process(probe, (), PROBE_SECONDS)
    if "device" not in answer:
        raise ConfigError(NO_GPU.format(answer["reason"]))
    return answer


def probe() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"reason": "torch sees no CUDA device here"}
    card = torch.cuda.get_device_properties(0)
    return {"device": card.name, "memory_gb": card.total_memory / 1e9, "capability": f"{card.major}.{card.minor}"}


# ---- a risk in its process


def check(risk: Risk, device: Literal["cuda", "cpu"], seconds: float, folder: Path) -> dict[str, Any]:
    """Status, figures, bounds, seconds and reason of a risk, which may take so many seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pw-gpu-check-") as scratch:
        machine = Machine(device, seconds, folder, Path(scratch))
        answer = in_process(measure, (risk.measure, machine), seconds)
    return {**NOTHING, "status": "fail", **answer, "seconds": round(time.monotonic() - start, 1)}


def measure(work: Callable[[Machine], Mapping[str, Figure]], machine: Machine) -> dict[str, Any]:
    """Carry out a risk in this process."""
    silence_libraries()
    try:
        figures = work(machine)
    except Skipped as reason:
        return {"status": "skipped", "reason": str(reason)}
    missed = [f"{name}={f.value:.4g}, expected {f.bound}" for name, f in figures.items() if not f.is_met]
    return {
        "status": "fail" if missed else "pass",
        "figures": {name: f.value if math.isfinite(f.value) else None for name, f in figures.items()},
        "bounds": {name: figure.bound for name, figure in figures.items() if figure.bound},
        "reason": "; ".join(missed),
    }


def in_process(function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], seconds: float) -> dict[str, Any]:
    """What a function returns in a fresh process, or {"reason": …}: it raised, died, or took longer than `seconds`.

    Nothing of it survives: the processes that it started end, too.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    assert process.pid
    sender.close()  # else its end would be open here after the process died
    try:
        if not receiver.poll(seconds):
            return {"reason": f"it took longer than {duration(round(seconds))}"}
        return receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        return {"reason": f"its process ended by {signal.Signals(-code).name if code < 0 else f'status {code}'}"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _answer(sender: Any, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    os.setsid()  # a group, which can be killed together
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # stdout is for the name of the file
    import_suite_first()
    try:
        answer = function(*arguments)
    except Exception as error:
        traceback.print_exc()
        answer = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    sender.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


main = Command(GpuCheckOptions, check_gpu, "what was checked is kept; the same command goes on")
