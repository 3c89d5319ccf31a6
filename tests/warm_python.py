"""A `python` that has torch imported already: what it is asked to run is forked from one process that has.

The processes are real: each has its number, its signals and its exit code. Only their 8 s of imports are done once.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

COLD = "submitit.local._local"  # a job's number is that of this process, as its parent knows it


@contextmanager
def warm_python(modules: Sequence[str]) -> Generator[str]:
    """The path of an executable for `-m module words…`; it goes with the block."""
    with tempfile.TemporaryDirectory(prefix="pw-") as folder:
        meeting, program = Path(folder) / "socket", Path(folder) / "python"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ISB "{__file__}" "{meeting}" "$@"\n')
        program.chmod(0o755)
        command = [sys.executable, __file__, "--serve", str(meeting), *modules]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as server:
            assert server.stdout is not None
            try:
                assert server.stdout.readline() == "ready\n"
                yield str(program)
            finally:
                os.killpg(server.pid, signal.SIGKILL)  # with what it may still run


def _serve(meeting: str, modules: Sequence[str]) -> None:
    if os.fork() == 0:
        sys.stdin.read()  # until the tests are gone, also by SIGKILL
        os.killpg(0, signal.SIGKILL)
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for a process
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(meeting)
        listening.listen()
        print("ready", flush=True)
        while True:
            asking, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _wait_for_one(asking)
            asking.close()


def _wait_for_one(asking: socket.socket) -> None:
    """Start what is asked for, tell its number, wait for it, tell its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, descriptors, _, _ = socket.recv_fds(asking, 1 << 20, 3)
    process = os.fork()
    if process == 0:
        asking.close()
        _run(json.loads(asked), descriptors)
    with suppress(BrokenPipeError):  # the one that asked may have been killed
        asking.sendall(f"{process}\n".encode())
        _, status = os.waitpid(process, 0)
        asking.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(asked: dict[str, Any], descriptors: Sequence[int]) -> None:
    for place, descriptor in enumerate(descriptors):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    words = [word for word in asked["words"] if word != "-u"]
    assert words[0] == "-m", words
    sys.argv = words[1:]
    code: Any = 0
    warnings.filterwarnings("ignore", module="runpy")  # that it is imported already is what this is for
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))


def _ask(meeting: str, words: Sequence[str]) -> None:
    """Have it run with this process's environment, folder and files, and end as it ends."""
    if COLD in words:
        os.execv(sys.executable, [sys.executable, *words])
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(meeting)
        asked = {"words": words, "environment": dict(os.environ), "folder": str(Path.cwd())}
        socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
        answers = server.makefile()
        process = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: os.kill(process, number))
        code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(sys.argv[2], sys.argv[3:])
    else:
        _ask(sys.argv[1], sys.argv[2:])
