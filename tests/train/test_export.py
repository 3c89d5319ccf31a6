"""pw.train.export: stock diffusers opens an export, and `pw.nn.convert` restores the network from it."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file

from pw.generate.stage_runs import stage_source
from pw.io.arguments import ConfigError
from pw.nn.backbone import Backbone
from pw.nn.convert import layout, place, read, to_pw
from pw.run.build import Run, build, make
from pw.sample.evaluate import load_stage
from pw.stages import stage_module
from pw.train.export import FinishedTraining, export, find_training, main
from pw.train.loop import train
from pw.train.record import training_folder, write_config

BRIEF = ("stage=hires", "start=none", "train.updates=2", "injector=gated_channelwise", "objective=shortcut")


@pytest.fixture(scope="module")
def run() -> Run:
    return build([*BRIEF, "turns=alternate", "step_sampler=aligned", "weighting=uniform", "target=two_steps"])


@pytest.fixture(scope="module")
def outputs(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    train(run, outputs)
    return outputs


@pytest.fixture(scope="module")
def exported(run: Run, outputs: Path) -> Path:
    return export(find_training(run.training_signature, outputs), outputs / "fp32", "fp32")


def ema_weights(run: Run, outputs: Path) -> dict[str, torch.Tensor]:
    return load_file(training_folder(run, outputs) / "ema.safetensors")


def open_stock(folder: Path, **options: Any) -> WanTransformer3DModel:
    """The transformer from stock `from_pretrained`, after a check of its keys; a Wan transformer needs accelerate."""
    pytest.importorskip("accelerate")
    stock, info = WanTransformer3DModel.from_pretrained(
        folder, subfolder="transformer", output_loading_info=True, **options
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return stock


class TestAnExport:
    def test_opens_in_stock_diffusers_with_every_key_in_its_place(
        self, run: Run, outputs: Path, exported: Path
    ) -> None:
        weights, stock = ema_weights(run, outputs), open_stock(exported).state_dict()
        assert all(torch.equal(value, weights[f"dit.{key}"]) for key, value in stock.items())

    def test_holds_what_a_stock_transformer_of_its_config_takes(self, exported: Path) -> None:
        stock = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(exported / "transformer"))
        stock.load_state_dict(read(exported / "transformer"), strict=True)

    def test_restores_our_network_bit_for_bit(self, run: Run, outputs: Path, exported: Path) -> None:
        config = json.loads((exported / "pixelwizard" / "config.json").read_text())
        net = Backbone(make("backbone", config["backbone"]), make("injector", config["injector"]))
        state = read(exported)
        assert layout(state) == "pw"
        assert place(net, to_pw(state)) == []
        weights = ema_weights(run, outputs)
        assert net.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())

    def test_says_what_it_is_and_where_it_comes_from(self, run: Run, exported: Path) -> None:
        config = json.loads((exported / "pixelwizard" / "config.json").read_text())
        assert config["signature"] == run.training_signature
        assert config["injector"]["gate"] == "channelwise"
        assert config["schedule"]["shift"] == run.schedule.shift
        assert config["scale"]["name"] == "tiny"
        assert (config["weights"], config["dtype"]) == ("ema", "fp32")
        assert config["trained_by"]["torch"] == torch.__version__

    def test_in_bf16_keeps_in_fp32_what_diffusers_does(self, run: Run, outputs: Path) -> None:
        out = export(find_training(run.training_signature, outputs), outputs / "bf16", "bf16", "online")
        state = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in state.values()} == {torch.bfloat16, torch.float32}
        assert state["condition_embedder.time_embedder.linear_1.weight"].dtype == torch.float32
        adapters = load_file(out / "pixelwizard" / "adapters.safetensors")
        assert {value.dtype for value in adapters.values()} == {torch.float32}
        stock = open_stock(out, torch_dtype=torch.bfloat16)
        assert {key: value.dtype for key, value in state.items()} == {k: v.dtype for k, v in stock.state_dict().items()}

    def test_is_sharded_when_large(self, run: Run, outputs: Path, exported: Path) -> None:
        out = export(find_training(run.training_signature, outputs), outputs / "shards", "fp32", shard_bytes=300_000)
        files = sorted((out / "transformer").glob("*.safetensors"))
        assert len(files) > 2
        assert max(path.stat().st_size for path in files) < 310_000
        whole = read(exported / "transformer")
        assert all(torch.equal(value, whole[key]) for key, value in read(out / "transformer").items())
        assert all(torch.equal(value, whole[key]) for key, value in open_stock(out).state_dict().items())

    def test_leaves_nothing_half_written(self, run: Run, outputs: Path, exported: Path) -> None:
        training = find_training(run.training_signature, outputs)
        with pytest.raises(ConfigError, match=r"fp32: exists; choose another"):
            export(training, exported)
        (outputs / "file").touch()
        with pytest.raises(ConfigError, match="nothing was written there"):
            export(training, outputs / "file" / "below")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # a disk that fills up
        try:
            with pytest.raises(ConfigError, match=r"out=.*full: .*File too large.*nothing was written there"):
                export(training, outputs / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not (outputs / "full").exists()
        assert not [path for path in outputs.iterdir() if path.name.startswith(".")]

    def test_can_be_read_by_whom_other_files_can(self, exported: Path) -> None:
        modes = {path.stat().st_mode for path in exported.rglob("*") if path.is_file()}
        assert len(modes) == 1


class TestAnExportOfLowRankAdapters:
    @pytest.fixture(scope="class")
    def training(self, run: Run, outputs: Path) -> FinishedTraining:
        words = (
            "train.trainable=lora",
            "train.lora.alpha=6",
            "train.lora.rank=4",
            "optimizer.lr=0.1",
            "train.updates=4",
        )
        adapted = build([*run.config.overrides, *words])
        train(adapted, outputs)
        return find_training(adapted.training_signature, outputs)

    @pytest.fixture(scope="class")
    def whole(self, training: FinishedTraining, outputs: Path) -> Path:
        return export(training, outputs / "merged", "fp32", merge=True)

    @staticmethod
    def ask(transformer: WanTransformer3DModel) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        config = transformer.config
        state = torch.randn(1, config["in_channels"], 2, 4, 4, generator=generator)
        text = torch.randn(1, 4, config["text_dim"], generator=generator)
        with torch.no_grad():
            return transformer(state, torch.tensor([500.0]), text, return_dict=False)[0]

    def test_is_read_by_the_stock_pipeline_which_then_computes_the_merged_transformer(
        self, run: Run, training: FinishedTraining, outputs: Path, whole: Path
    ) -> None:
        adapters = export(training, outputs / "adapters", "fp32")
        assert {path.name for path in adapters.iterdir()} == {"pytorch_lora_weights.safetensors", "pixelwizard"}
        base = open_stock(export(find_training(run.training_signature, outputs), outputs / "base", "fp32"))
        fresh = stage_module(build([*run.config.overrides, "train.updates=4"]))
        fresh.configure_model()  # what the adapters were trained beside
        fresh.net.release()
        base.load_state_dict(fresh.net.dit.state_dict())
        before, expected = self.ask(base), self.ask(open_stock(whole))
        parts = dict.fromkeys(("tokenizer", "text_encoder", "vae", "scheduler"))
        stock = WanPipeline(transformer=base, **parts)
        stock.load_lora_weights(adapters)
        assert torch.allclose(self.ask(stock.transformer), expected, atol=1e-5)
        assert not torch.allclose(before, expected, atol=1e-3)

    def test_has_injector_and_stride_embedding_where_others_have_them(
        self, training: FinishedTraining, outputs: Path, whole: Path
    ) -> None:
        adapters = export(training, outputs / "in_bf16")
        parts = [load_file(folder / "pixelwizard" / "adapters.safetensors") for folder in (adapters, whole)]
        assert parts[0].keys() == parts[1].keys()
        assert all(key.startswith(("injector.", "stride_embedding.")) for key in parts[0])
        assert {value.dtype for value in load_file(adapters / "pytorch_lora_weights.safetensors").values()} == {
            torch.bfloat16
        }
        assert json.loads((adapters / "pixelwizard" / "config.json").read_text())["lora"]["rank"] == 4

    def test_merged_restores_the_network_that_is_sampled(
        self, training: FinishedTraining, outputs: Path, whole: Path
    ) -> None:
        config = json.loads((whole / "pixelwizard" / "config.json").read_text())
        net = Backbone(make("backbone", config["backbone"]), make("injector", config["injector"]))
        assert place(net, to_pw(read(whole))) == []
        sampled = load_stage(build(config["overrides"]), outputs).ema.state_dict()
        assert all(torch.equal(value, sampled[key]) for key, value in net.state_dict().items())

    def test_is_no_checkpoint_for_generation_unless_it_is_merged(
        self, training: FinishedTraining, outputs: Path, whole: Path
    ) -> None:
        adapters = export(training, outputs / "alone")
        with pytest.raises(ConfigError, match=r"hires=.*alone: an export of adapters alone; .*merge=true"):
            stage_source("hires", str(adapters), None, None)
        assert stage_source("hires", str(whole), None, None) == str(whole)

    def test_has_nothing_to_merge_where_none_were_trained(self, run: Run, outputs: Path) -> None:
        with pytest.raises(ConfigError, match=r"merge=true: .* trained no low-rank adapters; leave it out"):
            export(find_training(run.training_signature, outputs), outputs / "none", merge=True)


class TestTheCommand:
    def test_exports_to_a_folder_named_after_the_training(
        self, run: Run, outputs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([f"run={run.training_signature}", f"outputs={outputs}"]) == 0
        out = outputs / "export" / run.training_signature
        assert capsys.readouterr().out.strip() == str(out)
        assert (out / "transformer" / "config.json").exists()

    def test_says_in_one_line_what_is_wrong(self, run: Run, outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        unfinished = build([*run.config.overrides, "seed=7"])
        write_config(unfinished, training_folder(unfinished, outputs))
        signature = unfinished.training_signature
        finished = ", ".join(sorted(path.parent.name for path in outputs.glob("train/*/done.json")))
        assert run.training_signature in finished
        for arguments, message in {
            "run=nonesuch": f"no such training in {outputs / 'train'}; finished are: {finished}",
            "run=": "run=: is empty",
            f"run=../train/{run.training_signature}": "no such training",
            "dtype=bf16": "run=: no such training",
            f"run={signature}": f'run={signature}: has not finished; `make train args="stage=hires start=none',
            f"run={run.training_signature} dtype=fp8": "dtype=fp8: one of bf16, fp32",
            "colour=red": "colour=red: there is no option colour; there are run, out",
        }.items():
            assert main([*arguments.split(), f"outputs={outputs}"]) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ")
            assert message in error
            assert error.count("\n") == 1
