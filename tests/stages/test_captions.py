"""Clips in pixels are trained with their captions, by Wan's encoder, which computes each of them once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_processes import train_together
from small_proxy import SMALL, picture, write_videos

from pw.data import LabelledClips, LatentBatch
from pw.io import arguments
from pw.nn.text import TextEncoder
from pw.parallel.team import Place, Share, Team
from pw.prepare.encode import encode
from pw.prepare.encoding import LatentsOptions, find_weights, plan_encoding
from pw.run.build import Run, build
from pw.run.compose import ConfigError
from pw.sample.clip_folders import write_reference
from pw.sample.evaluate import evaluation_texts
from pw.stages import stage_module
from pw.stages.stage import SeededDraws
from pw.train.held_out import held_out
from pw.train.loop import train
from pw.train.record import training_folder

WIDTH = 64
TRAINING = (
    *("scale.width=64", "train.batch_size=2", "train.precision=fp32", "train.updates=4", "train.checkpoint_every=2"),
    *("train.checkpoint_activations=false", "optimizer.warmup=0", "optimizer.lr=1e-3", "sampling.count=2"),
    *("train.condition_dropout=0", "objective=flow", "stage=anchor", "degradation=none"),
)
TWO_ON_CPU = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.threads=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four train and four val clips of the size of the scale, each with a caption."""
    clips = [picture(n, width=WIDTH) for n in range(4)]
    return write_videos(tmp_path_factory.mktemp("captions") / "shards", {"train": clips, "val": clips})


@pytest.fixture
def run_on(pipeline: tuple[Path, Any], shards: Path) -> Callable[..., Run]:
    """`run_on("train.updates=8")` is a run on the shards."""
    return lambda *words: build(
        [*SMALL, *TRAINING, "data=shards", f"data.urls={shards}", f"trainer.weights={pipeline[0]}", *words]
    )


@pytest.fixture
def encoder(pipeline: tuple[Path, Any], tmp_path: Path) -> TextEncoder:
    return TextEncoder(pipeline[0], 512, tmp_path / "expected", "", "cpu", torch.float32)


def loss(run: Run, weights: Path, clips: Any) -> float:
    """Of the first batch, with Wan's weights."""
    module = stage_module(run, None, weights)
    module.configure_model()
    with torch.no_grad():
        return float(module.loss(clips, 0, 0).value)


def labelled(run: Run, index: int = 0) -> LabelledClips:
    batch = run.source.batch(0, index, 2)
    assert isinstance(batch, LabelledClips)
    return batch


