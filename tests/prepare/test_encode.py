"""pw.prepare.encode: latents equal those of a direct encoding, and a stopped call encodes no clip twice."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load, load_file
from small_proxy import FRAMES, HEIGHT, SMALL, WIDTH, picture, write_videos

from experiments.engine.plan import make_plan
from experiments.engine.plan import parse as parse_ablation
from pw.cost.generation_cost import sampling_memory
from pw.data import LatentBatch
from pw.data.latents import LatentClips, fit
from pw.data.shards import seeded_rng
from pw.io import arguments
from pw.io.arguments import ConfigError
from pw.io.video import read_video
from pw.nn.codec import WanCodec
from pw.nn.text import TextEncoder
from pw.prepare.encode import EncodingReport, encode, main
from pw.prepare.encoding import Encoding, LatentsOptions, bf16_bytes, estimate, find_weights, plan_encoding, sizes
from pw.run.build import Run, build
from pw.sample.clip_folders import reference_folder
from pw.sample.evaluate import check_sampling, evaluation_anchors, evaluation_texts, load_stage, sample, synthesise
from pw.stages import stage_module
from pw.stages.stage import SeededDraws
from pw.train.loop import train
from pw.train.record import is_trained, training_folder

TRAINING = (
    *("data=latents", "train.batch_size=2", "train.precision=fp32", "train.updates=4"),
    *("train.checkpoint_every=2", "train.checkpoint_activations=false", "optimizer.warmup=0", "optimizer.lr=1e-3"),
    *("train.condition_dropout=0.5", "sampling.count=1"),
)
ANCHORS = 2


class Stopped(Exception):
    """Ends a call early."""


def plan(words: list[str]) -> Encoding:
    """The checked plan of a command."""
    return plan_encoding(arguments.parse(LatentsOptions, words))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five train clips in three shards, two val clips in one."""
    clips = {"train": [picture(n) for n in range(5)], "val": [picture(n) for n in (10, 11)]}
    return write_videos(tmp_path_factory.mktemp("latents") / "shards", clips)


@pytest.fixture(scope="module")
def call(pipeline: tuple[Path, Any], videos: Path) -> Callable[..., Encoding]:
    """`call(out, "rank=1")` is the plan of a call, with weights."""

    def plan_call(out: Path, *words: str) -> Encoding:
        weights = f"trainer.weights={pipeline[0]}"
        encoding = plan([f"urls={videos}", f"out={out}", f"anchors={ANCHORS}", *SMALL, weights, *words])
        find_weights(encoding)
        return encoding

    return plan_call


