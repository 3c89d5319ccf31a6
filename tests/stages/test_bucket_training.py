"""A training on clips of several sizes: resumed to the bit, the same on any number of processes, logged by bucket."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pw.cli import main as pw_main
from pw.cost.training_cost import training_cost
from pw.data.shard_index import write_shards
from pw.io.arguments import ConfigError
from pw.parallel.team import Share
from pw.run.build import Run, build
from pw.run.signatures import evaluation_clips
from pw.stages import stage_module
from pw.stages.stage import SeededDraws
from pw.train.batches import batches, clips
from pw.train.loop import train
from pw.train.record import training_folder

WIDE, TALL = (3, 16, 24), (2, 24, 16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight clips of 3 frames of 20 x 32 px and four of 2 frames of 32 x 20 to train; four to evaluate."""
    folder = tmp_path_factory.mktemp("buckets")
    rng = np.random.default_rng(0)
    for split, shapes in {"train": [(3, 20, 32)] * 8 + [(2, 32, 20)] * 4, "val": [(3, 20, 32)] * 4}.items():
        samples = []
        for number, shape in enumerate(shapes):
            array = io.BytesIO()
            np.save(array, rng.integers(0, 256, (*shape, 3), np.uint8))
            samples.append({"__key__": f"clip-{number}", "npy": array.getvalue()})
        write_shards(folder, split, samples, 100_000_000)
    return f"{folder}/*.tar"


@pytest.fixture
def mixed(micro: Callable[..., Run], shards: str) -> Callable[..., Run]:
    """`mixed("train.updates=8")` is a run on two buckets."""
    buckets = f"data.buckets=[{[*WIDE]},{[*TALL]}]".replace(" ", "")
    return lambda *words: micro("data=shards", f"data.urls={shards}", buckets, *words)


def size_of(run: Run, index: int) -> tuple[int, ...]:
    return tuple(clips(run, index, Share.of(run.train)).shape[2:])


