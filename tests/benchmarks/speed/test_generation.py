"""benchmarks.speed.generation: it measures on whatever machine there is, and says what it measured."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from diffusers import WanTransformer3DModel
from diffusers.models import attention_dispatch
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.speed.generation import Variant, choose_variant, fastest, main
from pw.run.build import build

SMALL = (
    *("scales=proxy", "trainer=cpu", "scale.frames=5", "scale.height=64", "scale.width=64"),
    *("scale.anchor_height=32", "scale.anchor_width=32", "scale.norm_groups=4", "backbone.num_layers=2"),
    *("backbone.num_attention_heads=2", "backbone.attention_head_dim=16", "backbone.ffn_dim=32", "backbone.text_dim=8"),
)
STEPS = ("stock_steps=2", "stock_of=7", "codec=false")


def test_stage_two_is_timed_beside_stock_steps_of_the_same_transformer(tmp_path: Path, capsys) -> None:
    assert main([*SMALL, "kernels=sdpa,flash,sage", *STEPS, "compile=false", f"out={tmp_path / 'bench.json'}"]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["kernels"].keys() == {"sdpa", "flash"}
    assert min(report["kernels"].values()) > 0
    assert 0 < report["kernel_errors"]["sdpa"] < 1e-5  # of fp32
    assert "not available on this machine" in report["kernel_errors"]["sage"]
    [row] = report["measured"]
    assert len(row["evaluation_seconds"]) == 8
    assert 0 < sum(row["evaluation_seconds"]) <= row["seconds"] + 1e-3  # all but what comes after the last
    assert (row["scale"], row["steps"], row["evaluations"]) == ("proxy", 4, 8)
    assert row["attention"] == min(report["kernels"], key=report["kernels"].__getitem__)
    assert len(row["stock"]["step_seconds"]) == 2
    assert row["stock"]["seconds"] == pytest.approx(7 * row["stock"]["step_seconds"][1], rel=0.02)
    assert row["stock"]["steps"] == 7
    assert row["speed_up"] == pytest.approx(row["stock"]["seconds"] / row["seconds"], rel=0.02)
    assert {"git_commit", "device", "torch"} <= report.keys()
    assert report["rates"].keys() == {"linear", "attention"}


def test_compiled_blocks_are_taken_where_they_are_faster_and_refused_with_a_reason() -> None:
    slow, fast, none = Variant("sdpa"), Variant("sdpa", compiled=True), Variant("flash3")
    assert fastest({slow: 2.0, fast: 1.0, none: "not available on this machine"}) == fast
    assert fastest({slow: 1.0, fast: "not available on this machine (no compiler)"}) == slow
    assert fastest({none: "not available on this machine"}) is None
    assert build(["scale=2k", *fast.overrides]).trainer.compile
    assert not build(["scale=2k", "trainer.compile=true", *slow.overrides]).trainer.compile


def test_kernels_of_which_none_is_there_are_an_error_before_anything_is_measured(tmp_path: Path, capsys) -> None:
    out = tmp_path / "bench.json"
    assert main([*SMALL, "kernels=sage", f"out={out}"]) == 2
    assert "kernels=sage: none is available on this machine" in capsys.readouterr().err
    assert not out.exists()


def test_a_kernel_whose_result_is_wrong_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention_dispatch, "sageattn", lambda q, k, v, **_: v + q)  # as if it were installed
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_SAGE_ATTN", True)
    out = tmp_path / "bench.json"
    assert main([*SMALL, "kernels=sdpa,sage", "stock_steps=0", "compile=false", f"out={out}"]) == 0
    report = json.loads(out.read_text())
    assert report["kernels"].keys() == {"sdpa"}
    assert "trainer.attention=sage: wrong on this machine" in report["kernel_errors"]["sage"]
    assert "wrong on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(("forwards", "ours", "stock"), [(3, 2, None), (1 + 8 + 3, 8, 1)])
def test_what_was_measured_before_a_kill_is_in_the_file(
    tmp_path: Path, forwards: int, ours: int, stock: int | None, capsys
) -> None:
    """One forward warms up, eight are ours; a step of stock is two."""
    count = 0

    def stop(module: Any, args: Any) -> None:
        nonlocal count
        if isinstance(module, WanTransformer3DModel):
            if count == forwards:
                raise KeyboardInterrupt
            count += 1

    hook = register_module_forward_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            main([*SMALL, "kernels=sdpa", *STEPS, "compile=false", f"out={tmp_path / 'bench.json'}"])
    finally:
        hook.remove()
    report = json.loads((tmp_path / "bench.json").read_text())
    [row] = report["measured"]
    assert len(row["evaluation_seconds"]) == ours
    assert ("seconds" in row) == (stock is not None)
    assert len(row.get("stock", {}).get("step_seconds", [])) == (stock or 0)
    assert "speed_up" not in row
    assert f"proxy: evaluation {ours} of 8" in capsys.readouterr().err


def test_where_there_is_one_way_none_is_timed() -> None:
    run = build(["scale=proxy", "stage=hires", *SMALL[1:]])
    for compiles, variant in (("false", Variant("sdpa")), ("always", Variant("sdpa", compiled=True))):
        count = 0

        def count_forward(module: Any, args: Any) -> None:
            nonlocal count
            count += 1

        hook = register_module_forward_pre_hook(count_forward)
        try:
            best, outcomes = choose_variant(run, ["sdpa"], compiles)
        finally:
            hook.remove()
        assert best == variant
        assert outcomes == {str(best): "not timed, it is the only one"}
        assert count == 0


def test_one_network_is_alive_at_a_time_or_its_peak_would_be_anothers(tmp_path: Path) -> None:
    """The kernels', a scale's and the next scale's: seen at every forward, with nothing collected by chance."""
    alive: WeakSet[Any] = WeakSet()
    max_alive = 0

    def note_network(module: Any, args: Any) -> None:
        nonlocal max_alive
        if isinstance(module, WanTransformer3DModel):
            alive.add(module)
            max_alive = max(max_alive, len(alive))

    hook = register_module_forward_pre_hook(note_network)
    gc.disable()
    try:
        words = [
            *SMALL,
            "kernels=sdpa",
            "compile=false",
            "stock_steps=1",
            "stock_of=2",
            "codec=false",
            f"out={tmp_path / 'bench.json'}",
        ]
        assert main(["scales=proxy,proxy", *words[1:]]) == 0
    finally:
        gc.enable()
        hook.remove()
    assert max_alive == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["what=nothing"], "what=nothing: one of generate, metrics, train"),
        (["scales="], "scales=: no scale given"),
        (["compile=maybe"], "compile=maybe: one of true, false, always"),
        (["stock_of=0"], "stock_of=0: a whole number from 1"),
        (["stock_steps=-1"], "stock_steps=-1: a whole number from 0"),
        (["scales=tiny"], "scale=tiny: use a scale with text"),
        (["scales=8k"], "scale=8k: scale is one of"),
        ([*SMALL, "kernels=fast"], "kernels=fast: fast is not one of sdpa, cudnn, flash, flash3, flash4, sage"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_call_is_told_what_would_do(words: list[str], message: str, capsys) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