@pytest.fixture(scope="module")
def encoded(call: Callable[..., Encoding], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a call that ran to its end."""
    encoding = call(tmp_path_factory.mktemp("encoded"))
    report = encode(encoding)
    assert (report.encoded, report.existing, report.unreadable) == (7, 0, 0)
    return encoding.folder


def training(encoded: Path, pipeline: tuple[Path, Any], *words: str) -> Run:
    return build([*SMALL, *TRAINING, f"data.urls={encoded}", f"trainer.weights={pipeline[0]}", *words])


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def contents(folder: Path) -> dict[str, bytes]:
    """File name -> content."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


class TestWhatIsEncoded:
    def test_equals_encoding_directly(self, encoded: Path, pipeline: tuple[Path, Any], call: Any) -> None:
        run = call(encoded.parent).run
        shard_members = members(encoded / "train-000000.tar")
        assert list(shard_members) == [f"train-clip-{n}.{end}" for n in (0, 1) for end in ("json", "safetensors")]
        codec = WanCodec.load(run.codec, pipeline[0], "cpu")
        for number in (0, 1):
            key = f"train-clip-{number}"
            tensors = load(shard_members[f"{key}.safetensors"])
            assert {name: (list(t.shape), t.dtype) for name, t in tensors.items() if name != "text"} == {
                "latent": ([4, 2, 4, 6], torch.bfloat16),
                "anchors": ([ANCHORS, 4, 2, 2, 4], torch.bfloat16),
            }
            video = fit(picture(number), (FRAMES, HEIGHT, WIDTH))[None]
            assert torch.equal(tensors["latent"], codec.encode(video)[0].bfloat16())
            for j in range(ANCHORS):
                small = run.degradation.anchor(video, run.scale.anchor_size, seeded_rng(run.seed, key, j))
                assert torch.equal(tensors["anchors"][j], codec.encode(small)[0].bfloat16())
            assert not torch.equal(tensors["anchors"][0], tensors["anchors"][1])

    def test_has_the_captions_embedding_at_its_true_length(
        self, encoded: Path, pipeline: tuple[Path, Any], tmp_path: Path
    ) -> None:
        shard_members = members(encoded / "val-000000.tar")
        encoder = TextEncoder(pipeline[0], 512, tmp_path, "", "cpu", torch.float32)
        text = load(shard_members["val-clip-1.safetensors"])["text"]
        assert torch.equal(text, encoder.unpadded("a val clip, 1").bfloat16())
        assert len(text) == len("a val clip, 1") + 1
        empty = load_file(encoded / "empty.safetensors")["text"]
        assert torch.equal(empty, encoder.unpadded("").bfloat16())
        content = json.loads(shard_members["val-clip-1.json"])
        assert content == {"caption": "a val clip, 1", "split": "val", "shard": "val-000000.tar", "key": "val-clip-1"}

    def test_has_the_embeddings_of_all_captions_of_a_clip(
        self, pipeline: tuple[Path, Any], call: Callable[..., Encoding], tmp_path: Path
    ) -> None:
        captions = [["a heron"], ["a lake", "a misty lake", "a lake at dawn"]]
        clips = {"train": [picture(n) for n in range(2)], "val": [picture(9)]}
        encoding = call(tmp_path, f"urls={write_videos(tmp_path / 'v', clips, captions=captions)}")
        encode(encoding)
        encoder = TextEncoder(pipeline[0], 512, tmp_path / "text", "", "cpu", torch.float32)
        shard_members = members(encoding.folder / "train-000000.tar")
        for number, texts in enumerate(captions):
            tensors = load(shard_members[f"train-clip-{number}.safetensors"])
            names = ["text", "text_1", "text_2"][: len(texts)]
            assert sorted(tensors) == sorted(["latent", "anchors", *names])
            for name, text in zip(names, texts, strict=True):
                assert torch.equal(tensors[name], encoder.unpadded(text).bfloat16())
        content = json.loads(shard_members["train-clip-1.json"])
        assert (content["caption"], content["captions"]) == ("a lake", captions[1])
        clips = LatentClips(str(encoding.folder), 512)
        drawn = {tuple(text.flatten().tolist()) for text in clips.batch(0, 0, 40).text}
        assert drawn == {
            tuple(encoder.encode(t).bfloat16().float().flatten().tolist()) for texts in captions for t in texts
        }

    def test_is_said_in_words(self, encoded: Path, videos: Path, pipeline: tuple[Path, Any]) -> None:
        content = json.loads((encoded / "latents.json").read_text())
        assert encoded.name == f"proxy-{content['digest'][:8]}"
        assert content["urls"] == str(videos)
        assert content["encoded"]["scale"]["height"] == HEIGHT
        assert content["encoded"]["degradation"] == {
            "kind": "BlurAndNoise",
            "downscale": [2.6, 5.2],
            "blur": [1.07, 1.54],
            "taps": [3],
        }
        assert content["weights"].keys() == {"vae", "text_encoder", "tokenizer"}
        assert [shard["split"] for shard in content["shards"]] == ["train", "train", "train", "val"]

    def test_of_a_caption_beyond_the_encoders_tokens_is_its_beginning(self, pipeline: Any, tmp_path: Path) -> None:
        encoder = TextEncoder(pipeline[0], 16, tmp_path, "", "cpu", torch.float32)
        text = encoder.unpadded("a heron over the misty lake")
        assert len(text) == 16
        assert torch.equal(text, encoder.unpadded("a heron over th"))  # 15 letters and the end

    def test_is_named_by_all_that_decides_it(self, encoded: Path, call: Any, pipeline: Any, tmp_path: Path) -> None:
        out = encoded.parent
        assert call(out).folder == encoded
        for same in (
            "rank=0 world=2",
            "degradation.noise=[0,0.3]",
            "degradation.noise_probability=1",
            "train.updates=1",
        ):
            assert call(out, *same.split()).folder == encoded, same
        others = ("seed=1", "anchors=3", "degradation.blur=[1,1]", "degradation=none", "codec.tile=0", "splits=train")
        assert len({call(out, other).folder for other in others} | {encoded}) == len(others) + 1
        shutil.copytree(pipeline[0], tmp_path / "weights")
        path = tmp_path / "weights" / "vae" / "diffusion_pytorch_model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(
            content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
        )
        assert call(out, f"trainer.weights={tmp_path / 'weights'}").folder != encoded


