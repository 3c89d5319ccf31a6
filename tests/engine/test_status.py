"""`make status` and its ledger: the state of every job, from files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from experiments.engine.ablation import AblationOptions
from experiments.engine.job import all_jobs
from experiments.engine.ledger import STALE_AFTER, Claim, Ledger
from experiments.engine.plan import make_plan, parse
from experiments.engine.pool import Pool
from experiments.engine.status import Outline, cells_of, main, outline, read_outline, write_outline
from pw.io.files import write_json
from pw.io.manifest import write_mark

ROOT = Path(__file__).parents[2]
KEY = "train:01234567"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def claim_by(ledger: Ledger, key: str = KEY) -> Claim:
    return ledger.claim(key, "train full seed 0", ledger.folder / "full.log")


@contextmanager
def another_process(outputs: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed KEY and lives until it is killed."""
    program = (
        "import sys, time; from pathlib import Path; from experiments.engine.ledger import Ledger; "
        "Ledger(Path(sys.argv[1])).claim(sys.argv[2], 'train full seed 0', Path('full.log')); "
        "print('claimed', flush=True); time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(outputs), KEY], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        try:
            yield process
        finally:
            process.kill()


class TestAClaim:
    def test_is_the_first_ones(self, ledger: Ledger, tmp_path: Path) -> None:
        first, second = claim_by(ledger), claim_by(Ledger(tmp_path))
        assert first.owner == second.owner == ledger.owner

    def test_may_be_made_again_by_its_owner(self, ledger: Ledger) -> None:
        first = claim_by(ledger)
        time.sleep(0.01)
        assert claim_by(ledger).since > first.since

    def test_is_held_while_its_process_lives_and_stale_when_that_is_killed(
        self, ledger: Ledger, tmp_path: Path
    ) -> None:
        with another_process(tmp_path) as process:
            claim = claim_by(ledger)
            assert (claim.pid, claim.is_active) == (process.pid, True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert claim.is_stale
        assert claim_by(ledger).owner == ledger.owner

    def test_of_another_machine_is_stale_when_it_has_long_been_silent(self, ledger: Ledger, tmp_path: Path) -> None:
        remote_claim = replace(claim_by(ledger), host="elsewhere", pid=1)
        ledger.write(remote_claim)
        assert claim_by(Ledger(tmp_path)).host == "elsewhere"
        ledger.write(replace(remote_claim, beat=time.time() - STALE_AFTER - 1))
        assert claim_by(Ledger(tmp_path)).host != "elsewhere"

    def test_of_a_process_whose_number_was_used_again_is_stale(self, ledger: Ledger) -> None:
        claim = claim_by(ledger)
        assert not claim.is_stale
        assert replace(claim, started=claim.started - 60).is_stale

    def test_that_failed_holds_nobody_off(self, ledger: Ledger, tmp_path: Path) -> None:
        claim_by(ledger)
        ledger.fail(KEY, "ValueError: no")
        other = Ledger(tmp_path)
        assert claim_by(other).owner == other.owner

    def test_that_failed_in_one_of_its_processes_stays_so_whatever_the_others_say(
        self, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second task of a queue job fails; the first loses its connection and still renews the claim."""
        monkeypatch.setattr("experiments.engine.ledger.HEARTBEAT", 0.01)
        claim = claim_by(ledger)
        second = Ledger(tmp_path, ledger.owner)
        with ledger.working(claim):
            second.fail(KEY, "OutOfMemoryError: 80 GB", tmp_path / "17_1_log.out")
            time.sleep(0.2)
        ledger.fail(KEY, "RuntimeError: connection closed by peer", tmp_path / "17_0_log.out")
        current = ledger.read(KEY)
        assert current is not None
        assert (current.state, current.error) == ("failed", "OutOfMemoryError: 80 GB")
        assert current.log == str(tmp_path / "17_1_log.out")

    def test_in_a_queue_is_held_however_long_it_waits(self, ledger: Ledger, tmp_path: Path) -> None:
        ledger.write(replace(claim_by(ledger), state="queued", beat=0.0))
        assert claim_by(Ledger(tmp_path)).owner == ledger.owner

    def test_that_is_half_written_is_none(self, ledger: Ledger, tmp_path: Path) -> None:
        claim_by(ledger)
        ledger.path(KEY).write_text(ledger.path(KEY).read_text()[:40])
        other = Ledger(tmp_path)
        assert claim_by(other).owner == other.owner

    @pytest.mark.parametrize(
        "wrong",
        [
            {"beat": "now"},
            {"since": None},
            {"beat": float("nan")},
            {"pid": 1.5},
            {"state": "lost"},
            {"label": ["train"]},
            {"queue": "local:x", "state": "queued"},
            {"unknown": 1},
        ],
    )
    def test_of_wrong_types_is_set_aside_and_named(
        self, wrong: dict[str, object], ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = ledger.path(KEY)
        write_json(path, asdict(claim_by(ledger)) | wrong)
        assert ledger.read(KEY) is None
        assert f"{path} is no claim on a job" in caplog.text
        assert [file.suffix for file in tmp_path.rglob(f"{path.stem}.*")] == [".unreadable"]
        assert claim_by(Ledger(tmp_path)).owner != ledger.owner

    def test_of_another_says_since_when_and_how_to_take_it_over(self, ledger: Ledger) -> None:
        now = time.time()
        claim = replace(claim_by(ledger), host="elsewhere", pid=17, since=now - 7200, beat=now)
        assert re.fullmatch(
            rf"train full seed 0: waits for process 17 on elsewhere, which has it since 2\.0 h, last seen .* ago; .*"
            rf"remove {re.escape(str(ledger.path(KEY)))}",
            ledger.takeover(claim),
        )
        queued = replace(claim, state="queued", queue="slurm:17_0")
        assert "waits for the queue, as slurm:17_0, which has it since 2.0 h; to take" in ledger.takeover(queued)

    def test_of_a_clock_that_is_hours_ahead_is_stale(self, ledger: Ledger) -> None:
        claim = replace(claim_by(ledger), host="elsewhere")
        assert not claim.is_stale
        assert replace(claim, beat=time.time() + 7200).is_stale

    def test_that_was_to_be_queued_by_a_runner_that_is_gone_is_stale(self, ledger: Ledger) -> None:
        queued = replace(claim_by(ledger), state="queued")
        assert not queued.is_stale
        assert replace(queued, started=queued.started - 60).is_stale

    def test_leaves_nothing_when_it_is_released(self, ledger: Ledger) -> None:
        path = ledger.path(claim_by(ledger).key)
        path.with_name(f".{path.name}.17.part").write_text("{")  # of a killed process
        ledger.release(KEY)
        assert {file.name for file in ledger.folder.iterdir()} == {".lock"}

    def test_that_cannot_be_written_stops_nobody(self, tmp_path: Path) -> None:
        (tmp_path / "ledger").write_text("a file where a folder should be")
        ledger = Ledger(tmp_path)
        claim = claim_by(ledger)
        assert claim.owner == ledger.owner
        with ledger.working(claim) as progress:
            progress(1, 2)

    def test_tells_the_time_left_from_where_its_process_began(self, ledger: Ledger) -> None:
        claim = replace(claim_by(ledger), first=200, done=210, total=400, at_first=1000.0, at_last=1005.0)
        assert claim.seconds_left == pytest.approx(190 * 0.5)
        assert replace(claim, done=200).seconds_left is None

    def test_is_renewed_by_whoever_works(self, ledger: Ledger) -> None:
        claim = replace(claim_by(ledger), host="the runner's", beat=0.0)
        ledger.write(claim)
        with ledger.working(claim) as progress:
            progress(10, 400)
            deadline = time.monotonic() + 900
            while (current := ledger.read(KEY)) is None or current.pid != os.getpid() or current.host == claim.host:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert current.beat > 0


WORDS = ["name=ansc", "seeds=1", "arms=baseline,full", "sampling.count=4", "start.shipped=false"]


@pytest.fixture
def summary(tmp_path: Path) -> Outline:
    plan = make_plan(parse([*WORDS, f"outputs={tmp_path}"]))
    return outline(plan, *all_jobs(plan))


def task_of(summary: Outline, label: str) -> str:
    return next(key for key, task in summary.tasks.items() if task.label == label)


def mark_done(summary: Outline, label: str, outputs: Path) -> None:
    """Write the done.json of a finished training."""
    folder = outputs / summary.tasks[task_of(summary, label)].folder
    write_mark(folder / "done.json", {"signature": folder.name}, [])


class TestTheStatus:
    def state(self, summary: Outline, outputs: Path, arm: str) -> tuple[str, str]:
        cell = next(cell for cell in cells_of(summary, outputs) if cell.arm == arm)
        return cell.state, cell.detail

    def test_is_planned_before_anything_happens(self, summary: Outline, tmp_path: Path) -> None:
        cells = cells_of(summary, tmp_path)
        assert [(c.arm, c.seed, c.state, c.done) for c in cells] == [
            ("baseline", 0, "planned", 0),
            ("full", 0, "planned", 0),
        ]
        # start, training, clips, solution, scores; the first arm also has floor, ceiling and four shifts
        assert [c.total for c in cells] == [15, 5]

    def test_counts_what_is_done_by_its_files(self, summary: Outline, tmp_path: Path) -> None:
        mark_done(summary, "train start hires", tmp_path)
        mark_done(summary, "train full seed 0", tmp_path)
        assert [cell.done for cell in cells_of(summary, tmp_path)] == [1, 2]

    def test_does_not_take_a_training_of_another_signature_for_it(self, summary: Outline, tmp_path: Path) -> None:
        folder = tmp_path / summary.tasks[task_of(summary, "train start hires")].folder
        write_mark(folder.with_name("ffffffff") / "done.json", {"signature": "ffffffff"}, [])
        folder.with_name("ffffffff").rename(folder)
        assert cells_of(summary, tmp_path)[0].done == 0

    @pytest.mark.parametrize("text", ['{"clips"', "{}", "[]", "null", '{"clips": "all", "contract": 3}'])
    def test_takes_no_file_of_another_program_for_a_mark(self, summary: Outline, tmp_path: Path, text: str) -> None:
        for task in summary.tasks.values():
            folder = tmp_path / task.folder
            folder.mkdir(parents=True)
            (folder / ("scores.json" if task.kind == "score" else "done.json")).write_text(text)
        assert [cell.done for cell in cells_of(summary, tmp_path)] == [0, 0]

    def test_says_whose_turn_it_is_before_an_arms_own(self, summary: Outline, tmp_path: Path) -> None:
        key = task_of(summary, "train start hires")
        ledger = Ledger(tmp_path)
        ledger.write(replace(claim_by(ledger, key), label="train start hires", done=120, total=3000))
        assert self.state(summary, tmp_path, "full") == ("planned", "after train start hires: update 120 of 40000")

    def test_shows_progress_and_the_time_left_of_what_runs(self, summary: Outline, tmp_path: Path) -> None:
        ledger = Ledger(tmp_path)
        claim = claim_by(ledger, task_of(summary, "train full seed 0"))
        ledger.write(replace(claim, first=0, done=100, total=400, at_first=0.0, at_last=20.0))
        state, detail = self.state(summary, tmp_path, "full")
        assert (state, detail) == ("running", "train full seed 0: update 100 of 160, about 60 s left")

    def test_counts_the_clips_that_lie_there(self, summary: Outline, tmp_path: Path) -> None:
        key = task_of(summary, "sample full seed 0")
        folder = tmp_path / summary.tasks[key].folder
        (folder / "anchors").mkdir(parents=True)
        for name in ("0000.mkv", "0001.mkv", "anchors/0000.mkv"):
            (folder / name).touch()
        claim_by(Ledger(tmp_path), key)
        assert "2 of 4 clips" in self.state(summary, tmp_path, "full")[1]

    def test_shows_the_last_lines_of_what_failed(self, summary: Outline, tmp_path: Path) -> None:
        key, ledger = task_of(summary, "train full seed 0"), Ledger(tmp_path)
        claim = ledger.claim(key, "train full seed 0", tmp_path / "full.log")
        (tmp_path / "full.log").write_text("".join(f"line {n}\n\n" for n in range(2000)))
        ledger.fail(claim.key, "ValueError: the loss is not finite")
        cell = cells_of(summary, tmp_path)[1]
        assert (cell.state, cell.log[-1]) == ("failed", "line 1999")
        assert "the loss is not finite" in cell.detail

    def test_says_stale_when_the_process_is_gone(self, summary: Outline, tmp_path: Path) -> None:
        key, ledger = task_of(summary, "train full seed 0"), Ledger(tmp_path)
        ledger.write(replace(claim_by(ledger, key), pid=2**22 + 1))
        state, detail = self.state(summary, tmp_path, "full")
        assert state == "stale"
        assert "run the same command again to resume" in detail

    def test_finds_the_latest_call_by_the_name_alone(self, summary: Outline, tmp_path: Path) -> None:
        write_outline(summary, AblationOptions("ansc", outputs=tmp_path))
        assert read_outline("ansc", tmp_path) == summary
        assert read_outline("aghs", tmp_path) is None

    def test_keeps_the_words_that_make_the_same_plan(self, tmp_path: Path) -> None:
        options = parse([*WORDS, "vary_start=true", f"outputs={tmp_path}"])
        assert parse([*options.words(), f"outputs={tmp_path}"]) == options

    def test_takes_under_two_seconds_and_no_torch(self, summary: Outline, tmp_path: Path) -> None:
        write_outline(summary, AblationOptions("ansc", outputs=tmp_path))
        program = (
            "import sys; from experiments.engine.status import main; status = main(sys.argv[1:]); "
            "assert not {'torch', 'hydra', 'mlflow', 'pandas'} & set(sys.modules); sys.exit(status)"
        )
        words = ["name=ansc", f"outputs={tmp_path}"]
        process = subprocess.run(
            [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
        assert "ansc: 2 planned" in process.stdout
        seconds = []  # processor time: a machine that has other work is not slower by it
        for _ in range(2):
            before = os.times()
            subprocess.run([sys.executable, "-m", "pw", "status", *words], cwd=ROOT, capture_output=True, check=True)
            after = os.times()
            seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert min(seconds) < 2

    def test_wants_a_name_that_there_is(self) -> None:
        process = subprocess.run(
            [sys.executable, "-m", "pw", "status", "name=anscc"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (process.returncode, process.stdout) == (2, "")
        assert "did you mean ansc?" in process.stderr

    def test_is_not_that_of_a_folder_that_is_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["name=ansc", "outputs=/nope"]) == 2
        assert "outputs=/nope: there is no such folder" in capsys.readouterr().err


class TestAPool:
    def test_takes_what_is_free_and_waits_for_the_rest(self, summary: Outline, tmp_path: Path) -> None:
        """Another runner claims and finishes the start; this pool only waits for it."""
        plan = make_plan(parse([*WORDS, f"outputs={tmp_path}"]))
        start = next(job for job in all_jobs(plan)[0] if job.label == "train start hires")
        other = Ledger(tmp_path)
        claim_by(other, start.key)
        events: list[tuple[str, str, str]] = []
        pool = Pool(tmp_path, 1, lambda event, job, text: events.append((event, job.label, text)))
        claims = []

        def tick() -> None:
            claims.append(dict(pool.other_claims))
            if len(claims) == 2:
                mark_done(summary, "train start hires", tmp_path)
                other.release(start.key)

        pool.run([start], tick)
        assert [set(keys) for keys in claims[:2]] == [{start.key}, {start.key}]
        assert events == [("done", "train start hires", "by another runner")]
        assert json.loads((tmp_path / summary.tasks[start.key].folder / "done.json").read_text())
