"""benchmarks.speed.gpu_check and its risks, on a CPU for real and on a GPU without data: none ran on a GPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from gpu_without_data import Gpu, gpu_without_data

from benchmarks.speed import risks_of_memory, risks_of_numbers, risks_of_training
from benchmarks.speed.gpu_check import RISKS, GpuCheckOptions, _rows_of, check_gpu, in_process, main, measure
from benchmarks.speed.gpu_machine import Figure, Machine, Skipped
from pw.io.host import may_have_gpu
from pw.nn.networks import SLICE
from pw.run.build import build
from pw.run.compose import groups
from pw.train.loop import train

ROOT = Path(__file__).parents[3]
FAST = "copy_of_frames"


@pytest.fixture
def cpu(tmp_path: Path) -> Machine:
    return Machine("cpu", 60, tmp_path, tmp_path / "scratch")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with gpu_without_data(monkeypatch) as gpu_device:
        yield gpu_device


class TestTheCommand:
    @pytest.mark.skipif(may_have_gpu(), reason="there is a GPU")
    def test_says_at_once_that_there_is_no_gpu(self) -> None:
        code = "import sys; from pw.cli import main; main(['gpu-check']); sys.exit('torch' in sys.modules)"
        told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert told.returncode == 0
        assert "device=cuda: there is no GPU here" in told.stderr
        assert "device=cpu" in told.stderr

    @pytest.mark.parametrize(
        ("word", "answer"),
        [("only=decod", "did you mean decode?"), ("part=d", "one of a, b, c"), ("device=gpu", "one of cuda, cpu")],
    )
    def test_names_what_would_do(self, word: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([word]) == 2
        assert answer in capsys.readouterr().err

    def test_keeps_what_passed_and_says_why_it_skipped(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["device=cpu", f"only={FAST},decode_memory", f"out={tmp_path / 'check.json'}"]
        assert main(words) == 0
        content = json.loads((tmp_path / "check.json").read_text())
        rows = {row["name"]: row for row in content["risks"]}
        assert {name: row["status"] for name, row in rows.items()} == {FAST: "pass", "decode_memory": "skipped"}
        assert rows[FAST]["figures"]["seconds_of_a_4k_clip"] > 0
        assert "of a GPU" in rows["decode_memory"]["reason"]
        assert {"device", "torch", "code", "git_commit"} <= content.keys()
        assert main(words) == 0
        assert json.loads((tmp_path / "check.json").read_text())["risks"][1] == rows[FAST]
        assert "2 risks, 1 passed before" in capsys.readouterr().err

    def test_checks_again_after_a_change_of_code_or_torch(self, tmp_path: Path) -> None:
        about = {"device": "card", "torch": "2", "code": "abc"}
        out = tmp_path / "check.json"
        out.write_text(json.dumps({**about, "risks": [{"name": "decode", "status": "pass"}]}))
        assert _rows_of(out, about).keys() == {"decode"}
        assert _rows_of(out, {**about, "code": "abd"}) == {}
        assert _rows_of(out, {**about, "torch": "3"}) == {}
        out.write_text("{")
        assert _rows_of(out, about) == {}

    def test_leaves_what_it_has_no_time_for_to_the_next_call(self, tmp_path: Path) -> None:
        out = tmp_path / "check.json"
        options = GpuCheckOptions(device="cpu", minutes=1e-3, only=("decode", FAST), part=("a",), out=out)
        assert check_gpu(options) == 0
        for row in json.loads(out.read_text())["risks"]:
            assert row["status"] == "skipped"
            assert "call again" in row["reason"]


class TestAProcess:
    @pytest.mark.parametrize(
        ("function", "arguments", "reason"),
        [
            (os._exit, (3,), "its process ended by status 3"),
            (os.abort, (), "its process ended by SIGABRT"),
            (int, ("x",), "ValueError: invalid literal for int() with base 10: 'x'"),
        ],
    )
    def test_that_fails_ends_no_other(self, function: Any, arguments: tuple[Any, ...], reason: str) -> None:
        assert in_process(function, arguments, 100) == {"reason": reason}

    def test_that_hangs_is_ended_with_those_that_it_started(self, tmp_path: Path) -> None:
        command = f"echo $$ > {tmp_path / 'pid'}; exec sleep 1000"
        answer = in_process(subprocess.check_call, (["sh", "-c", command],), 10)
        assert answer == {"reason": "it took longer than 10 s"}
        pid = int((tmp_path / "pid").read_text())
        deadline = time.monotonic() + 10
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_figure_out_of_its_bounds_is_a_failure(cpu: Machine) -> None:
    figures = {"a": Figure(2, most=1), "b": Figure(2, 3, 1), "c": Figure(math.nan, most=1)}
    outcome = measure(lambda machine: figures, cpu)
    assert outcome["status"] == "fail"
    assert outcome["reason"] == "a=2, expected at most 1; c=nan, expected at most 1"
    assert outcome["figures"] == {"a": 2, "b": 2, "c": None}
    assert outcome["bounds"]["b"] == "at least 1, at most 3"


def test_every_pattern_of_sparse_attention_is_checked() -> None:
    names = {risk.name for risk in RISKS}
    assert len(names) == len(RISKS)
    assert {f"attention_{pattern}" for pattern in groups()["attention"] if pattern != "dense"} <= names


class TestNumbers:
    @pytest.mark.parametrize("word", ["sdpa", "flash", "window", "topk", "anchor"])
    def test_of_attention_that_is_there_are_right(self, word: str, cpu: Machine) -> None:
        choice = {"kernel": word} if word in ("sdpa", "flash") else {"pattern": word}
        figures = risks_of_numbers.attention(cpu, **choice)
        assert figures.keys() == {"result", "gradients"}
        assert all(0 < figure.value < 1e-5 and figure.is_met for figure in figures.values())  # fp32

    @pytest.mark.parametrize("risk", [risks_of_numbers.attention, risks_of_numbers.block])
    def test_of_a_kernel_that_is_not_there_are_skipped(self, risk: Any, cpu: Machine) -> None:
        with pytest.raises(Skipped, match=r"trainer\.attention=flash3: not available on this machine"):
            risk(cpu, "flash3")

    @pytest.mark.parametrize("kernel", ["sdpa", "flash"])
    def test_of_a_block_in_pieces_are_those_of_the_whole_block(self, kernel: str, cpu: Machine) -> None:
        figures = risks_of_numbers.block(cpu, kernel)
        assert figures["tokens"].value == 48
        assert 0 < figures["attention"].value < 1e-5
        assert figures["block"].value < 1e-5

    def test_of_a_kernel_that_is_wrong_at_this_length_alone_are_found(
        self, cpu: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def kernel(q: Any, k: Any, v: Any, **_: Any) -> Any:
            right = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
            return right if q.shape[1] == SLICE else right + 0.1 * q

        monkeypatch.setattr(attention_dispatch, "sageattn", kernel)  # as if it were installed
        monkeypatch.setattr(attention_dispatch, "_CAN_USE_SAGE_ATTN", True)
        risks_of_numbers.attention(cpu, "sage")
        outcome = measure(partial(risks_of_numbers.block, kernel="sage"), cpu)
        assert outcome["status"] == "fail"
        assert outcome["figures"]["attention"] > 0.1

    def test_of_decoding_in_bf16_are_near_those_in_fp32(self, cpu: Machine) -> None:
        assert 1e-3 < risks_of_numbers.decode(cpu)["error"].value < risks_of_numbers.MAX_DECODE

    def test_of_blocks_elsewhere_are_the_same_and_in_8_bits_near(self, cpu: Machine) -> None:
        assert risks_of_numbers.weights(cpu, "trainer.offload=group", 0.0)["difference"].value == 0
        difference = risks_of_numbers.weights(cpu, "trainer.storage=fp8", risks_of_numbers.MAX_FP8)["difference"]
        assert 1e-3 < difference.value < risks_of_numbers.MAX_FP8


class TestTheBench:
    def test_of_a_stage_gives_the_rates(self, cpu: Machine) -> None:
        figures = risks_of_memory.bench(cpu, "2k", 1, "true")
        assert {"seconds", "evaluations", "speed_up_on_stock", "linear_rate", "attention_rate"} <= figures.keys()
        assert (cpu.folder / "bench_2k.json").exists()

    def test_takes_the_steps_that_fit_by_the_plan(self, cpu: Machine) -> None:
        card = replace(cpu, device="cuda", seconds=480)
        steps = [risks_of_memory._steps(replace(card, seconds=s), "4k", 0) for s in (10_000, 480, 310)]
        assert steps == [4, 2, 1]
        with pytest.raises(Skipped, match="by the plan"):
            risks_of_memory._steps(replace(card, seconds=100), "4k", 0)


@pytest.mark.slow
def test_a_training_is_the_same_again_and_after_a_kill(cpu: Machine) -> None:
    cpu.scratch.mkdir()
    torch.set_num_threads(2)  # which the risk does not take over
    figures = risks_of_training.training(cpu, deterministic=True)
    assert 1e-5 < figures.pop("way").value < risks_of_training.MAX_WAY
    assert {name: figure.value for name, figure in figures.items()} == dict.fromkeys(figures, 0)
    [one] = (cpu.scratch / "one" / "train").iterdir()
    run = build([*_overrides(cpu), "seed=1"])
    other = train(run, cpu.scratch / "other")
    compared = risks_of_training._compared(run, one, other, "other", is_exact=False)
    assert not compared["other_apart"].is_met


def _overrides(machine: Machine) -> list[str]:
    words = (*risks_of_training.TRAINING, "data=latents", f"data.urls={machine.scratch / 'latents'}")
    return list(machine.run("proxy", *words).config.overrides)


class TestOnAGpuWithoutData:
    """Shapes, dtypes, devices and the bytes of tensors; there are no values."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "risk",
        [
            partial(risks_of_memory.denoise, scale="2k"),
            partial(risks_of_memory.denoise, scale="4k"),
            risks_of_memory.tile,
        ],
    )
    def test_memory_is_as_planned(self, risk: Any, gpu: Gpu, cpu: Machine) -> None:
        figures = risk(replace(cpu, device="cuda"))
        assert all(figure.is_met for figure in figures.values())
        assert figures["allocated_of_plan"].value == pytest.approx(1, abs=0.02)

    @pytest.mark.slow
    @pytest.mark.parametrize("word", ["trainer.offload=group", "trainer.storage=fp8"])
    def test_blocks_elsewhere_or_in_8_bits_need_what_is_planned(self, word: str, gpu: Gpu, cpu: Machine) -> None:
        figures = risks_of_numbers.weights(replace(cpu, device="cuda"), word, 0.1)
        assert figures["allocated_of_plan"].value == pytest.approx(1, abs=0.02)

    @pytest.mark.slow
    def test_a_block_and_a_tile_run(self, gpu: Gpu, cpu: Machine) -> None:
        machine = replace(cpu, device="cuda")
        assert risks_of_numbers.block(machine)["tokens"].value == 249_240
        run = machine.run("4k", "injector=none", "backbone.num_layers=1", "guidance=off")
        assert gpu.peak == pytest.approx(risks_of_numbers.planned_block(run).bytes, rel=0.03)
        gpu.reset_peak()
        assert risks_of_numbers.decode(machine).keys() == {"error"}
        assert risks_of_memory.copy(machine).keys() == {"seconds_of_a_4k_clip"}

    def test_what_does_not_fit_is_skipped(self, cpu: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        with gpu_without_data(monkeypatch, memory=16 * 10**9), pytest.raises(Skipped, match="by the plan it needs"):
            risks_of_memory.denoise(replace(cpu, device="cuda"), "4k")