class TestACallThatIsStopped:
    @pytest.mark.parametrize("after", [1, 3, 4, 9])
    def test_goes_on_and_encodes_nothing_twice(self, encoded: Path, call: Any, tmp_path: Path, after: int) -> None:
        """Within the first shard, after it, within the second, and within the last."""
        steps: list[str] = []

        def stop(shard: str, done: int, clips: int) -> None:
            steps.append(shard)
            if len(steps) == after:
                raise Stopped

        with pytest.raises(Stopped):
            encode(call(tmp_path), stop)
        encoding = call(tmp_path)
        times = {path: path.stat().st_mtime_ns for path in encoding.folder.rglob("*.safetensors")}
        unfinished = len([path for path in times if path.parent.parent.name == ".unfinished"])
        done = sum(json.loads(path.read_text())["clips"] for path in encoding.folder.glob("*-*.json"))
        report = encode(encoding)
        assert report.existing == unfinished + done
        assert report.encoded == 7 - report.existing > 0
        assert contents(encoding.folder) == contents(encoded)
        assert not list(encoding.folder.rglob(".unfinished/*/*"))

    def test_was_whole_once_it_is_called_again_in_vain(self, encoded: Path, call: Any) -> None:
        times = {path: path.stat().st_mtime_ns for path in encoded.glob("*.tar")}
        report = encode(call(encoded.parent))
        assert (report.encoded, report.existing) == (0, 7)
        assert times == {path: path.stat().st_mtime_ns for path in encoded.glob("*.tar")}


class TestSeveralCalls:
    def test_make_what_one_makes(self, encoded: Path, call: Any, tmp_path: Path) -> None:
        reports = [encode(call(tmp_path, f"rank={rank}", "world=2")) for rank in (1, 0)]
        assert [report.encoded for report in reports] == [4, 3]
        assert contents(call(tmp_path).folder) == contents(encoded)

    def test_are_told_apart_as_torchrun_does(self, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        words = [f"urls={videos}", *SMALL]
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "4")
        encoding = plan(words)
        assert [shard.path.name for shard in encoding.rank_shards] == ["val-000000.tar"]
        assert plan([*words, "rank=1", "world=2"]).rank == 1

    def test_of_the_same_rank_leave_a_shard_to_the_first(self, encoded: Path, call: Any, tmp_path: Path) -> None:
        second: list[EncodingReport] = []

        def meanwhile(shard: str, done: int, clips: int) -> None:
            if not second:
                second.append(EncodingReport(0))  # once
                other = call(tmp_path)
                other.shards = other.shards[1:]
                second[0] = encode(other)

        first = encode(call(tmp_path), meanwhile)
        assert (second[0].encoded, first.encoded, first.existing) == (5, 2, 5)
        assert {p.name: p.read_bytes() for p in encoded.glob("*.tar")} == {
            p.name: p.read_bytes() for p in call(tmp_path).folder.glob("*.tar")
        }


