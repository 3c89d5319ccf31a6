"""Several processes that are one training: which they are, what each does of an update, how they start and end.

`pw train trainer=fsdp trainer.devices=8` starts its own processes (`launch`); torchrun's and srun's are taken
as they come (`place`). Whoever starts them, the update is the same: `Share` deals its clips to the processes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from pw.io.paths import ROOT
from pw.run.compose import ConfigError
from pw.run.settings import Train, Trainer

if TYPE_CHECKING:
    from torch import Tensor

PLACE, STORE, LIFELINE, REPORT, LOG = "PW_PLACE", "PW_STORE", "PW_LIFELINE", "PW_REPORT", "PW_LOG"
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
GRACE = 600.0  # seconds that processes which were told to stop have for their checkpoint
# How long processes wait for each other. Those that `launch` started end when one of them fails, and one may decode
# videos for days while the others are done; elsewhere a process that is gone may be heard of in no other way.
PATIENCE = {True: timedelta(days=7), False: timedelta(minutes=30)}


class Stopped(SystemExit):
    """Work that a signal stopped; a training has written its checkpoint. Exit code 128 + signal, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


class Failed(ValueError):
    """What the first of several processes to fail said. Its traceback, or what it said last, is in `log`; None where it
    went with this process's words."""

    def __init__(self, words: str, log: Path | None) -> None:
        super().__init__(words)
        self.log = log


