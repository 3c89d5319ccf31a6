"""The program that a process of another revision runs: it describes runs, makes one, or forks processes that make some.

Its text is given to `python -c`. It imports that revision's `pw`, so it may only use what all supported revisions have
(`OLDEST` in `revision_run.py`): `build`, the signatures of a run, `train` and `sample` with these arguments, `preload`.
The first line of stdin is the request, and stdin closes when the caller is gone. Answers go to stdout, a line of JSON
each: the process, progress, then done or what failed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

PRELOAD = "experiments.engine.preload"
CODES = ("training_code", "sampling_code", "evaluation_code")
SIGNATURES = ("training_signature", "configuration_signature", "degradation_signature", *CODES)


def describe(request: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
    """The answers for runs: (words, evaluation seed, whether to say what computes it). That is found by the caller's
    `pw.run.code`, whose file is `walker`, in this revision's sources."""
    from pw.run.build import build

    importlib.import_module("pw.io.manifest")  # results of older revisions have no marks

    spec = importlib.util.spec_from_file_location("walker", request["walker"])
    assert spec is not None
    assert spec.loader is not None
    walker = importlib.util.module_from_spec(spec)
    sys.modules["walker"] = walker  # dataclasses look for their module
    spec.loader.exec_module(walker)
    answers = []
    for words, seed, is_first in request["runs"]:
        run = build(words)
        computed = definitions_of(run, walker) if is_first else None
        answers.append({**answer(run, seed, ("start_run", "anchor_run", "solution")), "computed": computed})
    return {"runs": answers}


def definitions_of(run: Any, walker: Any) -> dict[str, dict[str, str]]:
    """training, sampling, evaluation -> dotted name -> hash, of all definitions that the hash of this code covers."""
    import pw.run.signatures

    signatures: Any = pw.run.signatures
    hash_code, result = signatures.code_hash, {}
    for code in CODES:
        found: dict[str, str] = {}

        def record(roots: Any, exclude: Any = frozenset(), found: dict[str, str] = found) -> str:
            found.update(walker.definitions(roots, exclude))
            return hash_code(roots, exclude)

        signatures.code_hash = record
        getattr(run, code)
        result[code.removesuffix("_code")] = found
    signatures.code_hash = hash_code
    return result


def answer(run: Any, seed: int, parts: tuple[str, ...]) -> dict[str, Any]:
    """What `RevisionRun` has of this revision: the configuration, the signatures, and the same of the runs it needs."""
    needed = {part: getattr(run, part) for part in parts}
    return {
        **{key: getattr(run, key) for key in SIGNATURES},
        "sample_signature": run.sample_signature(seed),
        "evaluation_signature": run.evaluation_signature(seed),
        "config": vars(run.config),
        "card": run.card and vars(run.card),
        "parts": {part: part_run and answer(part_run, seed, parts[:2]) for part, part_run in needed.items()},
    }


def make(request: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Train or sample one run: the part at `path` of the one with these `words`."""
    importlib.import_module(PRELOAD)  # imports are no cost of the run
    import torch

    from pw.run.build import build
    from pw.sample.evaluate import sample
    from pw.train.loop import train

    run, seed, outputs = build(request["words"]), request["seed"], pathlib.Path(request["outputs"])
    for part in request["path"]:
        run = getattr(run, part)
    signature = run.training_signature if request["kind"] == "train" else run.sample_signature(seed)
    if signature != request["signature"]:
        raise ValueError(f"not run: code or data have changed since the plan was made, {signature} would be made")
    torch.set_num_threads(run.trainer.threads)
    if request["kind"] == "train":
        train(run, outputs, progress)
    else:
        sample(run, outputs, limit=request["limit"], seed=seed, progress=progress)
    return {}


def respond(request: dict[str, Any], answers: Any) -> None:
    """Carry out a request; `answers` is the file for what is said of it."""

    def send(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}, default=str), file=answers, flush=True)

    send("process", os.getpid())
    try:
        from pw.io.paths import import_suite_first

        import_suite_first()
        task = describe if request["kind"] == "describe" else make
        send("done", task(request, lambda done, total: send("progress", [done, total])))
    except SystemExit as stop:  # a signal, after the checkpoint
        send("stopped", stop.code)
    except Exception as error:
        traceback.print_exc()
        is_clear = isinstance(error, ValueError)
        send("failed" if is_clear else "broken", str(error) if is_clear else f"{type(error).__name__}: {error}")


def serve(path: str) -> None:
    """Fork a process for each request through the socket `path`, so that the imports of a revision are done once."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        with contextlib.suppress(Exception):  # a request repeats it, and reports what fails
            importlib.import_module(PRELOAD)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                log = socket.recv_fds(connection, 1, 1)[1][0]
                os.dup2(log, 1)
                os.dup2(log, 2)
                request = json.loads(connection.makefile().readline())
                threading.Thread(target=end_with_caller, args=(connection.fileno(),), daemon=True).start()
                respond(request, connection.makefile("w"))
                os._exit(0)
            connection.close()


def end_with_caller(descriptor: int) -> None:
    os.read(descriptor, 1)  # the caller sends nothing more
    os._exit(1)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_caller, args=(0,), daemon=True).start()
    if request["kind"] == "serve":
        serve(request["path"])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    respond(request, answers)


if __name__ == "__main__":
    main()
