"""Several processes are one training: who does what, how they start and end, and what the 5B network weighs in each."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from small_latents import write_latents

from pw.io.paths import ROOT
from pw.parallel.launch import ProcessFailed, launch
from pw.parallel.place import Place, check_launch, current_place
from pw.parallel.share import Share
from pw.parallel.signals import Stopped, ignore_closed_stream, interruptible
from pw.run.build import Run, build
from pw.run.compose import ConfigError
from pw.run.settings import Trainer
from pw.train.batches import clips
from pw.train.preflight import check_share

CPU = ("trainer.accelerator=cpu", "trainer.threads=1")


def shares(processes: int, accumulate: int, batch_size: int) -> list[Share]:
    return [Share(rank, processes, accumulate, batch_size) for rank in range(processes)]


def trainer(*overrides: str) -> Trainer:
    return build(overrides).trainer


class TestAShare:
    @given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))
    def test_is_dealt_so_that_every_part_of_an_update_is_done_once(
        self, processes: int, accumulate: int, batch_size: int, update: int
    ) -> None:
        try:
            dealt = shares(processes, accumulate, batch_size)
        except ConfigError:
            divisors = [n for n in range(1, accumulate + 1) if accumulate % n == 0]
            assert not any(batch_size * n % processes == 0 and processes % n == 0 for n in divisors)
            return
        done = Counter(
            (share.index(update * share.micro_batches + turn), position)
            for share in dealt
            for turn in range(share.micro_batches)
            for position in share.of_batch(range(batch_size))  # ty: ignore[invalid-argument-type]
        )
        micro_batches = range(update * accumulate, (update + 1) * accumulate)
        assert done == Counter((index, position) for index in micro_batches for position in range(batch_size))
        assert {(share.micro_batches, share.clips) for share in dealt} == {(dealt[0].micro_batches, dealt[0].clips)}

    def test_is_of_whole_micro_batches_as_far_as_there_are_any(self) -> None:
        two = Share(rank=3, processes=4, accumulate=2, batch_size=6)
        assert (two.groups, two.parts, two.micro_batches, two.clips) == (2, 2, 1, 3)
        assert (two.index(0), two.index(5), two.part) == (1, 11, 1)

    def test_that_cannot_be_equal_is_refused_with_what_would_do(self) -> None:
        with pytest.raises(ConfigError, match=r"is 3: train\.batch_size=4 .*train\.accumulate=1 .* 2 would do, or"):
            Share(0, 3, 1, 4)
        with pytest.raises(ConfigError, match=r"is 16: .* 8 would do, or train\.accumulate=16"):
            Share(0, 16, 8, 1)

    @pytest.mark.parametrize(("processes", "accumulate", "batch_size"), [(1, 1, 4), (2, 1, 4), (4, 2, 2), (4, 4, 1)])
    def test_of_encoded_clips_gives_every_clip_once_per_epoch(
        self, tmp_path: Path, processes: int, accumulate: int, batch_size: int
    ) -> None:
        import torch

        written = write_latents(tmp_path, build(["scale=proxy"]), 12)
        sizes = [f"train.batch_size={batch_size}", f"train.accumulate={accumulate}"]
        run = build(["scale=proxy", "data=latents", f"data.urls={written}", *sizes])
        dealt = shares(processes, accumulate, batch_size)
        updates = 12 // (accumulate * batch_size)
        for epoch in range(2):
            turns = [
                (share, turn)
                for share in dealt
                for turn in range(epoch * updates * share.micro_batches, (epoch + 1) * updates * share.micro_batches)
            ]
            seen = torch.cat([clips(run, share.index(turn), share).latent[:, 0, 0, 0, 0] for share, turn in turns])
            assert sorted(seen.tolist()) == list(range(12))
        # and a part is a part of the batch that one process would see, anchors and captions too
        whole = run.source.batch(run.seed, 1, batch_size)
        mine = [clips(run, 1, share) for share in dealt if share.index(1 // share.groups) == 1]
        assert torch.equal(torch.cat([batch.latent for batch in mine]), whole.latent)
        assert torch.equal(torch.cat([batch.anchor for batch in mine]), whole.anchor)
        assert torch.equal(torch.cat([batch.text for batch in mine]), whole.text)


class TestTheRandomnessOfAPart:
    @pytest.mark.parametrize("degradation", ["default", "none", "flawed"])
    def test_is_a_part_of_the_whole_batchs(self, degradation: str) -> None:
        import torch

        from pw.stages.stage import SeededDraws

        run = build([f"degradation={degradation}"])
        latent = torch.randn(4, 2, 2, 3, 3)
        one = SeededDraws(5, 7)
        two = [SeededDraws(5, 7, Share(rank, 2, 1, 4)) for rank in (0, 1)]
        both = lambda drawn: torch.cat(list(drawn))  # noqa: E731
        assert torch.equal(both(draws.noise(latent[:2]) for draws in two), one.noise(latent))
        assert torch.equal(both(draws.uniform(2) for draws in two), one.uniform(4))
        assert torch.equal(both(draws.dropped(2, 0.5) for draws in two), one.dropped(4, 0.5))
        perturbed = both(
            draws.perturbed(run.degradation, part, draws.degrade())
            for draws, part in zip(two, latent.split(2), strict=True)
        )
        assert torch.equal(perturbed, one.perturbed(run.degradation, latent, one.degrade()))
        assert torch.equal(perturbed, run.degradation.perturb(latent, one.degrade()))


class TestTheTrainer:
    def test_of_another_kind_changes_no_signature(self) -> None:
        alone = build([])
        for name in ("ddp", "fsdp", "hsdp"):
            run = build([f"trainer={name}", *CPU])
            assert run.trainer.processes == 8
            assert (run.training_signature, run.signature) == (alone.training_signature, alone.signature)

    def test_splits_a_copy_over_all_or_over_a_machine(self) -> None:
        split = {
            name: trainer(f"trainer={name}", "trainer.devices=4", "trainer.nodes=2") for name in ("ddp", "fsdp", "hsdp")
        }
        assert {name: (t.copies, t.split) for name, t in split.items()} == {
            "ddp": (8, 1),
            "fsdp": (1, 8),
            "hsdp": (2, 4),
        }
        assert trainer("trainer=hsdp", "trainer.devices=4", "trainer.shards=2").copies == 2

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("trainer=hsdp trainer.shards=3", ["trainer.shards=3", "8 processes", "trainer.shards=null"]),
            ("trainer=fsdp trainer.nodes=0", ["trainer.nodes=0", "at least 1"]),
            ("trainer.devices=2", ["trainer.devices=2", "one device", "trainer=ddp, fsdp or hsdp"]),
            ("trainer=ddp trainer.shards=2", ["trainer.shards=2", "trainer=hsdp"]),
        ],
    )
    def test_that_cannot_be_is_told_by_key(self, line: str, told: list[str]) -> None:
        with pytest.raises(ConfigError) as error:
            build(line.split())
        assert not [part for part in told if part not in str(error.value)], error.value

    def test_that_cuts_batches_refuses_a_weighting_by_the_batch(self) -> None:
        overrides = ["trainer=ddp", *CPU, "trainer.devices=2", "weighting.normalise=batch"]
        with pytest.raises(ConfigError, match=r"weighting\.normalise=batch.*weighting\.normalise=expected"):
            check_share(build(overrides))
        check_share(build([*overrides, "train.accumulate=2"]))  # a whole batch each


class TestAPlace:
    WANTED = Trainer("gpu", 4, 1, "sdpa", False, False, None, "fsdp", nodes=2)

    def test_is_nowhere_until_the_processes_are_started(self) -> None:
        assert current_place(trainer("trainer=fsdp", "trainer.devices=2"), {}) is None
        assert current_place(trainer(), {}) == Place(0, 1)
        assert current_place(trainer("trainer=fsdp", "trainer.devices=1"), {}) == Place(0, 1)

    def test_is_torchruns(self) -> None:
        given = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "GROUP_RANK": "1"}
        meeting = {"MASTER_ADDR": "there", "MASTER_PORT": "29500"}
        assert current_place(self.WANTED, {**given, **meeting}) == Place(6, 8, local_rank=2, node=1)

    def test_is_that_of_a_step_of_slurm_but_not_of_its_batch_script(self) -> None:
        script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
        step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
        assert current_place(self.WANTED, step) == Place(5, 8, local_rank=1, node=1)
        assert current_place(trainer("trainer=fsdp", "trainer.devices=2"), script) is None

    def test_among_another_number_than_the_trainers_is_refused(self) -> None:
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
        with pytest.raises(ConfigError, match=r"trainer\.devices=4 trainer\.nodes=2: that is 8 .* 2 were started"):
            current_place(self.WANTED, step)

    def test_on_several_machines_is_not_ours_to_start(self) -> None:
        assert current_place(self.WANTED, {}) is None
        with pytest.raises(ConfigError, match=r"trainer\.nodes=2: .*torchrun --nnodes 2 --nproc-per-node 4"):
            check_launch(self.WANTED)
        check_launch(trainer("trainer=fsdp"))


class TestAProcessThatIsToldToStop:
    def test_is_told_once_but_by_ctrl_c_each_time(self) -> None:
        def work() -> None:
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGHUP)  # the shell, after the terminal
                with contextlib.suppress(ValueError):
                    signal.raise_signal(signal.SIGTERM)
                    raise ValueError
                for _ in range(2):
                    with pytest.raises(KeyboardInterrupt):
                        signal.raise_signal(signal.SIGINT)

        before = signal.getsignal(signal.SIGHUP)
        with interruptible(), pytest.raises(Stopped) as stopped:
            work()
        assert stopped.value.code == 129
        assert signal.getsignal(signal.SIGHUP) == before

    def test_is_told_again_when_the_first_time_was_lost(self) -> None:
        """As in a finaliser, whose exceptions are only printed."""
        with interruptible():
            for number in (signal.SIGTERM, signal.SIGTERM):
                with pytest.raises(Stopped):
                    signal.raise_signal(number)

    def test_keeps_to_what_nohup_said(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with interruptible():
                signal.raise_signal(signal.SIGHUP)
        finally:
            assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN

    def test_says_the_rest_to_nobody_when_its_reader_is_gone(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with io.TextIOWrapper(os.fdopen(writer, "wb")) as stream:  # what is left is written when it is closed
            for _ in range(2):
                with ignore_closed_stream(stream):
                    print("update 10", file=stream, flush=True)


# A command whose end is all that matters: what else there is to take down would abort it.
LEAVING = """if True:
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
        ended = self.left(environment, how)
        assert (ended.returncode, ended.stdout) == (status, b"all is written\n")
        assert (b"RuntimeError: of this process" in ended.stderr) == (how == "raise")

    def test_is_not_one_that_is_alone_which_takes_down_what_there_is(self) -> None:
        for environment in ({}, TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}):
            assert self.left(environment, "0").returncode == -signal.SIGABRT

    def left(self, environment: dict[str, str], how: str) -> subprocess.CompletedProcess[bytes]:
        words, known = [sys.executable, "-c", LEAVING, how], os.environ | environment
        return subprocess.run(words, cwd=ROOT, env=known, capture_output=True, check=False)


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
        time.sleep(60 if what == "hang" else 0)
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
    from pw.parallel.place import current_place
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
    from pw.parallel.place import current_place
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