class TestTheEstimate:
    @pytest.mark.parametrize(("scale", "latent", "tokens"), [("2k", 42.9e6, 111_600), ("4k", 95.7e6, 249_240)])
    def test_of_a_clip_is_what_the_notes_say(self, scale: str, latent: float, tokens: int) -> None:
        size = sizes(build([f"scale={scale}"]), 8)
        assert bf16_bytes(size.latent) == pytest.approx(latent, abs=5e4)  # 48 channels in float32
        assert bf16_bytes(size.anchor) == pytest.approx(1.33e6, abs=5e3)
        assert size.tokens(size.latent) == tokens  # the table of scales in docs/method.md
        assert size.tokens(size.anchor) == 3472
        assert size.clip_bytes == bf16_bytes(size.latent) + 8 * bf16_bytes(size.anchor) + 2 * 512 * 4096

    def test_of_all_is_no_less_than_what_is_written(self, encoded: Path, call: Any) -> None:
        encoding = call(encoded.parent)
        clips = sum(len(shard.ids) for shard in encoding.shards)
        tensors = sum(len(v) for tar in encoded.glob("*.tar") for k, v in members(tar).items() if "safetensors" in k)
        assert clips == 7
        assert tensors <= clips * (encoding.sizes.clip_bytes + 400)  # of header
        assert "7 clips in 4 shards" in estimate(encoding)

    def test_is_all_that_a_dry_run_prints_and_needs_no_weights(self, videos: Path, tmp_path: Path, capsys: Any) -> None:
        words = [f"urls={videos}", f"out={tmp_path / 'out'}", *SMALL, "trainer.weights=/not/there", "dry_run=true"]
        assert main(words) == 0
        output = capsys.readouterr().out
        assert "latent   4 x 2 x 4 x 6, 12 tokens, 0.000384 MB" in output
        assert not (tmp_path / "out").exists()


WRONG = [
    ("scale=tiny", ["scale=tiny", "scale=proxy, 2k or 4k"]),
    ("scale=3k", ["scale=3k", "one of 2k, 4k"]),
    ("urls=/not/there", ["urls=/not/there", "pw data path=DIR frames=5 short_side=64 fps=24"]),
    ("splits=test", ["splits=test", "train, val"]),
    ("anchors=0", ["anchors=0", "from 1 to 1000"]),
    ("anchors=1000000000", ["from 1 to 1000"]),
    ("world=100000000000000000000", ["world=", "from 1 to 10000"]),
    ("rank=2 world=2", ["rank=2", "0 to 1"]),
    ("dry_run=maybe", ["dry_run=maybe", "true or false"]),
    ("scale.frames=9", ["needs clips of 9 frames, 64 x 96 px", "5 frames of 64 x 96", "frames=9 short_side=64"]),
    ("scale.height=128", ["needs clips of 5 frames, 128 x 96", "none is enlarged", "short_side=96"]),
    ("trainer.weights=/not/there", ["weights=/not/there", "no such folder", "make weights"]),
    ("codec.channels=8 backbone.in_channels=8", ["codec.channels=8", "have 4"]),
    ("out=", ["out=: is empty; give it a value"]),
    ("data=procedural", ["data=procedural: clips are read from urls=DIR"]),
    ("data.bucket_weights=[3,1]", ["data.bucket_weights=[3,1]", "encoded once", "pw train data=latents"]),
    ("out=/proc/latents", ["out=/proc/latents", "cannot be written"]),
    ("backbone.text_tokens=1000000000", ["backbone.text_tokens=1000000000", "from 1 to 65536"]),
]


class TestAWrongCall:
    @pytest.mark.parametrize(("line", "message_parts"), WRONG, ids=[line for line, _ in WRONG])
    def test_is_told_the_key_and_what_would_do(
        self, line: str, message_parts: list[str], videos: Path, pipeline: Any, tmp_path: Path, capsys: Any
    ) -> None:
        words = [f"urls={videos}", f"out={tmp_path}", *SMALL, f"trainer.weights={pipeline[0]}", *line.split()]
        words = list({word.partition("=")[0]: word for word in words}.values())  # the line's instead of these
        if line in ("scale=tiny", "scale=3k"):
            words = [f"urls={videos}", line]
        assert main(words) == 2
        message = capsys.readouterr().err
        assert not [part for part in message_parts if part not in message], message
        assert not list(tmp_path.iterdir())

    def test_finds_weights_that_are_not_whole(self, videos: Path, pipeline: Any, tmp_path: Path, capsys: Any) -> None:
        shutil.copytree(pipeline[0], tmp_path / "weights")
        (tmp_path / "weights" / "vae" / "config.json").unlink()
        words = [f"urls={videos}", f"out={tmp_path / 'out'}", *SMALL, f"trainer.weights={tmp_path / 'weights'}"]
        assert main(words) == 2
        assert "vae/config.json: missing" in capsys.readouterr().err

    def test_leaves_out_clips_that_are_too_small_and_says_how_many(self, tmp_path: Path) -> None:
        clips = [picture(0), picture(1, height=48), picture(2, frames=3), picture(3, height=128, width=192)]
        encoding = plan([f"urls={write_videos(tmp_path, {'train': clips})}", *SMALL])
        assert [shard.ids for shard in encoding.shards if shard.ids] == [(0,), (1,)] or encoding.skipped_small == 2
        assert "2 clips in" in estimate(encoding)
        assert "(2 more are too small)" in estimate(encoding)


