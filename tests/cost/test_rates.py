"""Rates of devices, and the tile that a plan chooses by memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pw.cost import rates
from pw.cost.counts import Flops
from pw.cost.generation_cost import decoding, last_stage, stages_of, with_tile
from pw.cost.planner import PlanOptions, make_plan
from pw.cost.planner import main as plan
from pw.cost.rates import parse_gpus, rates_of_gpus, record_rates, uniform_rates
from pw.io.arguments import ConfigError, parse
from pw.nn import options
from pw.run.build import build


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rates, "RATES", tmp_path / "rates.json")
    return tmp_path / "rates.json"


class TestRates:
    def test_divide_each_kind_of_work_by_its_own(self) -> None:
        flops = Flops(
            linear=1e12, self_attention=6e12, cross_attention=2e12, decode=3e12, encode=5e12, text_encoder=1e12
        )
        one = replace(uniform_rates(1.0), attention=2.0, decode=3.0, encode=5.0, text=0.5)
        assert one.seconds(flops) == 1 + 4 + 1 + 1 + 2
        assert uniform_rates(2.0).seconds(flops) == 9
        assert one.file_seconds(51e6) == 2

    def test_of_a_card_are_those_that_were_measured_on_it(self, file: Path) -> None:
        """By the names that CUDA gives them; what was not measured is assumed."""
        record_rates("NVIDIA H200", {"linear": 500.0, "attention": 600.0})
        record_rates("NVIDIA H200", {"attention": 610.0, "file": 100.0})
        record_rates("NVIDIA A100-SXM4-40GB", {"decode": 100.0})
        assert json.loads(file.read_text())["NVIDIA H200"] == {"linear": 500.0, "attention": 610.0, "file": 100.0}
        h200 = rates_of_gpus(parse_gpus("H200"))
        assert (h200.linear, h200.attention, h200.file, h200.text, h200.decode) == (500, 610, 100, 400, 364)
        assert h200.source(Flops(linear=1.0)) == "measured"
        assert h200.source(Flops(linear=1.0, decode=1.0)) == "measured, assumed"
        assert (
            str(h200) == "500 TFLOP/s (attention 610, VAE 364), measured on NVIDIA H200; text, decode, encode assumed"
        )
        assert rates_of_gpus(parse_gpus("A100-40")).decode == 100
        for other in ("A100", "H100", "80GB"):
            assert not rates_of_gpus(parse_gpus(other)).measured

    def test_of_a_plan_are_the_measured_ones_unless_it_is_given_one_for_all(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        record_rates("NVIDIA H200", {"linear": 500.0, "attention": 600.0})
        words = ["scale=4k", "gpus=1xH200", "for=generation", f"json={tmp_path / 'plan.json'}"]
        assert plan(words) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        # of stage I 5.1 of 35.9 TFLOP are attention, of stage II 22.9 of 25.1 PFLOP: 25.1 / (22.9 / 600 + 2.2 / 500)
        assert ["TFLOP/s", "400", "512", "590", "364", "measured;", "text,", "decode", "assumed"] in rows
        content = json.loads((tmp_path / "plan.json").read_text())
        phase = content["generation"]["phases"][2]
        kinds = phase["flops"]
        attention = kinds["self_attention"] + kinds["cross_attention"]
        linear = kinds["linear"] + kinds["embeddings"] + kinds["injector"]
        assert phase["seconds"] == pytest.approx(attention / 600e12 + linear / 500e12)
        assert content["rates"]["measured"] == ["attention", "linear"]
        assert plan([*words, "tflops=100"]) == 0
        assert json.loads((tmp_path / "plan.json").read_text())["generation"]["phases"][2]["seconds"] == pytest.approx(
            (attention + linear) / 100e12
        )

    @pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', '{"a": {"linear": 0}}', '{"a": {"speed": 3}}'])
    def test_in_a_damaged_file_are_refused_by_name(self, file: Path, content: str) -> None:
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"rates\.json: is not what .* remove it, and measure again"):
            make_plan(parse(PlanOptions, ["scale=4k", "gpus=1xH200"]))


class TestTheTile:
    @pytest.mark.parametrize("scale", ["2k", "4k"])
    @pytest.mark.parametrize("card", ["12GB", "24GB", "80GB", "H200"])
    def test_of_auto_fits_and_takes_no_longer_than_768(self, scale: str, card: str) -> None:
        memory, stages = parse_gpus(card).memory, stages_of(build([f"scale={scale}"]))
        chosen, standard = last_stage(with_tile(stages, memory)), last_stage(stages)
        assert isinstance(chosen.codec, options.WanVAE)
        assert decoding(chosen).fits(memory)
        chosen.codec.check_decode(121, *chosen.scale.size)
        if decoding(standard).fits(memory):
            assert decoding(chosen).flops.total <= 1.05 * decoding(standard).flops.total
        if card == "H200":  # 4 x 3 tiles of 768 become 1 x 2; 6 x 4 become 2 x 3
            assert [len(spans) for spans in chosen.codec.tiles(*chosen.scale.size)] == {"2k": [1, 2], "4k": [2, 3]}[
                scale
            ]

    def test_that_is_given_stays_and_of_too_little_memory_is_the_smallest(self) -> None:
        given = stages_of(build(["scale=4k", "codec.tile=512"]))
        assert with_tile(given, 80e9) is given
        smallest = last_stage(with_tile(stages_of(build(["scale=4k"])), 1e9)).codec
        assert isinstance(smallest, options.WanVAE)
        assert smallest.tile == 256

    def test_is_for_several_devices_one_that_they_share_equally(self) -> None:
        words = ["scale=4k", "trainer=fsdp", "trainer.devices=8", "trainer.context=8"]
        together = last_stage(with_tile(stages_of(build(words)), 80e9))
        assert decoding(together).devices == pytest.approx(8, rel=0.1)

    def test_of_one_piece_is_refused_where_its_tensors_are_too_large(self) -> None:
        with pytest.raises(
            ConfigError, match=r"codec\.tile=0: decoding 2144 x 3840 px .* set codec\.tile=auto, or 768"
        ):
            build(["scale=4k", "codec.tile=0"])
        build(["scale=4k", "codec.tile=0", "scale.frames=1", "scale.width=2560"])