@dataclass(frozen=True)
class Share:
    """What one of several processes does of each update.

    An update is `accumulate` micro-batches of `batch_size` clips. As many processes as possible take micro-batches of
    their own; where there are more processes than that, each micro-batch is cut into equal parts.

    Raises ConfigError when the processes cannot be given equal shares.
    """

    rank: int
    processes: int
    accumulate: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size % self.parts:
            clips = self.accumulate * self.batch_size
            fits = [n for n in range(1, clips + 1) if not self.batch_size % (n // math.gcd(self.accumulate, n))]
            near = min(fits, key=lambda n: abs(n - self.processes))
            raise ConfigError(
                f"trainer.devices times trainer.nodes, over trainer.context, is {self.processes}: train.batch_size="
                f"{self.batch_size} and train.accumulate={self.accumulate} cannot be dealt to so many in equal shares; "
                f"{near} would do, or train.accumulate={self.processes}"
            )

    @classmethod
    def of(cls, train: Train, rank: int = 0, processes: int = 1) -> Share:
        """A process's share of the updates of a training."""
        return cls(rank, processes, train.accumulate, train.batch_size)

    @property
    def groups(self) -> int:
        """How many micro-batches are computed at once."""
        return math.gcd(self.accumulate, self.processes)

    @property
    def parts(self) -> int:
        """Into how many parts a micro-batch is cut."""
        return self.processes // self.groups

    @property
    def part(self) -> int:
        """Which part of a micro-batch is this process's."""
        return self.rank % self.parts

    @property
    def micro_batches(self) -> int:
        """Forwards, one after the other, that an update takes here."""
        return self.accumulate // self.groups

    @property
    def clips(self) -> int:
        """Clips in each of them."""
        return self.batch_size // self.parts

    def index(self, turn: int) -> int:
        """Number, among all micro-batches of the training, of the turn-th one here."""
        update, turn = divmod(turn, self.micro_batches)
        return update * self.accumulate + turn * self.groups + self.rank // self.parts

    def whole(self, clips: int) -> int:
        """Length of the micro-batch of which `clips` are here."""
        return clips * self.parts

    def of_batch(self, whole: Tensor) -> Tensor:
        """This process's part of what was made for a whole micro-batch, [B, …] -> [B / parts, …]."""
        length = len(whole) // self.parts
        return whole[self.part * length : (self.part + 1) * length] if self.parts > 1 else whole


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is. `store` is where those that `launch` started meet, None under torchrun or
    srun; `is_launched` says whether another process holds the training's lock for it."""

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


def place(trainer: Trainer, environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands among those that were started for it; None when they have yet to be started.

    Raises ConfigError when their number is not what `trainer` says.
    """
    wanted = trainer.processes
    found = _started(environment) or (Place(0, 1) if wanted == 1 else None)
    if found is not None and found.processes != wanted:
        raise ConfigError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: that is {wanted} processes, and "
            f"{found.processes} were started; set one to the other"
        )
    return found


def _started(environment: Mapping[str, str]) -> Place | None:
    """Where whoever started this process says that it stands; None where nobody says so."""
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
    """Raises ConfigError when the processes are not all on this machine, so that `launch` cannot start them."""
    if trainer.nodes > 1:
        raise ConfigError(
            f"trainer.nodes={trainer.nodes}: processes on several machines are started by torchrun or srun, one for "
            f"each device: torchrun --nnodes {trainer.nodes} --nproc-per-node {trainer.devices} -m pw train …; those "
            "of an ablation by launcher=submitit; trainer.nodes=1 is this machine alone"
        )


def is_heard(trainer: Trainer) -> bool:
    """Whether what this process prints is for the user: of those that train together the first, or who launched it."""
    found = place(trainer)
    return found is None or (found.is_first and not found.is_launched)


@dataclass(frozen=True)
class Team:
    """The processes of a training, once they have met. Alone, it asks nobody."""

    place: Place
    is_connected: bool = False

    def agreed(self, value: Any) -> Any:
        """What the first process says."""
        if not self.is_connected:
            return value
        import torch.distributed as dist

        said = [value]
        dist.broadcast_object_list(said)
        return said[0]

    def most(self, value: float) -> float:
        """The largest of all."""
        return max(self._all(value)) if self.is_connected else value

    def total(self, value: float) -> float:
        """The sum over all."""
        return sum(self._all(value)) if self.is_connected else value

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all, of each value [n], in float64 on the CPU."""
        values = values.detach().double().cpu()
        if self.is_connected:
            import torch.distributed as dist

            dist.all_reduce(values)
            values /= self.place.processes
        return values

    def union(self, names: Iterable[str]) -> list[str]:
        """What any of them named, each once."""
        found = [list(names)] * self.place.processes
        if self.is_connected:
            import torch.distributed as dist

            dist.all_gather_object(found, found[0])
        return sorted({name for part in found for name in part})

    def _all(self, value: float) -> list[float]:
        import torch
        import torch.distributed as dist

        # on the CPU, by gloo: it does not wait for what a GPU has yet to compute
        mine = torch.zeros(self.place.processes, dtype=torch.float64)
        mine[self.place.rank] = value
        dist.all_reduce(mine)
        return mine.tolist()

    def wait(self) -> None:
        """Until all are here."""
        self.total(0)


@contextlib.contextmanager
def joined(trainer: Trainer, place: Place) -> Generator[Team]:
    """Meet the others; a process group is made, and ended, unless there is one or no need of it.

    After a failure it is left to the end of the process: NCCL's waits until all take leave, and the others may be
    waiting for what this one was to do. Whoever launched it is to hear of the failure before that.
    Those that succeed leave together: where torchrun or srun started them, the first may be the others' meeting point.
    """
    import torch
    import torch.distributed as dist

    if trainer.strategy == "single" or dist.is_initialized():
        yield Team(place, dist.is_initialized())
        return
    if trainer.accelerator == "gpu":
        torch.cuda.set_device(place.local_rank)
    backend = "cpu:gloo,cuda:nccl" if trainer.accelerator == "gpu" else "gloo"
    if place.store is not None:
        store: Any = dist.FileStore(place.store, place.processes)
    elif place.processes == 1:
        store = dist.HashStore()
    elif "MASTER_ADDR" in os.environ:
        store = None  # torch asks the environment
    else:
        store = dist.TCPStore(*_address(), place.processes, is_master=place.is_first)
    patience = PATIENCE[place.is_launched]
    if store is not None:
        store.set_timeout(patience)  # not 5 minutes: NCCL begins when the first process has read its 20 GB
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.processes, timeout=patience)
    is_failed = False
    try:
        team = Team(place, is_connected=True)
        yield team
        if not place.is_launched:
            team.wait()
    except BaseException as error:
        is_failed = not isinstance(error, Stopped)  # which all of them raise after the same update
        raise
    finally:
        if not is_failed or place.processes == 1:
            dist.destroy_process_group()


def _address() -> tuple[str, int]:
    """Where the first process of a step of SLURM listens: it follows from the job."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    environment = SLURMEnvironment(auto_requeue=False)
    return environment.main_address, environment.main_port


# ---- being told to stop


def heeded() -> list[signal.Signals]:
    """The signals that stop this process: all of `STOPPING` but those it was started to ignore, as nohup does."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """While it lasts, a signal to stop raises Stopped, and Ctrl-C KeyboardInterrupt.

    While things are put in order after one of these, only Ctrl-C is heard: a terminal that closes says so twice, itself
    and by its shell.
    """

    def stop(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not _is_ending(sys.exception()):
            raise Stopped(number)

    with _handler(stop):
        yield


def _is_ending(error: BaseException | None) -> bool:
    """Whether what is being handled here and now is, or follows, being told to stop."""
    return error is not None and (isinstance(error, Stopped | KeyboardInterrupt) or _is_ending(error.__context__))


@contextlib.contextmanager
def _handler(handle: Callable[[int, Any], None]) -> Generator[None]:
    """While it lasts, signals to stop are handled so. Only a main thread is told of any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def unheard(stream: TextIO) -> Generator[None]:
    """While it lasts, words that cannot be written end no work. A terminal that is gone, or a reader, gets no more."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            return  # a full disk may have room again
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # else what is still to be written fails again, at the latest at the end
        os.close(nowhere)


# ---- starting them


def launch(command: Sequence[str], processes: int, logs: Path, progress: Callable[[int, int], None] | None) -> None:
    """Run a command as so many processes in this folder, each told its place, and wait for them.

    The first one's words go where ours do, the others' to `logs`. When one fails all are ended; when this process is
    killed, all end by themselves (`end_with_parent`); a signal to stop is handed on.

    Raises Failed with what the first to fail said, and Stopped when they were stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # `python -m pw…` is found from any folder
    with tempfile.TemporaryDirectory(prefix="pw-") as meeting, contextlib.ExitStack() as open_files:
        workers, reports = [], selectors.DefaultSelector()
        lifeline, ours = os.pipe()
        open_files.callback(os.close, ours)
        try:
            for rank in range(processes):
                report, theirs = os.pipe()
                reports.register(
                    open_files.enter_context(os.fdopen(report, "rb", buffering=0)), selectors.EVENT_READ, rank
                )
                environment = {
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path),
                    PLACE: json.dumps([rank, processes, rank]),
                    STORE: str(Path(meeting) / "store"),
                    LIFELINE: str(lifeline),
                    REPORT: str(theirs),
                    LOG: str(logs / f"rank-{rank}.log"),
                }
                with (logs / f"rank-{rank}.log").open("wb") as log:
                    worker = subprocess.Popen(
                        command,
                        env=environment,
                        pass_fds=(lifeline, theirs),
                        stdout=subprocess.DEVNULL,
                        stderr=None if rank == 0 else log,
                        start_new_session=True,  # Ctrl-C is handed on by us, once
                    )
                os.close(theirs)
                workers.append(worker)
            os.close(lifeline)
            with _handed_on(workers) as told:
                failed = _follow(workers, reports, progress, told)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                worker.wait()
            reports.close()
    if failed is None:
        return
    rank, code, said = failed
    if code - 128 in STOPPING or (told and not said):  # one may fail at the checkpoint that it is to write, and say so
        raise Stopped(told[0] if told else code - 128)
    ended = (
        f"was killed by signal {-code} (out of memory?); the same command goes on"
        if code < 0
        else f"ended with code {code}"
    )
    log = logs / f"rank-{rank}.log"
    if not log.stat().st_size:
        raise Failed(said or f"process {rank} of {processes} {ended}", None)
    raise Failed(said or f"process {rank} of {processes} {ended}; its last words are in {log}", log)


def _follow(
    workers: Sequence[subprocess.Popen], reports: selectors.BaseSelector, progress: Any, told: Sequence[int]
) -> tuple[int, int, str] | None:
    """Wait for the processes; (rank, code, what it said) of the first that did not end well."""
    said: dict[int, tuple[float, str]] = {}
    failed: dict[int, int] = {}
    begun: dict[int, bytes] = {}
    patience = math.inf
    while any(worker.poll() is None for worker in workers) and time.monotonic() < patience:
        _listen(reports, said, begun, progress, timeout=0.2)
        failed = failed or {rank: code for rank, worker in enumerate(workers) if (code := worker.poll())}
        if (failed or said) and patience == math.inf:
            # those that a signal stops do so together; nobody waits for the others of one that failed, nor for its end
            stops = told or any(code - 128 in STOPPING for code in failed.values())
            patience = time.monotonic() + (GRACE if stops else 2.0)
    _listen(reports, said, begun, progress, timeout=0)
    failed = failed or {rank: worker.returncode for rank, worker in enumerate(workers) if worker.returncode}
    if not failed and not said:
        return None
    # the others only lost the one that was killed, and NCCL aborts those; else the first to speak knows why
    killed = [rank for rank, code in failed.items() if code < 0 and not (said and code == -signal.SIGABRT)]
    rank = killed[0] if killed else min(said or failed, key=lambda rank: said.get(rank, (rank, ""))[0])
    return rank, workers[rank].poll() or 1, said.get(rank, (0, ""))[1]


def _listen(
    reports: selectors.BaseSelector,
    said: dict[int, tuple[float, str]],
    begun: dict[int, bytes],
    progress: Any,
    timeout: float,
) -> None:
    """Hear what the processes report; `begun` has the line that each of them has yet to end."""
    for key, _ in reports.select(timeout):
        content = os.read(key.fd, 65536)
        if not content:
            reports.unregister(key.fileobj)
        *lines, begun[key.data] = (begun.get(key.data, b"") + content).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "failed" in message:
                said.setdefault(key.data, (message["at"], message["failed"]))
            elif progress is not None and key.data == 0:  # all are at the same update
                progress(message["update"], message["updates"])


@contextlib.contextmanager
def _handed_on(workers: Sequence[subprocess.Popen]) -> Generator[list[int]]:
    """While it lasts, a signal to stop goes to all processes; Ctrl-C after one kills them. The list names them."""
    told: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        told.append(number)
        if len(told) > 1 and number != signal.SIGINT:
            return  # to a runner's worker Ctrl-C comes twice, by the terminal and as the runner's SIGTERM
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM if len(told) == 1 else signal.SIGKILL)

    with _handler(hand_on):
        yield told