class TestADamagedShard:
    @pytest.fixture
    def damaged(self, videos: Path, tmp_path: Path) -> Path:
        folder = shutil.copytree(videos, tmp_path / "shards")
        (folder / "train-000001.tar").write_bytes((folder / "train-000001.tar").read_bytes()[:-2000])
        return folder

    def test_is_skipped_by_name_and_counted_and_too_many_are_a_failure(
        self, damaged: Path, pipeline: Any, tmp_path: Path, capsys: Any
    ) -> None:
        words = [f"urls={damaged}", f"out={tmp_path / 'out'}", "anchors=1", *SMALL, f"trainer.weights={pipeline[0]}"]
        assert main(words) == 1
        output = capsys.readouterr().out
        assert "5 clips encoded, 0 existed, 2 skipped" in output
        assert "train-000001.tar" in output
        assert "more than 5%" in output
        [folder] = (tmp_path / "out").iterdir()
        assert len(LatentClips(str(folder), 512).batch(0, 0, 3)) == 3

    def test_that_is_mended_is_encoded_by_the_same_call(
        self, damaged: Path, videos: Path, call: Any, encoded: Path, tmp_path: Path
    ) -> None:
        words = (f"urls={damaged}",)
        assert encode(call(tmp_path, *words)).unreadable == 2
        shutil.copy(videos / "train-000001.tar", damaged)
        report = encode(call(tmp_path, *words))
        assert (report.encoded, report.existing, report.unreadable) == (2, 5, 0)
        assert call(tmp_path, *words).folder.name == encoded.name

    def test_with_one_bad_clip_gives_the_others(self, videos: Path, call: Any, tmp_path: Path) -> None:
        folder = shutil.copytree(videos, tmp_path / "shards")
        shard = folder / "train-000000.tar"
        with tarfile.open(shard) as tar:
            place = tar.getmember("train-clip-1.npy").offset_data
        with shard.open("r+b") as file:
            file.seek(place)
            file.write(b"damaged!")
        report = encode(call(tmp_path, f"urls={folder}"))
        assert (report.encoded, report.unreadable) == (6, 1)
        assert "train-clip-1" in report.skipped[0]
        assert report.is_bad  # 1 of 7