class TestTheTextOfABatch:
    def test_is_that_of_its_captions(self, run_on: Callable[..., Run], encoder: TextEncoder) -> None:
        run = run_on()
        batch = labelled(run)
        captions = [run.source.captions[label] for label in batch.label]  # type: ignore[attr-defined]
        assert all(caption.startswith("a train clip, ") for caption in captions)
        _, condition = stage_module(run).prepare(batch, SeededDraws(0, 0))
        assert torch.equal(condition.text, torch.stack([encoder.encode(caption) for caption in captions]))

    def test_of_a_share_is_its_part(self, run_on: Callable[..., Run]) -> None:
        run = run_on()
        module, batch = stage_module(run), labelled(run)
        _, whole = module.prepare(batch, SeededDraws(0, 0))
        parts = [module.prepare(batch, SeededDraws(0, 0, Share(rank, 2, 1, 2)))[1] for rank in (0, 1)]
        assert torch.equal(torch.cat([part.text for part in parts]), whole.text)

    def test_changes_the_loss(self, run_on: Callable[..., Run], pipeline: tuple[Path, Any]) -> None:
        run = run_on()
        batch = labelled(run)
        empty = replace(batch, label=torch.zeros_like(batch.label))
        assert run.source.captions[0] == ""  # type: ignore[attr-defined]
        with_caption, without = (loss(run, pipeline[0], clips) for clips in (batch, empty))
        assert abs(with_caption / without - 1) > 1e-4
        assert loss(run, pipeline[0], batch.pixels) == without  # clips without captions

    def test_is_dropped_to_the_empty_prompts(self, run_on: Callable[..., Run], pipeline: tuple[Path, Any]) -> None:
        run = run_on("train.condition_dropout=0.999999")
        batch = labelled(run)
        empty = replace(batch, label=torch.zeros_like(batch.label))
        assert loss(run, pipeline[0], batch) == loss(run_on(), pipeline[0], empty)

    def test_and_the_loss_are_those_of_the_same_clips_encoded(
        self, run_on: Callable[..., Run], pipeline: tuple[Path, Any], shards: Path, tmp_path: Path
    ) -> None:
        """Up to bf16, in which latents and texts are stored; and up to the mirroring, which latents do not have."""
        words = [f"urls={shards}", f"out={tmp_path}", "anchors=1", *SMALL, "scale.width=64", "degradation=none"]
        encoding = plan_encoding(arguments.parse(LatentsOptions, [*words, f"trainer.weights={pipeline[0]}"]))
        find_weights(encoding)
        encode(encoding)
        run, latent_run = run_on(), run_on("data=latents", f"data.urls={encoding.folder}")
        module, compared = stage_module(run), 0
        for index in range(8):
            pixels, latents = run.source.batch(0, index, 1), latent_run.source.batch(0, index, 1)
            assert isinstance(pixels, LabelledClips)
            assert isinstance(latents, LatentBatch)
            data, condition = module.prepare(pixels, SeededDraws(0, 0))
            assert torch.equal(condition.text.bfloat16().float(), latents.text)
            if not torch.equal(data.bfloat16().float(), latents.anchor):  # mirrored
                continue
            compared += 1
            losses = loss(run, pipeline[0], pixels), loss(latent_run, pipeline[0], latents)
            empty = loss(run, pipeline[0], pixels.pixels)
            assert losses[0] == pytest.approx(losses[1], rel=1e-2)
            assert abs(losses[0] - losses[1]) < abs(losses[0] - empty)
        assert compared >= 2