def end_with_parent() -> None:
    """End this process when the one that launched it is gone, however it went. Nothing where nobody did."""
    if LIFELINE not in os.environ:
        return
    lifeline = int(os.environ[LIFELINE])

    def wait() -> None:
        while os.read(lifeline, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_and_leave(main: Callable[[list[str]], int], arguments: list[str]) -> NoReturn:
    """Carry out a command, and end the process with its status.

    One of several ends at once: all is written, and threads by which gloo talked to the others have been seen to abort
    a process that took its time to be torn down; one that failed would wait for theirs. One that works alone, or
    launches others, can be told to stop at any time.
    """
    place = _started(os.environ)
    is_alone = place is None or (place.processes == 1 and not place.is_launched)
    try:
        with interruptible() if is_alone else contextlib.nullcontext():
            status = main(arguments)
    except SystemExit as left:
        if not isinstance(left.code, int):
            raise
        status = left.code
    except BaseException:
        if is_alone:
            raise
        traceback.print_exc()
        status = 1
    if is_alone:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with unheard(stream):
            stream.flush()
    os._exit(status)


def report(**message: Any) -> None:
    """Tell the process that launched this one, in less than a pipe takes at once. Nothing where nobody did."""
    if REPORT in os.environ:
        with contextlib.suppress(OSError):
            os.write(int(os.environ[REPORT]), (json.dumps(message) + "\n").encode())


def tell_failure(error: BaseException) -> bool:
    """Report a failure to the process that launched this one and write its traceback to this one's log; False where
    nobody did."""
    if LOG not in os.environ:
        return False
    words = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
    report(failed=words[:2000], at=time.time())
    with contextlib.suppress(OSError), Path(os.environ[LOG]).open("a") as log:
        traceback.print_exception(error, file=log)
    return True