def started(folder: Path) -> list[int]:
    """The two processes, once they are there."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = [path.read_text() for path in sorted(folder.glob("pid-*"))]
        if len(found) == 2 and all(found):
            return [int(pid) for pid in found]
        time.sleep(0.05)
    raise AssertionError("the processes did not start")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int]) -> bool:
    until = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(is_running, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
class TestProcessesThatAreLaunched:
    def command(self, folder: Path, what: str) -> list[str]:
        return [sys.executable, "-c", WORKER, str(folder), what]

    def test_report_their_progress_and_end(self, tmp_path: Path) -> None:
        told = []
        launch(self.command(tmp_path, "work"), 2, tmp_path, lambda *words: told.append(words))
        assert told == [(10, 20)]  # once, though both are there
        assert all_gone(started(tmp_path))

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
        began = time.monotonic()
        with pytest.raises(ProcessFailed, match="the disk of process 1 is full") as failed:
            launch(self.command(tmp_path, how), 2, tmp_path, None)
        assert all_gone(started(tmp_path))
        assert time.monotonic() - began < 30
        assert failed.value.log == tmp_path / "rank-1.log"
        assert "ValueError: the disk of process 1 is full" in failed.value.log.read_text()

    def test_that_met_wait_for_days_and_a_failed_one_takes_leave_of_nobody(self, tmp_path: Path) -> None:
        with pytest.raises(ProcessFailed, match=r"of process 1: still met True, for 7 days"):
            launch([sys.executable, "-c", MEETING], 2, tmp_path, None)

    def test_all_end_when_one_is_killed(self, tmp_path: Path) -> None:
        with pytest.raises(ProcessFailed, match=r"process 1 of 2 was killed by signal 9 \(out of memory\?\)"):
            launch(self.command(tmp_path, "die"), 2, tmp_path, None)
        assert all_gone(started(tmp_path))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_do_not_outlive_the_one_that_launched_them(self, tmp_path: Path, number: int) -> None:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, WORKER, str(tmp_path)], cwd=ROOT)
        pids = started(tmp_path)
        assert all(map(is_running, pids))
        time.sleep(0.2)  # until it listens
        parent.send_signal(number)
        assert parent.wait(30) == (143 if number == signal.SIGTERM else -9)
        assert all_gone(pids)

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
        started(tmp_path)
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
        started(tmp_path)
        while len(list(tmp_path.glob("listens-*"))) < 2:
            time.sleep(0.02)
        time.sleep(0.2)  # until the one that launched them listens
        parent.send_signal(signal.SIGTERM)
        assert "ProcessFailed: no space for a checkpoint" in parent.communicate(timeout=30)[1]

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
        with pytest.raises(Stopped) as stopped:
            launch([sys.executable, "-c", script, str(tmp_path), "stop"], 2, tmp_path, None)
        assert (stopped.value.signal, stopped.value.code) == (signal.SIGTERM, 143)


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


@pytest.fixture
def fake_processes():
    """`fake_processes(64)`: this process is the third of so many, which are not there."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    yield lambda count: dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=count)
    dist.destroy_process_group()