class TestATraining:
    def test_encodes_each_caption_once_before_it_begins(
        self, run_on: Callable[..., Run], pipeline: tuple[Path, Any], tmp_path: Path
    ) -> None:
        run = run_on()
        train(run, tmp_path)
        written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "text").iterdir()}
        assert len(written) == 9  # of four train and four val clips, and the empty prompt
        again = run_on("train.updates=5")
        train(again, tmp_path)
        write_reference(again, tmp_path)
        evaluation_texts(again, tmp_path, 2, 0)
        now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "text").iterdir()}
        assert {name: now[name] for name in written} == written
        assert len(now) == 10  # and the negative prompt

    def test_that_is_interrupted_is_continued_to_the_same_bits(
        self, run_on: Callable[..., Run], tmp_path: Path
    ) -> None:
        class Stopped(Exception):
            pass

        def stop(update: int, updates: int) -> None:
            if update >= 10:
                raise Stopped

        run = run_on("train.updates=12", "train.checkpoint_every=4", "train.condition_dropout=0.5")
        with pytest.raises(Stopped):
            train(run, tmp_path, stop)
        assert list((training_folder(run, tmp_path) / "checkpoints").iterdir())
        resumed, whole = (load_file(train(run, tmp_path / sub) / "ema.safetensors") for sub in ("", "whole"))
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)

    @pytest.mark.slow
    def test_by_two_processes_has_the_texts_that_the_first_one_encoded(
        self, shards: Path, pipeline: tuple[Path, Any], tmp_path: Path
    ) -> None:
        broken = shutil.copytree(pipeline[0], tmp_path / "without")
        config = broken / "text_encoder" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"d_model": 8}))  # it cannot be loaded
        words = (*SMALL, *TRAINING, "train.updates=1", "data=shards", f"data.urls={shards}")
        two = SeparateTraining((*words, *TWO_ON_CPU), (str(pipeline[0]), str(broken)), tmp_path)
        (first,), _ = train_together(2, two)
        one = train(build([*words, f"trainer.weights={pipeline[0]}"]), tmp_path / "one")
        weights, expected = (load_file(Path(folder) / "online.safetensors") for folder in (first, one))
        # AdamW's first update has the sign of the gradient alone, which rounding decides where it is next to nothing
        apart = torch.cat([(weights[name] - tensor).abs().flatten() > 1e-6 for name, tensor in expected.items()])
        assert apart.float().mean() < 1e-3

    def test_has_another_signature_than_without_captions(self, run_on: Callable[..., Run], tmp_path: Path) -> None:
        clips = [picture(n, width=WIDTH) for n in range(4)]
        without = write_videos(tmp_path / "shards", {"train": clips, "val": clips}, with_captions=False)
        signatures = {run_on().training_signature, run_on(f"data.urls={without}").training_signature}
        assert len(signatures) == 2

    def test_may_drop_texts_alone_where_there_are_captions(self, run_on: Callable[..., Run], tmp_path: Path) -> None:
        words = ("train.dropout=both_or_text", "train.condition_dropout=0.1")
        run_on(*words)
        clips = [picture(n, width=WIDTH) for n in range(4)]
        without = write_videos(tmp_path / "shards", {"train": clips, "val": clips}, with_captions=False)
        with pytest.raises(ConfigError, match=r"train\.dropout=both_or_text: no clip of data\.urls=.* has a caption"):
            run_on(f"data.urls={without}", *words)

    def test_at_a_scale_without_text_says_that_captions_are_not_used(
        self, micro: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        clips = [picture(n, height=32, width=32) for n in range(4)]
        batches, losses = [], []
        for captions in (True, False):
            place = write_videos(tmp_path / str(captions), {"train": clips, "val": clips}, with_captions=captions)
            run = micro("data=shards", f"data.urls={place}", "train.updates=1")
            batches.append(run.source.batch(0, 0, 2))
            module = stage_module(run)
            module.configure_model()
            losses.append(float(module.loss(batches[-1], 0, 0).value.detach()))
            train(run, tmp_path / "outputs")
        assert losses[0] == losses[1]
        messages = [record.message for record in caplog.records if "captions are not used" in record.message]
        assert len(messages) == 1
        assert messages[0].endswith("scale=tiny has no text encoder (text=none)")


class TestHeldOutClips:
    def test_have_their_captions(
        self, run_on: Callable[..., Run], encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, sizes, pread = run_on(), [], os.pread
        monkeypatch.setattr(os, "pread", lambda file, size, offset: sizes.append(size) or pread(file, size, offset))
        module = stage_module(run)
        module.texts.share(Team(Place(0, 1)), tmp_path / "text")
        clips = held_out(run, module, 2)
        assert clips is not None
        assert sum(size > 5 * 64 * 64 * 3 for size in sizes) == 2  # each clip of 5 frames of 64 x 64 px is read once
        captions = [encoder.encode(f"a val clip, {n}") for n in range(4)]
        texts = [condition.text[0] for condition in clips.conditions]
        assert all(any(torch.equal(text, caption) for caption in captions) for text in texts)
        assert not torch.equal(*texts)

    def test_of_an_evaluation_are_sampled_with_their_captions(
        self, run_on: Callable[..., Run], encoder: TextEncoder, tmp_path: Path
    ) -> None:
        run = run_on()
        folder = write_reference(run, tmp_path)
        captions = json.loads((folder / "done.json").read_text())["captions"]
        assert captions == list(run.source.evaluation(2, 0).captions())
        texts = evaluation_texts(run, tmp_path, 2, 0)
        assert texts is not None
        assert torch.equal(texts[0], torch.stack([encoder.encode(caption) for caption in captions]))


@dataclass(frozen=True)
class SeparateTraining:
    """A training by processes with different folders of Wan's weights."""

    overrides: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: Path

    def carried_out(self, rank: int) -> str:
        return str(train(build([*self.overrides, f"trainer.weights={self.weights[rank]}"]), self.outputs))
