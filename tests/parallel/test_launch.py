"""How processes that are one training start, fail, stop and end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pw.io.paths import ROOT
from pw.parallel.launch import ProcessFailed, launch
from pw.parallel.signals import Stopped

# A command whose end is all that matters: what else there is to take down would abort it.
EXITING = """if True:
    import atexit, os, sys
    from pw.parallel.launch import run_and_exit
    from pw.parallel.signals import Stopped
    def main(arguments):
        print("all is written")
        if arguments[0] == "raise":
            raise RuntimeError("of this process")
        if arguments[0] == "stop":
            raise Stopped(15)
        return int(arguments[0])
    atexit.register(os.abort)
    run_and_exit(main, sys.argv[1:])
"""


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}


class TestOneOfSeveral:
    @pytest.mark.parametrize("environment", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
    @pytest.mark.parametrize(("how", "status"), [("0", 0), ("1", 1), ("raise", 1), ("stop", 143)])
    def test_ends_at_once_with_the_status_of_its_work(self, environment: dict[str, str], how: str, status: int) -> None:
        process = self.run_script(environment, how)
        assert (process.returncode, process.stdout) == (status, b"all is written\n")
        assert (b"RuntimeError: of this process" in process.stderr) == (how == "raise")

    def test_is_not_one_that_is_alone_which_takes_down_what_there_is(self) -> None:
        for environment in ({}, TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}):
            assert self.run_script(environment, "0").returncode == -signal.SIGABRT

    def run_script(self, environment: dict[str, str], how: str) -> subprocess.CompletedProcess[bytes]:
        words, env = [sys.executable, "-c", EXITING, how], os.environ | environment
        return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, check=False)


# What a launched process does here instead of training: it says that it is there, and waits or fails.
WORKER = """if True:
    import json, os, signal, sys, time
    from pathlib import Path
    from pw.parallel.launch import exit_with_parent, report, report_failure
    rank = json.loads(os.environ["PW_PLACE"])[0]
    folder, what = Path(sys.argv[1]), sys.argv[2]
    exit_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    while len(list(folder.glob("pid-*"))) < 2:
        time.sleep(0.02)
    if what == "work":
        report(update=10, updates=20)
        sys.exit(0)
    if what in ("fail", "hang") and rank == 1:
        report_failure(ValueError("the disk of process 1 is full"))
        time.sleep(3600 if what == "hang" else 0)
        sys.exit(1)
    if what == "die" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""


# Two of torchrun's, who wait for each other for two seconds, want a training's lock that another runner holds for four.
WAITING = """if True:
    import os, sys
    from datetime import timedelta
    from pathlib import Path
    from pw.parallel.launch import run_and_exit
    from pw.parallel.team import current_place
    from pw.parallel.team import TIMEOUTS, join_team
    from pw.train import loop
    from pw.run.settings import Trainer
    TIMEOUTS[False], loop.LOCK_SECONDS = timedelta(seconds=2), 0.5
    trainer = Trainer("cpu", 2, 1, "sdpa", compile=False, guidance_batch=False, weights=None, strategy="fsdp")
    def main(arguments):
        with join_team(trainer, current_place(trainer)) as team, loop.training_lock(Path(arguments[0]), team):
            return 0
    run_and_exit(main, sys.argv[1:])
"""


# Two that meet, of which the second fails: it says what it knows, and how long they would have waited for each other.
MEETING = """if True:
    import os, sys
    import torch
    import torch.distributed as dist
    from pw.parallel.launch import report_failure
    from pw.parallel.team import current_place
    from pw.parallel.team import join_team
    from pw.run.settings import Trainer
    trainer = Trainer("cpu", 2, 1, "sdpa", compile=False, guidance_batch=False, weights=None, strategy="fsdp")
    place = current_place(trainer)
    waits = "nobody"
    try:
        with join_team(trainer, place) as team:
            waits = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout.days
            team.wait()
            if place.rank == 1:
                raise ValueError("of process 1")
            team.wait()
    except ValueError as error:
        report_failure(ValueError(f"{error}: still met {dist.is_initialized()}, for {waits} days"))
        os._exit(1)
"""


PARENT = """if True:
    import sys
    from pathlib import Path
    from pw.parallel.launch import launch
    launch([sys.executable, "-c", sys.argv[1], sys.argv[2], "wait"], 2, Path(sys.argv[2]), None)
"""


