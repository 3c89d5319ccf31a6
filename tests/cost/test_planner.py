"""The plan: what fits, what is refused and what would fit instead; it answers before torch is imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pw.cost import planner
from pw.cost.counts import Moment, Part
from pw.cost.generation_cost import generation_cost, stages_of, with_tile
from pw.cost.planner import PlanOptions, make_plan
from pw.cost.rates import parse_gpus, uniform_rates
from pw.cost.training_cost import training_cost
from pw.cost.verdicts import Verdict, check_generation, replace_overrides
from pw.io.arguments import ConfigError, parse
from pw.io.paths import ROOT
from pw.run.build import Run, build


@cache
def run(*overrides: str) -> Run:
    return build(list(overrides))


def verdicts(*arguments: str) -> dict[str, Verdict]:
    options = parse(PlanOptions, arguments)
    return {verdict.what: verdict for verdict in planner.verdicts(make_plan(options))}


RATES = uniform_rates(400)
OFFLOADED_ADAPTERS = ("trainer.offload_activations=true", "train.trainable=adapters")


class TestGpus:
    @pytest.mark.parametrize(
        ("text", "count", "gigabytes"),
        [
            ("1x80GB", 1, 80),
            ("8x141gb", 8, 141),
            ("80GB", 1, 80),
            ("2x39.5GB", 2, 39.5),
            ("H200", 1, 150.0),  # 139.7 GiB
            ("1xH100", 1, 84.93),  # 79.1 GiB
            ("4xa100-40", 4, 42.305),
            ("A100-80GB", 1, 84.93),
        ],
    )
    def test_are_read_as_they_are_written(self, text: str, count: int, gigabytes: float) -> None:
        gpus = parse_gpus(text)
        assert (gpus.count, gpus.memory) == (count, pytest.approx(gigabytes * 1e9, rel=1e-4))
        assert gpus.tflops > 0

    def test_in_gib_are_more_than_in_gb(self) -> None:
        assert parse_gpus("1x80GiB").memory == 80 * 2**30

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0x80GB", "gpus=0x80GB: needs at least one GPU and at most 100,000, e.g. gpus=1x80GB"),
            ("100001x80GB", "at most 100,000"),
            (f"{10**25}x80GB", "at most 100,000"),
            ("9" * 5000 + "x80GB", "at most 100,000"),
            ("1x0GB", "more than 0 and at most 10,000 GB"),
            (f"1x{10**200}GB", "more than 0 and at most 10,000 GB"),
            ("1x" + "9" * 5000 + "GiB", "at most 10,000 GB"),
            ("1xH300", "gpus=1xH300: did you mean H200? known are A100-40"),
            ("", "memory as in gpus=1x80GB"),
            ("-1x80GB", "gpus=-1x80GB"),
        ],
    )
    def test_that_are_none_are_refused_with_what_would_do(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError) as error:
            parse_gpus(text)
        assert message in str(error.value)


class TestTheCommandLine:
    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("tflops=-1", "tflops=-1: expected a positive number up to 100,000, e.g. tflops=400"),
            ("tflops=1e200", "up to 100,000"),
            ("tflops=１", "tflops=１"),
            ("gpus=1x1e9GB", "gpus=1x1e9GB"),
            ("json=/nowhere/plan.json", "json=/nowhere/plan.json: /nowhere is no folder; make it first"),
            ("tflops=nan", "tflops=nan"),
            ("tflops=fast", "tflops=fast"),
            ("for=fun", "for=fun: one of generation, training, both"),
            ("dtype=fp8", "dtype=fp8: one of bf16, fp32"),
            ("scale=8k", "scale is one of 2k, 4k, proxy, small, tiny"),
            ("scale.frames=122", "use 121 or 125"),
        ],
    )
    def test_refuses_what_it_cannot_plan_with_status_2(
        self, argument: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert planner.main([*(["scale=2k"] if "scale=" not in argument else []), argument]) == 2
        output = capsys.readouterr()
        assert message in output.err
        assert not output.out

    @pytest.mark.parametrize(("what", "fits"), [("both", False), ("training", False), ("generation", True)])
    def test_answers_in_words_and_fails_only_where_that_is_asked_for(
        self, what: str, fits: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["scale=4k", "gpus=1x80GB", f"for={what}", f"json={tmp_path / 'plan.json'}"]
        assert planner.main(words) == 0
        assert f"fits: {'yes' if fits else 'no'}. " in capsys.readouterr().out
        assert json.loads((tmp_path / "plan.json").read_text())["fits"] is fits
        assert planner.main([*words, "strict=true"]) == (not fits)

    def test_without_gpus_judges_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert planner.main([]) == 0
        output = capsys.readouterr().out
        assert "so no verdict" in output
        assert "fits" not in output

    def test_says_what_clips_take_as_they_are_sampled_where_they_are_large(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        planner.main(["scale=2k", "sampling.count=100"])
        # 121 x 1440 x 2560 px, three channels: a batch in 4 bytes and a clip twice in one; 24 bytes of 2^25 px
        assert "1 at once, its clips take 8.8 GB of CPU memory" in capsys.readouterr().out
        planner.main([])
        assert "Sampled to be scored" not in capsys.readouterr().out

    @pytest.mark.parametrize("columns", [80, 120])
    def test_prints_tables_that_fit_the_screen(
        self, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        planner.main(["scale=4k", "gpus=1x80GB"])
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        rows = [line.split() for line in lines]
        for row in (["tokens", "3,472", "249,240"], ["parameters", "5,010,017,472", "5,083,999,681"]):
            assert row in rows
        # whole numbers in whole cells: nothing is cut or wrapped
        peak = next(row for row in rows if row[:1] == ["peak"])
        assert peak == ["peak", "11.7", "GB", "10.4", "GB", "36.4", "GB", "35.5", "GB"]

    def test_writes_the_same_as_json(self, tmp_path: Path) -> None:
        path = tmp_path / "plan.json"
        assert planner.main(["scale=2k", "gpus=2xH200", "tflops=450", f"json={path}"]) == 0
        content = json.loads(path.read_text())
        generation = generation_cost(*with_tile(stages_of(run("scale=2k")), parse_gpus("H200").memory))
        assert [phase["name"] for phase in content["generation"]["phases"]] == ["text", "stage I", "stage II", "decode"]
        assert content["generation"]["phases"][2]["bytes"] == generation.phases[2].bytes
        assert content["generation"]["seconds"] == pytest.approx(generation.flops / 450e12)
        assert content["generation"]["file_seconds"] == pytest.approx(121 * 1440 * 2560 / 25.5e6)
        assert content["training"]["flops"] == training_cost(run("scale=2k"), 2).flops.total
        assert [verdict["fits"] for verdict in content["verdicts"]] == [True, True]

    def test_answers_without_importing_torch(self) -> None:
        code = (
            "import sys; from pw.cost.planner import main\n"
            "main(['scale=4k', 'gpus=1x80GB'])\n"
            "heavy = {'torch', 'diffusers', 'lightning', 'transformers'} & set(sys.modules)\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


class TestAVerdict:
    def test_of_generation_at_2k_and_4k_is_that_it_fits_80_gb(self) -> None:
        for scale in ("2k", "4k"):
            assert verdicts(f"scale={scale}", "gpus=1x80GB", "for=generation")["generation"].fits

    def test_of_training_everything_at_4k_is_that_it_does_not_fit(self) -> None:
        verdict = verdicts("scale=4k", "gpus=1x141GB", "for=training")["training"]
        assert not verdict.fits
        assert "backward needs 256.6 GB, most of it working set" in verdict.line
        assert "train.trainable=adapters" in verdict.line

    def test_of_a_training_on_several_gpus_says_how_it_is_split(self) -> None:
        verdict = verdicts("scale=2k", "gpus=16x80GB", "for=training")["training"]
        assert verdict.fits
        # its updates have 8 clips, which 16 cannot share
        assert "trainer=fsdp trainer.devices=8 trainer.nodes=2 train.accumulate=16" in verdict.line
        eight = verdicts("scale=2k", "gpus=8x141GB", "for=training")["training"].line
        assert eight.endswith("trainer=fsdp trainer.devices=8")

    @pytest.mark.parametrize(
        ("overrides", "card", "offer"),
        [
            (("scale=2k",), "1x80GB", "gpus=4x80GB, sharded (trainer=fsdp trainer.devices=4 trainer.context=2)"),
            (("scale=4k",), "1xH200", "gpus=2xH200, sharded (trainer=fsdp trainer.devices=2 trainer.context=2)"),
            (("scale=proxy",), "8x24GB", "trainer.devices=8 trainer.nodes=2 train.accumulate=16, which makes"),
            (("scale=4k",), "1x16GB", "gpus=2xH200, sharded"),  # not on any number of such small ones
            (("scale=2k",), "1x16GB", "gpus=1xB200"),
        ],
    )
    def test_of_a_training_offers_devices_that_do_in_words_that_are_taken(
        self, overrides: tuple[str, ...], card: str, offer: str
    ) -> None:
        """As few as do, of those that are asked about: also where each clip has to be shared."""
        line = verdicts(*overrides, f"gpus={card}", "for=training")["training"].line
        assert offer in line
        offers = re.findall(r"(?:gpus=(\w+)|shared by \d+)(?:,? (?:sharded )?\((trainer=[^,)]*))?", line)
        assert offers
        for gpus, words in offers:
            assert verdicts(*overrides, *words.split(), f"gpus={gpus or card}", "for=training")["training"].fits

    def test_on_several_gpus_offers_to_split_the_networks_before_it_changes_the_video(self) -> None:
        verdict = verdicts("scale=4k", "gpus=8x24GB", "for=generation")["generation"]
        assert verdict.remedy == ("trainer=fsdp", "trainer.devices=8", "trainer.context=2")
        assert verdict.line.endswith(
            "trainer=fsdp trainer.devices=8 trainer.context=2; or trainer.offload=group scale.frames=93"
        )
        assert verdicts("scale=4k", *verdict.remedy, "gpus=8x24GB", "for=generation")["generation"].fits
        tile = verdicts("scale=2k", "codec.tile=1536", "gpus=8x40GB", "for=generation")["generation"]
        assert tile.remedy == ("codec.tile=1408",)  # before the networks are split

    @pytest.mark.parametrize(
        ("what", "overrides", "card", "remedy"),
        [
            ("generation", ("scale=2k", "codec.tile=1536"), "1x24GB", None),
            ("generation", ("scale=2k", "codec.tile=1536"), "1x40GB", ("codec.tile=1408",)),
            ("generation", ("scale=2k",), "1x24GB", ("trainer.offload=group",)),
            ("generation", ("scale=2k", "trainer.storage=fp8"), "1x16GB", ("trainer.offload=group",)),
            ("generation", ("scale=4k",), "1x32GB", ("trainer.offload=group",)),
            ("generation", ("scale=4k",), "1xRTX4090", ("trainer.offload=group", "scale.frames=97")),
            ("generation", ("scale=4k", "trainer.guidance_batch=true"), "1x48GB", ("trainer.guidance_batch=false",)),
            ("generation", ("scale=4k",), "1x16GB", None),
            ("training", ("scale=2k",), "1x141GB", ("train.trainable=adapters",)),
            ("training", ("scale=2k",), "1x80GB", None),
            ("training", ("scale=4k",), "1x80GB", (*OFFLOADED_ADAPTERS, "scale.frames=81")),
            ("training", ("scale=4k",), "1x141GB", OFFLOADED_ADAPTERS),
            ("training", ("scale=2k", "train.trainable=adapters"), "1x80GB", ("trainer.offload_activations=true",)),
            ("training", ("scale=proxy", "train.checkpoint_activations=false"), "1x141GB", None),
            ("training", ("scale=proxy", "train.batch_size=128"), "1x141GB", None),
        ],
    )
    def test_offers_a_setting_that_really_fits(
        self, what: str, overrides: tuple[str, ...], card: str, remedy: tuple[str, ...] | None
    ) -> None:
        verdict = verdicts(*overrides, f"gpus={card}", f"for={what}")[what]
        assert not verdict.fits
        assert verdict.remedy
        assert " ".join(verdict.remedy) in verdict.line
        assert verdicts(*replace_overrides(overrides, verdict.remedy), f"gpus={card}", f"for={what}")[what].fits
        assert remedy is None or verdict.remedy == remedy

    def test_offers_weights_in_8_bits_after_what_does_not_round_them(self) -> None:
        verdict = verdicts("scale=2k", "gpus=1x24GB", "for=generation")["generation"]
        assert verdict.line.endswith("setting that does: trainer.offload=group; or trainer.storage=fp8")
        assert verdicts("scale=2k", "trainer.storage=fp8", "gpus=1x24GB", "for=generation")["generation"].fits

    @pytest.mark.parametrize("what", ["training", "both"])
    @pytest.mark.parametrize("word", ["trainer.offload=group", "trainer.storage=fp8"])
    def test_of_a_training_is_not_asked_for_with_what_it_cannot_have(self, what: str, word: str) -> None:
        with pytest.raises(ConfigError, match=rf"^{word}: is for generation and sampling; set for=generation$"):
            verdicts("scale=2k", word, f"for={what}")

    def test_in_fp32_offers_bf16(self) -> None:
        verdict = verdicts("scale=4k", "dtype=fp32", "gpus=1x48GB", "for=generation")["generation"]
        assert verdict.remedy == ("dtype=bf16",)
        assert verdicts("scale=4k", "dtype=bf16", "gpus=1x48GB", "for=generation")["generation"].fits

    def test_on_a_card_too_small_for_any_setting_names_one_that_is_not(self) -> None:
        verdict = verdicts("scale=4k", "gpus=1x8GB", "for=generation")["generation"]
        assert not verdict.remedy
        offer = verdict.line.rpartition(" ")[2]
        assert verdicts("scale=4k", offer, "for=generation")["generation"].fits

    @settings(max_examples=20)
    @given(st.sampled_from(["2k", "4k", "proxy"]), st.floats(1, 400), st.floats(1, 400))
    def test_never_worsens_with_more_memory(self, scale: str, a: float, b: float) -> None:
        planned = generation_cost(*stages_of(run(f"scale={scale}"))).worst
        low, high = sorted((a, b))
        assert planned.fits(high * 1e9) or not planned.fits(low * 1e9)

    def test_leaves_a_margin_for_the_allocator(self) -> None:
        moment = Moment("x", (Part("weights", 100e9, "counted"),))
        assert moment.needs == pytest.approx(106e9 + 2**30)
        assert moment.fits(moment.needs)
        assert not moment.fits(moment.needs - 1)


class TestCheckGeneration:
    def test_lets_pass_what_fits(self) -> None:
        check_generation(run("scale=4k"), run("scale=4k", "stage=anchor"), 80e9)
        check_generation(None, run("scale=4k", "stage=anchor"), 16e9)

    def test_says_what_takes_too_much_and_what_would_do(self) -> None:
        with pytest.raises(ValueError, match="does not fit") as error:
            check_generation(run("scale=4k"), run("scale=4k", "stage=anchor"), 32e9)
        message = str(error.value)
        assert "generation does not fit 32.0 GB: stage II needs 39.6 GB, most of it working set" in message
        assert message.endswith("the nearest setting that does: trainer.offload=group")
        assert "\n" not in message


class TestSeveralGpus:
    def test_share_an_updates_micro_batches(self) -> None:
        one, eight, many = (training_cost(run("scale=2k"), n) for n in (1, 8, 64))
        assert eight.seconds(eight.flops, RATES) == one.seconds(one.flops, RATES) / 8
        # 8 clips an update: the rest would idle
        assert many.seconds(many.flops, RATES) == eight.seconds(eight.flops, RATES)
        # 4 clips in one micro-batch are cut into parts; 3 devices cannot share them equally
        times = [training_cost(run("scale=proxy"), n).share for n in (1, 2, 4, 3)]
        assert times == [1, 1 / 2, 1 / 4, 1]

    def test_share_a_clips_tokens_where_it_is_too_large_for_one(self) -> None:
        line = verdicts("scale=4k", "gpus=8x80GB", "for=training")["training"].line
        assert "tokens shared by 4 (trainer=fsdp trainer.devices=8 trainer.context=4)" in line
        shared = ("scale=4k", "trainer=fsdp", "trainer.devices=8", "trainer.context=4")
        assert verdicts(*shared, "gpus=8x80GB", "for=training")["training"].fits
        assert not verdicts(*shared[:-1], "trainer.context=2", "gpus=8x80GB", "for=training")["training"].fits
        seconds = [cost.seconds(cost.flops, RATES) for cost in (training_cost(run("scale=4k"), 8, n) for n in (1, 8))]
        assert seconds[1] == pytest.approx(seconds[0])

    def test_make_one_video_together_in_an_eighth_of_the_time_but_for_text(self) -> None:
        alone, context_parallel = (
            make_plan(parse(PlanOptions, ["scale=4k", "trainer=fsdp", f"trainer.context={n}", "tflops=400"]))
            for n in (1, 8)
        )
        for one, eight in zip(alone.generation.phases, context_parallel.generation.phases, strict=True):
            share = 1 if one.name == "text" else 8  # the decode has 24 tiles
            assert one.seconds(RATES) == pytest.approx(share * eight.seconds(RATES))
            assert eight.bytes <= one.bytes

    def test_that_are_no_multiple_of_those_that_share_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"trainer\.context=4: gpus=6x80GB"):
            verdicts("scale=4k", "trainer=fsdp", "trainer.context=4", "gpus=6x80GB")

    def test_that_are_fewer_than_the_processes_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"trainer\.devices=8 .*gpus=4x80GB are fewer; set trainer\.devices=4"):
            verdicts("scale=4k", "trainer=fsdp", "gpus=4x80GB")

    def test_without_a_split_hold_all_weights_each(self) -> None:
        """fp32 weights, gradients, moments and EMA: 20 bytes of each of 5.08e9, or an eighth of it."""
        ddp, fsdp = (
            training_cost(run("scale=2k", f"trainer={name}", "trainer.devices=8"), 8) for name in ("ddp", "fsdp")
        )
        for cost, share in ((ddp, 1), (fsdp, 8)):
            assert sum(p.bytes for p in cost.moments[-1].parts[:4]) == pytest.approx(20 * 5.084e9 / share, rel=1e-3)
        line = verdicts("scale=2k", "trainer=ddp", "gpus=8xH200", "for=training")["training"].line
        assert "the nearest setting that does: sharded (trainer=fsdp trainer.devices=8)" in line

    def test_are_offered_fewer_frames_of_thousands_without_trying_each(self) -> None:
        """Of 4001 frames the most that fit; four more do not."""
        words = ("scale=proxy", "scale.frames=4001", "backbone.rope_max_seq_len=2048")
        gpus = ("gpus=1x24GB", "for=generation")
        remedy = verdicts(*words, *gpus)["generation"].remedy
        frames = int(remedy[-1].removeprefix("scale.frames="))
        for count, fits in ((frames, True), (frames + 4, False)):
            changed = replace_overrides(words, [*remedy[:-1], f"scale.frames={count}"])
            assert verdicts(*changed, *gpus)["generation"].fits is fits