class TestABatch:
    @pytest.mark.parametrize("stage", ["stage=hires", "stage=anchor"])
    def test_is_trained_at_the_size_of_its_bucket(self, mixed: Callable[..., Run], stage: str) -> None:
        run = mixed(stage, "objective=flow")
        module = stage_module(run)
        module.configure_model()
        seen = set()
        for index in range(8):
            batch = clips(run, index, Share.of(run.train))
            data, condition = module.prepare(batch, SeededDraws(0, index))
            frames, height, width = batch.shape[2:]
            seen.add((frames, height, width))
            # anchors have half the side, as 8 px of 16: of 16 x 24 px they have 8 x 12; a latent position is 4 x 4 px
            divisor = 4 if stage == "stage=hires" else 8
            assert data.shape[2:] == (frames, height // divisor, width // divisor)
            if condition.anchor is not None:
                assert condition.anchor.shape == data.shape
            assert module.loss(batch, index, index).value.isfinite()
        assert seen == {WIDE, TALL}

    def test_is_of_one_bucket_in_all_micro_batches_and_processes_of_an_update(self, mixed: Callable[..., Run]) -> None:
        run = mixed("train.accumulate=3")
        sizes = [{size_of(run, 3 * update + turn) for turn in range(3)} for update in range(16)]
        assert all(len(size) == 1 for size in sizes)
        assert set().union(*sizes) == {WIDE, TALL}
        assert run.mix is not None
        assert [run.mix.buckets[run.mix.turn(run.seed, update)[0]] for update in range(16)] == [*map(min, sizes)]

    def test_is_the_same_in_every_number_of_processes(self, mixed: Callable[..., Run]) -> None:
        run = mixed("train.accumulate=2", "train.batch_size=4")
        alone = [clips(run, index, Share.of(run.train)) for index in range(8)]
        for processes in (2, 4):
            for rank in range(processes):
                share = Share(rank, processes, 2, 4)
                loader = iter(batches(run, 0, share))
                for _ in range(4 * share.micro_batches):
                    batch = next(loader)
                    assert torch.equal(batch["clips"], alone[batch["index"]])

    def test_of_shares_of_the_full_size_has_those_of_its_bucket(self, mixed: Callable[..., Run]) -> None:
        run = mixed("train.sizes=[0.5,1]", "objective=flow")
        module = stage_module(run)
        module.configure_model()
        for index in range(8):
            batch = clips(run, index, Share.of(run.train))
            data, _ = module.prepare(batch, SeededDraws(0, index), 0.5)
            assert data.shape[3:] == (batch.shape[3] // 8, batch.shape[4] // 8)


class TestATraining:
    def test_that_is_interrupted_is_continued_to_the_same_bits(self, mixed: Callable[..., Run], tmp_path: Path) -> None:
        class Stopped(Exception):
            pass

        def stop(update: int, updates: int) -> None:
            if update >= 10:
                raise Stopped

        run = mixed()
        with pytest.raises(Stopped):
            train(run, tmp_path, stop)
        assert list((training_folder(run, tmp_path) / "checkpoints").iterdir())
        resumed, whole = (train(run, tmp_path / sub) for sub in ("", "whole"))
        for name in ("ema", "online"):
            weights = [load_file(folder / f"{name}.safetensors") for folder in (resumed, whole)]
            assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
        assert (resumed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()

    def test_logs_the_loss_of_each_bucket_and_its_share(self, mixed: Callable[..., Run], tmp_path: Path) -> None:
        run = mixed("objective=flow", "train.updates=10", "train.checkpoint_every=100")
        folder = train(run, tmp_path)
        assert json.loads((folder / "done.json").read_text())["buckets"] == {
            "3x16x24": pytest.approx(2 / 3),
            "2x24x16": pytest.approx(1 / 3),
        }
        [line] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert run.mix is not None
        counts = [[run.mix.turn(run.seed, update)[0] for update in range(10)].count(bucket) for bucket in (0, 1)]
        means = [line["loss_flow/3x16x24"], line["loss_flow/2x24x16"]]
        assert line["loss_flow"] == pytest.approx(sum(n * mean for n, mean in zip(counts, means, strict=True)) / 10)

    def test_has_another_signature_for_other_buckets_or_weights(self, mixed: Callable[..., Run]) -> None:
        runs = [mixed(), mixed("data.bucket_weights=[1,1]"), mixed(f"data.buckets=[{[*WIDE]}]".replace(" ", ""))]
        assert len({run.configuration_signature for run in runs}) == 3

    def test_is_evaluated_on_the_clips_that_it_has_without_buckets(
        self, mixed: Callable[..., Run], micro: Callable[..., Run], shards: str
    ) -> None:
        plain = micro("data=shards", f"data.urls={shards}")
        for run in (mixed(), mixed("data.bucket_weights=[1,1]")):
            assert run.configuration_signature != plain.configuration_signature
            assert run.evaluation_signature(3) == plain.evaluation_signature(3)
            assert evaluation_clips(run) == evaluation_clips(plain) == plain.source.fingerprint()


class TestAPlan:
    def test_has_the_mean_time_and_the_largest_memory(self, mixed: Callable[..., Run]) -> None:
        both = training_cost(mixed("data.bucket_weights=[3,1]"))
        one, other = (training_cost(mixed(f"data.buckets=[{[*size]}]".replace(" ", ""))) for size in (WIDE, TALL))
        assert both.flow.total == pytest.approx(0.75 * one.flow.total + 0.25 * other.flow.total)
        assert both.worst.bytes == max(one.worst.bytes, other.worst.bytes) == one.worst.bytes

    def test_is_made_without_clips(self) -> None:
        words = ["scale=2k", "data.buckets=[[121,1440,2560],[121,2560,1440],[81,1440,1920]]"]
        run = build(words)
        sizes = {sized.scale.size: sized.scale.anchor_size for sized, _ in run.in_buckets()}
        # the scale's anchor has a share of 448 x 256 / (2560 x 1440) = 0.0311 of the pixels, 0.1764 of a side;
        # 0.1764 x 1920 = 338.6 and 0.1764 x 1440 = 254, in multiples of 32
        assert sizes == {(1440, 2560): (256, 448), (2560, 1440): (448, 256), (1440, 1920): (256, 352)}
        cost, plain = training_cost(run), training_cost(build(["scale=2k"]))
        assert cost.worst.bytes == plain.worst.bytes
        assert 0 < cost.flow.total < plain.flow.total

    def test_names_the_buckets(self, capsys: pytest.CaptureFixture[str]) -> None:
        buckets = "data.buckets=[[121,1440,2560],[81,1440,1920]]"
        assert pw_main(["plan", "scale=2k", "for=training", buckets, "data.bucket_weights=[3,1]"]) == 0
        assert "Buckets: 75% 121x1440x2560, 25% 81x1440x1920." in " ".join(capsys.readouterr().out.split())

    @pytest.mark.parametrize(
        ("buckets", "message"),
        [
            ("[[121,1440,2550]]", r"data\.buckets, \[121, 1440, 2550\] .*scale\.width=2550: not a multiple"),
            ("[[120,1440,2560]]", r"data\.buckets, \[120, 1440, 2560\] .*scale\.frames=120"),
            ("[[121,1440]]", r"data\.buckets=.*expected a list of"),
            ("[[121,1440,2560],[121,1440,2560]]", r"data\.buckets=.*expected different sizes"),
        ],
    )
    def test_refuses_sizes_that_the_network_cannot_have(self, buckets: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build(["scale=2k", f"data.buckets={buckets}"])

    def test_refuses_buckets_without_clips(self, mixed: Callable[..., Run]) -> None:
        with pytest.raises(ConfigError, match=r"data\.buckets: no train clip .* is in \[9, 16, 16\]; .*8 of 3x20x32"):
            mixed("data.buckets=[[3,16,24],[9,16,16]]")


def test_procedural_clips_have_no_buckets(micro: Callable[..., Run]) -> None:
    run: Any = micro()
    assert run.mix is None
    assert run.in_buckets() == [(run, 1.0)]