def started_pids(folder: Path) -> list[int]:
    """The two processes, once they are there."""
    until = time.monotonic() + 900
    while time.monotonic() < until:
        pids = [path.read_text() for path in sorted(folder.glob("pid-*"))]
        if len(pids) == 2 and all(pids):
            return [int(pid) for pid in pids]
        time.sleep(0.05)
    raise AssertionError("the processes did not start")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> bool:
    until = time.monotonic() + 900
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(is_running, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
class TestProcessesThatAreLaunched:
    def command(self, folder: Path, behaviour: str) -> list[str]:
        return [sys.executable, "-c", WORKER, str(folder), behaviour]

    def test_report_their_progress_and_end(self, tmp_path: Path) -> None:
        updates = []
        launch(self.command(tmp_path, "work"), 2, tmp_path, lambda *words: updates.append(words))
        assert updates == [(10, 20)]  # once, though both are there
        assert wait_until_gone(started_pids(tmp_path))

    def test_work_in_the_folder_of_the_caller_and_know_this_code(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        script = "import sys, pathlib, pw; pathlib.Path(sys.argv[1]).write_text(pw.__path__[0])"
        # without site-packages, where an installed environment knows this code, too
        launch([sys.executable, "-S", "-c", script, "given"], 1, Path("logs"), None)
        assert Path("given").read_text() == str(ROOT / "pw")

    @pytest.mark.parametrize("how", ["fail", "hang"])  # a process that failed may never end by itself
    def test_all_end_when_one_fails_and_its_words_are_told(self, tmp_path: Path, how: str) -> None:
        with pytest.raises(ProcessFailed, match="the disk of process 1 is full") as failure:
            launch(self.command(tmp_path, how), 2, tmp_path, None)
        assert wait_until_gone(started_pids(tmp_path))
        assert failure.value.log == tmp_path / "rank-1.log"
        assert "ValueError: the disk of process 1 is full" in failure.value.log.read_text()

    @pytest.mark.slow
    def test_that_met_wait_for_days_and_a_failed_one_takes_leave_of_nobody(self, tmp_path: Path) -> None:
        with pytest.raises(ProcessFailed, match=r"of process 1: still met True, for 7 days"):
            launch([sys.executable, "-c", MEETING], 2, tmp_path, None)

    @pytest.mark.slow
    def test_all_end_when_one_is_killed(self, tmp_path: Path) -> None:
        with pytest.raises(ProcessFailed, match=r"process 1 of 2 was killed by signal 9 \(out of memory\?\)"):
            launch(self.command(tmp_path, "die"), 2, tmp_path, None)
        assert wait_until_gone(started_pids(tmp_path))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_do_not_outlive_the_one_that_launched_them(self, tmp_path: Path, number: int) -> None:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, WORKER, str(tmp_path)], cwd=ROOT)
        pids = started_pids(tmp_path)
        assert all(map(is_running, pids))
        time.sleep(0.2)  # until it listens
        parent.send_signal(number)
        assert parent.wait(30) == (143 if number == signal.SIGTERM else -9)
        assert wait_until_gone(pids)

    @pytest.mark.slow
    def test_have_time_for_a_checkpoint_when_ctrl_c_comes_by_terminal_and_by_runner(self, tmp_path: Path) -> None:
        slow = """    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    while not told:
        time.sleep(0.02)
    time.sleep(1)
    (folder / f"saved-{rank}").touch()
    sys.exit(143)"""
        script = WORKER.replace("    time.sleep(60)", slow)
        parent = subprocess.Popen([sys.executable, "-c", PARENT, script, str(tmp_path)], cwd=ROOT)
        started_pids(tmp_path)
        time.sleep(0.5)  # until all listen
        parent.send_signal(signal.SIGINT)
        time.sleep(0.2)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 130
        assert len(list(tmp_path.glob("saved-*"))) == 2

    def test_that_fail_at_their_checkpoint_when_told_to_stop_are_told_to_have_failed(self, tmp_path: Path) -> None:
        full = """    def save(*_):
        if rank == 1:
            report_failure(OSError("no space for a checkpoint"))
        sys.exit(1 if rank == 1 else 143)
    signal.signal(signal.SIGTERM, save)
    (folder / f"listens-{rank}").touch()
    time.sleep(60)"""
        script = WORKER.replace("    time.sleep(60)", full)
        words = [sys.executable, "-c", PARENT, script, str(tmp_path)]
        parent = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started_pids(tmp_path)
        while len(list(tmp_path.glob("listens-*"))) < 2:
            time.sleep(0.02)
        time.sleep(0.2)  # until the one that launched them listens
        parent.send_signal(signal.SIGTERM)
        assert "ProcessFailed: no space for a checkpoint" in parent.communicate(timeout=900)[1]

    @pytest.mark.slow
    def test_may_say_more_than_a_pipe_takes_at_once(self, tmp_path: Path) -> None:
        slow = """    if rank == 1:
        line = json.dumps({"failed": "a long story", "at": 1.0}).encode()
        for part in (line[:20], line[20:] + b"\\n", line[:20]):
            os.write(int(os.environ["PW_REPORT"]), part)
            time.sleep(0.5)
        os._exit(1)
    time.sleep(60)"""
        script = WORKER.replace("    time.sleep(60)", slow)
        with pytest.raises(ProcessFailed, match="a long story"):
            launch([sys.executable, "-c", script, str(tmp_path), "say"], 2, tmp_path, None)

    def test_that_one_of_them_is_told_to_stop_is_told_to_the_caller(self, tmp_path: Path) -> None:
        script = WORKER.replace("    time.sleep(60)", "    sys.exit(143)")
        with pytest.raises(Stopped) as stop:
            launch([sys.executable, "-c", script, str(tmp_path), "stop"], 2, tmp_path, None)
        assert (stop.value.signal, stop.value.code) == (signal.SIGTERM, 143)


@pytest.mark.slow
def test_processes_of_torchruns_wait_for_another_runner_longer_than_for_each_other(tmp_path: Path) -> None:
    port = free_port()
    with FileLock(tmp_path / ".lock"):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WAITING, str(tmp_path)],
                env=os.environ | TORCHRUN | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port},
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for rank in "01"
        ]
        assert processes[0].stderr is not None
        assert "is being trained by another process; waiting for it" in processes[0].stderr.readline()
        time.sleep(4)
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
