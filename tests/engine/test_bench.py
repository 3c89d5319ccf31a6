"""`make bench what=train`: the compared loops do the same work, and the report names missed aims."""

from __future__ import annotations

import gc
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.speed.metric_speed import BenchRow
from benchmarks.speed.updates import TINY, bare_updates, time_reading, time_updates, write_latents
from experiments.engine import bench
from pw.io.arguments import parse
from pw.io.paths import ROOT
from pw.run.build import build
from pw.stages import import_stages
from pw.train.batches import batches
from pw.train.loop import train

UPDATES = 6
ONE_ROUND = parse(bench.TrainBenchOptions, ["repeats=1"])


class TestTheBareLoop:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "overrides",
        [(), ("objective=flow", "train.accumulate=2", "train.batch_size=2", "optimizer.clip=0.01")],
        ids=" ".join,
    )
    def test_ends_with_the_weights_of_a_training_to_the_bit(self, overrides: tuple[str, ...], tmp_path: Path) -> None:
        run = build([*TINY, f"train.updates={UPDATES}", *overrides])
        folder = train(run, tmp_path)
        stage = next(itertools.islice(bare_updates(run), UPDATES - 1, None))
        for name, net in (("online", stage.net), ("ema", stage.ema)):
            expected, bare = load_file(folder / f"{name}.safetensors"), net.state_dict()
            assert expected.keys() == bare.keys()
            assert not [key for key in bare if not torch.equal(expected[key], bare[key])]

    @pytest.mark.slow
    def test_takes_its_turn_after_every_ten_updates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The clock advances five minutes per reading; it is read at the end of each round."""
        clock = itertools.count(0, 300)
        monkeypatch.setattr("benchmarks.speed.updates.time.perf_counter", lambda: float(next(clock)))
        loop, bare = time_updates(1)
        assert len(loop) == len(bare) == 1
        assert bare == [30.0]


class TestTheLatents:
    def test_that_are_written_are_read_as_training_reads_them(self, tmp_path: Path) -> None:
        write_latents(tmp_path, build([*TINY, "data=none"]))
        run = build([*TINY, "data=latents", f"data.urls={tmp_path}"])
        epoch = list(itertools.islice(batches(run, 0), 8))
        latents = torch.cat([batch["clips"].latent for batch in epoch])
        assert len(latents.flatten(1).unique(dim=0)) == 64
        in_pixels = build(TINY).source.batch(0, 0, 1)
        stage = next(bare_updates(run))
        assert latents.shape[1:] == stage.codec.encode(in_pixels).shape[1:]

    @pytest.mark.slow
    def test_are_read_and_trained_on_in_turn(self) -> None:
        reading, training = time_reading(1)
        assert len(reading) == len(training) == 1
        assert min(*reading, *training) > 0


class TestTheCommandsOfTheRunsAlone:
    def test_are_those_that_a_dry_run_prints(self) -> None:
        output = (
            "ansc: a title\narm   seed 0\n"
            "  .venv/bin/python -m pw train stage=hires seed=0 outputs='a b'\n"
            "  .venv/bin/python -m pw sample stage=hires seed=0 outputs='a b'\n"
            "  pw sample seed=1\n"
            "  # score a b/videos/0123\n"
        )
        assert bench.sample_commands(output) == [
            ["-m", "pw", "sample", "stage=hires", "seed=0", "outputs=a b"],
            ["-m", "pw", "sample", "seed=1"],
        ]

    @pytest.mark.slow
    def test_are_all_samplings_of_the_plan_each_of_which_trains_first(self, tmp_path: Path) -> None:
        words = bench.ablation_words(parse(bench.TrainBenchOptions, ["arms=full", "seeds=2"]))
        output = bench.python("-m", "pw", "ablation", *words, f"outputs={tmp_path}", "dry_run=true")
        assert "3 trainings, 4 samplings" in output
        assert [command[2] for command in bench.sample_commands(output)] == ["sample"] * 4


class TestWhatIsReported:
    @pytest.mark.parametrize(("value", "word"), [(1.04, "met"), (1.06, "missed")])
    def test_says_whether_an_aim_is_met(
        self, value: float, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
    ) -> None:
        seconds = [value] * 3, [1.0] * 3
        monkeypatch.setattr("benchmarks.speed.updates.time_updates", lambda repeats: seconds)
        assert bench.main(["only=step", f"out={tmp_path / 'bench.json'}"]) == 0
        assert capsys.readouterr().out.count(word) == 1
        report = json.loads((tmp_path / "bench.json").read_text())
        row = report["measured"][-1]
        assert (row["value"], row["aim"], row["met"]) == (pytest.approx(value), 1.05, word == "met")
        assert {"git_commit", "code", "lock_hash", "device", "cores", "torch", "repeats"} <= report.keys()

    def test_a_ratio_is_the_median_of_the_rounds_ratios(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The machine is slow for both in the first round, and for one in the last."""
        rounds = [8.0, 2.0, 9.0], [4.0, 1.0, 1.0]
        monkeypatch.setattr("benchmarks.speed.updates.time_updates", lambda repeats: rounds)
        assert bench.bench_step(ONE_ROUND)[-1].value == 2.0
        monkeypatch.setattr("benchmarks.speed.updates.time_reading", lambda repeats: rounds[::-1])
        reading = bench.bench_latents(ONE_ROUND)[-1]
        assert (reading.value, reading.met) == (2.0, False)

    def test_a_process_that_fails_is_no_measurement(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.setattr(bench, "LISTING", ("-m", "pw", "ablation", "lists"))
        assert bench.main(["only=list"]) == 1
        assert "python -m pw ablation lists failed" in capsys.readouterr().err

    def test_import_of_the_method_is_of_all_its_modules(self) -> None:
        """Here without torch, whose import is measured separately."""
        modules = bench.python("-c", f"{bench.METHOD.replace(', torch', '')}; import sys; print(*sys.modules)").split()
        files = {path.stem for path in (ROOT / "pw" / "method").glob("*.py")} - {"__init__"}
        assert {f"pw.method.{name}" for name in files} <= set(modules)
        assert "torch" not in modules


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("repeat=3", "repeat=3: there is no option repeat; did you mean repeats? there are only, repeats, arms, "),
        ("only", "'only': write key=value"),
        ("only=steps", "only=steps: one of step, tracking, latents, ablation, start, list, method; did you mean step?"),
        ("repeats=0", "repeats=0: a whole number from 1"),
        ("updates=few", "updates=few: a whole number from 1"),
        ("arms=base", "arms=base: did you mean baseline?"),
        ("seeds=x", "seeds=x: expected a number of seeds"),
        ("out=tests", "tests: is a folder, expected a file"),
    ],
)
def test_a_wrong_call_is_told_what_would_do(word: str, message: str, capsys: Any) -> None:
    assert bench.main([word]) == 2
    assert message in capsys.readouterr().err


def test_garbage_is_collected_again_once_the_stages_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = []
    monkeypatch.setattr("pw.io.paths.importlib.import_module", lambda name: imports.append((name, gc.isenabled())))
    monkeypatch.delitem(sys.modules, "pw.stages.stage", raising=False)
    import_stages()
    assert imports == [("pw.stages.stage", False)]
    assert gc.isenabled()


class TestTheFirstReport:
    """The progress report (pw/parallel/launch.py) that `pw train` sends after an update."""

    def test_is_heard_of_a_process(self) -> None:
        seconds, cpu = bench.first_report("-c", "from pw.parallel import launch; launch.report(update=1, updates=1)")
        assert seconds > 0
        assert cpu > 0

    @pytest.mark.parametrize("end", ["print('no word')", "from pw.parallel import launch; launch.report(a=1); 1 / 0"])
    def test_is_missed_of_one_that_sends_none_or_fails(self, end: str) -> None:
        with pytest.raises(RuntimeError, match=r"no word|ZeroDivisionError"):
            bench.first_report("-c", end)


def test_an_aim_is_of_a_number() -> None:
    assert BenchRow("start", "", 11.9, "s", 12, "most").met
    assert not BenchRow("ablation", "", 1.9, "x", 2, "least").met