class TestBuckets:
    def test_have_clips_and_anchors_of_their_size_which_training_mixes(
        self, pipeline: tuple[Path, Any], call: Callable[..., Encoding], tmp_path: Path
    ) -> None:
        wide, tall = [picture(n) for n in range(4)], [picture(n, height=96, width=64) for n in range(2)]
        videos = write_videos(tmp_path / "v", {"train": [*wide, *tall], "val": [picture(9)]})
        encoding = call(tmp_path / "l", f"urls={videos}", "data.buckets=[[5,64,96],[5,96,64]]")
        assert encoding.folder != call(tmp_path / "l", f"urls={videos}").folder
        encode(encoding)
        run = training(encoding.folder, pipeline, "train.updates=8")
        assert run.mix is not None
        assert (run.mix.buckets, run.mix.shares) == (((5, 64, 96), (5, 96, 64)), (2 / 3, 1 / 3))
        seen = {}
        for index in range(8):
            batch = run.source.batch(0, index, 2)
            assert isinstance(batch, LatentBatch)
            parts = [run.source.batch(0, index, 1, part, 2) for part in (0, 1)]  # type: ignore[call-arg]
            assert torch.equal(torch.cat([part.latent for part in parts]), batch.latent)  # type: ignore[union-attr]
            seen[run.mix.turn(0, index)[0]] = batch.latent.shape[2:], batch.anchor.shape[2:]
        # a latent position is 16 x 16 px; the anchor's 32 x 64 px of 64 x 96 px are a third, so 0.577 of a side, in
        # multiples of 32: 96 x 64 px have 64 x 32
        assert seen == {0: ((2, 4, 6), (2, 2, 4)), 1: ((2, 6, 4), (2, 4, 2))}
        expected = WanCodec.load(run.codec, pipeline[0], "cpu").encode(fit(tall[0], (5, 96, 64))[None])[0].bfloat16()
        assert torch.equal(
            load(members(encoding.folder / "train-000002.tar")["train-clip-4.safetensors"])["latent"], expected
        )
        assert is_trained(run, train(run, tmp_path).parents[1])

    def test_without_clips_are_refused(self, call: Callable[..., Encoding], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"data\.buckets: no train clip .* in \[5, 96, 64\]; .*5 of 5x64x96"):
            call(tmp_path, "data.buckets=[[5,64,96],[5,96,64]]")


class TestATraining:
    @pytest.mark.parametrize("stage", ["stage=hires", "stage=anchor"])
    def test_on_latents_departs_from_wans_weights(
        self, encoded: Path, pipeline: Any, tmp_path: Path, stage: str
    ) -> None:
        run = training(encoded, pipeline, stage)
        weights = load_file(train(run, tmp_path) / "online.safetensors")
        stock = pipeline[1].transformer.state_dict()
        distances = {k: float((weights[f"dit.{k}"] - v).abs().max()) for k, v in stock.items()}
        assert 0 < max(distances.values()) < 0.02  # four updates of 1e-3
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        assert run.config.choices["objective"] == ("shortcut" if stage == "stage=hires" else "flow")

    def test_that_is_interrupted_is_continued_to_the_same_bits(
        self, encoded: Path, pipeline: Any, tmp_path: Path
    ) -> None:
        def stop(update: int, updates: int) -> None:  # at update 10
            raise Stopped

        run = training(encoded, pipeline, "train.updates=12", "train.checkpoint_every=4")
        with pytest.raises(Stopped):
            train(run, tmp_path, stop)
        assert not is_trained(run, tmp_path)
        assert list((training_folder(run, tmp_path) / "checkpoints").iterdir())
        resumed, whole = (load_file(train(run, tmp_path / sub) / "ema.safetensors") for sub in ("", "whole"))
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)

    def test_drops_the_text_to_the_empty_prompts_and_the_anchor_to_zeros(self, encoded: Path, pipeline: Any) -> None:
        quiet = ("degradation.noise=[0,0]", "injector=add")  # a fresh injector would be silent
        run = training(encoded, pipeline, "train.condition_dropout=0.999999", *quiet)
        batch = run.source.batch(0, 0, 4)
        assert isinstance(batch, LatentBatch)
        assert batch.text.ne(batch.null_text).flatten(1).any(1).all()
        dropped = replace(batch, text=batch.null_text.expand_as(batch.text), anchor=torch.zeros_like(batch.anchor))
        never = training(encoded, pipeline, "train.condition_dropout=0", *quiet)
        losses = []
        for variant, clips in ((run, batch), (never, dropped), (never, batch)):
            module = stage_module(variant, None, pipeline[0])
            module.configure_model()
            losses.append(float(module.loss(clips, 0, 0).value.detach()))
        assert losses[0] == losses[1] != losses[2]

    def test_in_pixels_has_the_empty_prompt_for_a_text(self, pipeline: Any, tmp_path: Path) -> None:
        clips = [picture(n, width=64) for n in range(4)]
        shards = write_videos(tmp_path / "shards", {"train": clips, "val": clips}, with_captions=False)
        words = [word for word in TRAINING if word != "data=latents"]
        words += ["scale.width=64", "data=shards", f"data.urls={shards}", f"trainer.weights={pipeline[0]}"]
        run = build([*SMALL, *words])
        module = stage_module(run)
        _, condition = module.prepare(run.source.batch(0, 0, 2), SeededDraws(0, 0))
        expected = TextEncoder(pipeline[0], 512, tmp_path, "", "cpu", torch.float32).encode("")
        assert torch.equal(condition.text, expected.expand(2, -1, -1))
        assert is_trained(run, train(run, tmp_path).parents[1])

    def test_without_updates_is_wans_transformer(self, encoded: Path, pipeline: Any, tmp_path: Path) -> None:
        run = training(encoded, pipeline, "train.updates=0")
        weights = load_file(train(run, tmp_path) / "ema.safetensors")
        assert all(torch.equal(weights[f"dit.{k}"], v) for k, v in pipeline[1].transformer.state_dict().items())

    def test_is_named_by_the_weights_and_can_be_planned_without(
        self, encoded: Path, pipeline: Any, tmp_path: Path
    ) -> None:
        signature = training(encoded, pipeline).training_signature
        planned = training(encoded, (tmp_path / "later", None))
        assert len(planned.training_signature) == 8
        assert planned.training_signature != signature
        copy = shutil.copytree(pipeline[0], tmp_path / "copy")
        assert training(encoded, (copy, None)).training_signature == signature
        with pytest.raises(ValueError, match=r"weights=.*later: no such folder"):
            train(planned, tmp_path)
        (copy / "transformer" / "config.json").unlink()
        with pytest.raises(ValueError, match=r"transformer/config\.json: missing"):
            train(training(encoded, (copy, None)), tmp_path)
        assert not (tmp_path / "train").exists()

    def test_of_another_size_than_the_weights_is_refused_before_they_load(
        self, encoded: Path, pipeline: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"backbone\.num_layers=2: the transformer in .* has 3"):
            train(training(encoded, pipeline, "backbone.num_layers=2"), tmp_path)