GIB = 2**30


class TestTheFiveBillionNetwork:
    """On the meta device: its shapes and how they are split, without a byte of it."""

    @pytest.mark.parametrize(
        ("overrides", "gib"),
        [
            # weights, gradients, AdamW's two moments and the EMA, fp32: 5.084e9 * 5 * 4 bytes over 64 or 8
            (("trainer=fsdp", "trainer.nodes=8"), 1.48),
            (("trainer=hsdp", "trainer.nodes=8"), 11.84),
        ],
        ids=["fsdp", "hsdp"],
    )
    def test_is_split_over_64_processes(self, fake_processes, overrides: tuple[str, ...], gib: float) -> None:
        import torch
        from torch.distributed.fsdp import FSDPModule

        from pw.cost.count import training_moments
        from pw.nn.backbone import Backbone
        from pw.parallel.sharded import local_rows, mesh_of, shard

        run: Run = build(["scale=2k", *overrides, "trainer.accelerator=cpu"])
        fake_processes(64)
        with torch.device("meta"):
            net = Backbone(run.backbone, run.injector)
        count = sum(parameter.numel() for parameter in net.parameters())
        assert count == 4_999_787_712 + 84_211_969  # Wan's, and those of injector and stride embedding
        shard(net, net.dit.blocks, mesh_of(run.trainer))
        # each block is gathered by itself, all else with the network
        assert sum(isinstance(module, FSDPModule) for module in net.modules()) == 30 + 1
        here = sum(local_rows(parameter)[0].numel() for parameter in net.parameters())
        assert here / (count / run.trainer.split) == pytest.approx(1, abs=2e-3)
        assert 5 * 4 * here / GIB == pytest.approx(gib, abs=0.005)
        kept = [p.bytes for p in training_moments(run, run.trainer.split)[-1].parts[:4]]
        assert 5 * 4 * here == pytest.approx(sum(kept), rel=2e-3)  # what `make plan` says