class TestAnAblationAtWansScale:
    @pytest.mark.slow
    def test_trains_samples_and_scores_on_latents(
        self, pipeline: tuple[Path, Any], call: Callable[..., Encoding], tmp_path: Path
    ) -> None:
        """The same ablation as at the tiny scale: captions, negative prompt and the VAE come from Wan's weights."""
        videos = write_videos(
            tmp_path / "v", {"train": [picture(n) for n in range(3)], "val": [picture(n) for n in range(10, 15)]}
        )
        encoding = call(tmp_path / "l", f"urls={videos}")
        encode(encoding)
        words = [*SMALL, *TRAINING, f"data.urls={encoding.folder}", f"trainer.weights={pipeline[0]}"]
        runs = {}
        for arm in ("objective=flow", "objective=shortcut"):
            run = build([*words, "stage=hires", arm, "sampling.count=2", "sampling.num_steps=2"])
            folder = sample(run, tmp_path / "outputs")
            runs[arm] = np.stack([read_video(path) for path in sorted(folder.glob("*.mkv"))])
            real = reference_folder(run, tmp_path / "outputs")
            assert json.loads((real / "done.json").read_text())["captions"][0].startswith("a val clip, ")
            assert runs[arm].shape == (2, FRAMES, HEIGHT, WIDTH, 3)
        assert not np.array_equal(*runs.values())
        offloaded = build([*run.config.overrides, "trainer.offload=group"])
        assert offloaded.signature == run.signature
        modules = (load_stage(one, tmp_path / "outputs") for one in (run, offloaded))
        anchor = evaluation_anchors(run, tmp_path / "outputs", 0)
        assert anchor is not None
        assert torch.equal(*(synthesise(run, module, anchor([0, 1]), [0, 1], 0) for module in modules))
        rounded = sample(build([*run.config.overrides, "trainer.storage=fp8"]), tmp_path / "outputs")
        clips = np.stack([read_video(path) for path in sorted(rounded.glob("*.mkv"))])
        assert not np.array_equal(clips, runs["objective=shortcut"])
        assert np.abs(clips.astype(float) - runs["objective=shortcut"]).mean() < 8  # of 255
        with pytest.raises(ConfigError, match=r"^trainer\.storage=fp8: is for .* sampling; leave it out to train$"):
            sample(build([*run.config.overrides, "weighting.p=0.1", "trainer.storage=fp8"]), tmp_path / "outputs")
        texts = evaluation_texts(run, tmp_path / "outputs", 2, 0)
        assert texts is not None
        assert not torch.equal(texts[0][0], texts[0][1])
        assert torch.equal(texts[1][0], texts[1][1])

    def test_is_told_before_training_what_sampling_will_need(
        self, pipeline: tuple[Path, Any], call: Callable[..., Encoding], tmp_path: Path
    ) -> None:
        encoding = call(tmp_path / "l")
        encode(encoding)
        words = [*SMALL, *TRAINING, f"data.urls={encoding.folder}"]
        weights = tmp_path / "weights"
        shutil.copytree(pipeline[0] / "transformer", weights / "transformer")
        run = build([*words, f"trainer.weights={weights}"])
        with pytest.raises(ValueError, match=r"text_encoder/config\.json"):
            sample(run, tmp_path / "outputs")
        run = build([*words, f"trainer.weights={pipeline[0]}", "sampling.count=2"])
        with pytest.raises(ValueError, match=r"sampling\.count=2: .* has 2 held-out clips .*use sampling\.count=1"):
            sample(run, tmp_path / "outputs")
        assert not (tmp_path / "outputs").exists()

    def test_is_refused_where_a_batch_of_clips_does_not_fit_into_memory_however_many_there_are(
        self, pipeline: tuple[Path, Any], encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        videos = write_videos(tmp_path / "v", {"val": [picture(n) for n in range(10)]})
        content = json.loads((encoded / "latents.json").read_text())
        copy = Path(shutil.copytree(encoded, tmp_path / "l"))
        (copy / "latents.json").write_text(json.dumps({**content, "urls": f"{videos}/*.tar"}))
        words = [*SMALL, *TRAINING, f"data.urls={copy}", f"trainer.weights={pipeline[0]}"]
        few, many, batch = (
            build([*words, *more]) for more in ((), ["sampling.count=5"], ["sampling.count=5", "sampling.batch_size=4"])
        )
        assert sampling_memory(few) == sampling_memory(many) < sampling_memory(batch)
        memory = SimpleNamespace(available=sampling_memory(many))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        check_sampling(few)
        check_sampling(many)
        with pytest.raises(ValueError, match=r"sampling\.batch_size=4: clips of .*; sampling\.batch_size=1 takes 0\.0"):
            check_sampling(batch)
        memory.available -= 1
        with pytest.raises(ValueError, match=r"sampling\.batch_size=1: .* use a smaller scale, or more memory"):
            check_sampling(few)
        check_sampling(few, on_this_machine=False)

    @pytest.mark.parametrize("change", ["text.negative_prompt=blurry", "trainer.attention=sage"])
    def test_samples_anew_what_changes_its_clips(self, pipeline: tuple[Path, Any], encoded: Path, change: str) -> None:
        words = [*SMALL, *TRAINING, f"data.urls={encoded}", f"trainer.weights={pipeline[0]}"]
        one, other = build(words), build([*words, change])
        assert one.training_signature == other.training_signature
        assert one.signature != other.signature

    def test_has_no_use_for_what_was_tuned_at_the_tiny_scale(self) -> None:
        with pytest.raises(
            ValueError, match=r"anchors=generated: .*recipe of the tiny scale.*anchors\.stage\.updates=0"
        ):
            build(["scale=proxy", "anchors=generated"])
        options = parse_ablation(["name=anchor_tuning", "scale=proxy"])
        with pytest.raises(ValueError, match=r"optimizer\.lr=1e-3 .*fixed for the tiny scale; .*optimizer\.lr=1e-5"):
            make_plan(options)
        make_plan(parse_ablation(["name=anchor_tuning", "scale=proxy", "optimizer.lr=1e-5", "optimizer.final_lr=1"]))

    def test_has_no_use_for_the_tiny_scales_starts(self) -> None:
        with pytest.raises(ValueError, match=r"start=hires: a recipe of the tiny scale.*start=none"):
            build(["scale=proxy", "start=hires"])
