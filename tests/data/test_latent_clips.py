"""pw.data.latents: the order of the clips in pixels, and no latent taken for what it is not."""

from __future__ import annotations

import io
import json
import logging
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from small_latents import ANCHORS, write_latents
from small_shards import spoil

from pw.data import LatentBatch
from pw.data.latents import LatentClips, fit, fit_frames
from pw.data.shard_index import ShardError, index_tar, write_shards
from pw.data.shards import ShardClips
from pw.io.arguments import ConfigError
from pw.io.video import to_float
from pw.run.build import build
from pw.train import batches
from pw.train.batches import NotFiniteBatch

RUN = build(["scale=proxy"])


def videos(folder: Path, split: str, count: int, shape: tuple[int, ...] = (5, 30, 40, 3)) -> Path:
    """Clips of one colour each, their number."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for n in range(count):
        array = io.BytesIO()
        np.save(array, np.full(shape, n, np.uint8))
        samples.append({"__key__": f"clip-{n:03d}", "npy": array.getvalue()})
    write_shards(folder, split, samples, 100_000)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten clips in three shards."""
    return write_latents(tmp_path / "latents", RUN, 10)


@pytest.fixture
def clips(folder: Path) -> LatentClips:
    return LatentClips(str(folder), text_tokens=8)


def numbers(clips: LatentClips, seed: int, index: int, size: int) -> list[int]:
    """Which clips a batch has."""
    return clips.batch(seed, index, size).latent[:, 0, 0, 0, 0].int().tolist()


class TestTheOrder:
    def test_is_that_of_the_clips_in_pixels(self, clips: LatentClips, tmp_path: Path) -> None:
        place = videos(videos(tmp_path / "videos", "train", 10), "val", 1)
        pixels = ShardClips(f"{place}/*.tar", frames=5, size=30)
        for index in range(8):
            expected = ((pixels.batch(3, index, 4)[:, 0, 0, 0, 0] + 1) * 127.5).round().int().tolist()
            assert numbers(clips, 3, index, 4) == expected

    def test_has_every_clip_once_an_epoch_whatever_the_batch_size(self, clips: LatentClips) -> None:
        assert sorted(numbers(clips, 0, 0, 10)) == list(range(10))
        small, large = ([n for i in range(20 // size) for n in numbers(clips, 0, i, size)] for size in (2, 5))
        assert small == large

    def test_can_be_asked_for_anywhere_by_any_worker(self, clips: LatentClips) -> None:
        expected = clips.batch(1, 7, 3).anchor.numpy()
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            assert np.array_equal(pool.submit(_anchors, clips).result(timeout=900), expected)


def _anchors(clips: LatentClips) -> np.ndarray:
    return clips.batch(1, 7, 3).anchor.numpy()


class TestABatch:
    def test_has_a_latent_one_of_its_anchors_and_its_text(self, clips: LatentClips) -> None:
        batch = clips.batch(0, 0, 10)
        assert len(batch) == 10
        assert (batch.latent.shape, batch.anchor.shape) == ((10, 4, 2, 4, 6), (10, 4, 2, 2, 4))
        assert {t.dtype for t in (batch.latent, batch.anchor, batch.text, batch.null_text)} == {torch.float32}
        for latent, anchor, text in zip(batch.latent, batch.anchor, batch.text, strict=True):
            number = int(latent.unique())
            assert (anchor.unique() - number).item() in [j / 4 for j in range(ANCHORS)]
            length = number % 5 + 1
            assert text.shape == (8, 2)
            assert (text[:length] == number + 1).all()
            assert not text[length:].any()

    def test_has_every_anchor_in_its_turn_drawn_by_seed_and_position(self, clips: LatentClips) -> None:
        drawn_batches = [clips.batch(seed, 0, 30) for seed in (0, 0, 1)]
        which = [((batch.anchor - batch.latent[..., :2, :4])[:, 0, 0, 0, 0] * 4).int() for batch in drawn_batches]
        assert torch.equal(which[0], which[1])
        assert not torch.equal(which[0], which[2])
        assert (which[0].bincount(minlength=ANCHORS) > 4).all()

    def test_has_one_of_several_captions_in_its_turn(self, clips: LatentClips, tmp_path: Path) -> None:
        several = LatentClips(str(write_latents(tmp_path / "several", RUN, 10, captions=3)), text_tokens=8)
        first, again, old = several.batch(0, 0, 90), several.batch(0, 3, 30), clips.batch(0, 0, 90)
        # clip n has captions n + 1, n + 101 and n + 201, in every token
        which = ((first.text[:, 0, 0] - first.latent[:, 0, 0, 0, 0] - 1) / 100).int()
        # 30 on average, with a standard deviation of sqrt(90 * 1/3 * 2/3) = 4.5
        assert (which.bincount(minlength=3) > 12).all()
        assert (which.bincount(minlength=3) < 48).all()
        assert torch.equal(several.batch(0, 0, 120).text[90:], again.text)
        assert torch.equal(first.latent, old.latent)
        assert torch.equal(first.anchor, old.anchor)

    def test_brings_the_empty_prompt(self, clips: LatentClips) -> None:
        expected = torch.zeros(8, 2)
        expected[0] = -1
        assert torch.equal(clips.batch(0, 0, 1).null_text, expected)

    def test_that_spoilt_a_loss_is_read_back_as_it_was(self, clips: LatentClips, tmp_path: Path) -> None:
        batch = clips.batch(0, 0, 2)
        batch.latent[1, 0, 0, 0, 0] = torch.nan
        record = NotFiniteBatch("01234567", "76543210", seed=0, batch=0, update=1, term="flow", rank=0, processes=1)
        path = batches.write(tmp_path, 0, record, batch, [])
        read_record, again = batches.read(path)
        assert read_record == record
        assert isinstance(again, LatentBatch)
        assert all(vars(again)[name].equal(tensor) for name, tensor in vars(batch).items() if name != "latent")
        assert again.latent.isnan().equal(batch.latent.isnan())
        assert json.loads(path.read_text())["clips"]["latent"]["not_finite"] == 1


class TestAFolder:
    def test_is_named_by_what_is_in_it(self, clips: LatentClips, tmp_path: Path) -> None:
        assert LatentClips(str(write_latents(tmp_path / "same", RUN, 10)), 8).fingerprint() == clips.fingerprint()
        assert LatentClips(str(write_latents(tmp_path / "less", RUN, 9)), 8).fingerprint() != clips.fingerprint()

    def test_above_the_right_one_names_those_there_are(self, folder: Path) -> None:
        with pytest.raises(ShardError, match=r"data\.urls=.*choose one of its folders: latents"):
            LatentClips(str(folder.parent), 8)

    def test_that_is_not_there_names_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(ShardError, match=r"data\.urls=.*no latents\.json in it; `make latents` writes one"):
            LatentClips(str(tmp_path / "nothing"), 8)

    def test_that_is_unfinished_is_refused(self, folder: Path) -> None:
        (folder / "train-000001.json").unlink()
        with pytest.raises(ShardError, match=r"1 of 3 shards are not encoded yet, such as train-000001\.tar"):
            LatentClips(str(folder), 8)

    def test_that_lacks_a_shard_is_refused(self, folder: Path) -> None:
        (folder / "train-000001.tar").unlink()
        with pytest.raises(ShardError, match=r"train-000001\.tar: not there"):
            LatentClips(str(folder), 8)

    def test_with_a_foreign_file_in_a_shard_is_refused(self, folder: Path) -> None:
        write_shards(folder, "train", [{"__key__": "a", "safetensors": b"", "pickle": b""}], 10)
        with pytest.raises(ShardError, match="does not end in one of safetensors, json"):
            LatentClips(str(folder), 8)

    def test_with_a_damaged_clip_passes_it_over_by_name(
        self, folder: Path, clips: LatentClips, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = folder / "train-000000.tar"
        path.write_bytes(path.read_bytes().replace(b'"latent"', b'"ltaent"', 1))
        with caplog.at_level(logging.WARNING):
            clips = LatentClips(str(folder), 8)
            assert clips.passed_over() == []
            result = numbers(clips, 0, 0, 10)
        assert sorted({*result}) == list(range(1, 10))
        assert "'clip-000'" in caplog.text
        assert clips.passed_over() == ["train-000000.tar/clip-000"]

    def test_with_too_many_damaged_clips_is_refused_when_they_are_met(self, tmp_path: Path) -> None:
        folder = write_latents(tmp_path / "more", RUN, 24)
        for path in sorted(folder.glob("train-*.tar"))[:3]:  # four clips in each
            path.write_bytes(path.read_bytes().replace(b'"latent"', b'"ltaent"'))
        with pytest.raises(ShardError, match=r"11 of 24 clips unreadable; .*encode it again"):
            LatentClips(str(folder), 8).batch(0, 0, 24)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("scale.height=480", r"scale\.height=480: .*encoded with 448 \(scale=proxy\)"),
            ("scale=2k", r"scale\.frames=121: .*encoded with 49 \(scale=proxy\)"),
            ("codec.tile=256", r"codec\.tile=256: .*encoded with \d+"),
            ("degradation.blur=[1,1]", r"degradation\.blur=\[1\.0, 1\.0\]: .*encoded with \[1\.07, 1\.54\]"),
            ("degradation=none", r"degradation=Clean: .*encoded with BlurAndNoise"),
            ("backbone.text_tokens=256", r"backbone\.text_tokens=256: .*encoded with 512"),
            ("scale.anchor_width=128", r"scale\.anchor_width=128: .*encoded with 160"),
        ],
    )
    def test_of_another_kind_than_the_run_is_refused_by_key(self, folder: Path, change: str, message: str) -> None:
        scale = [] if change.startswith("scale=") else ["scale=proxy"]
        with pytest.raises(ConfigError, match=message):
            build([*scale, change, "data=latents", f"data.urls={folder}"])

    def test_fits_a_run_that_differs_in_what_training_draws(self, folder: Path) -> None:
        words = ["scale=proxy", "data=latents", f"data.urls={folder}", "degradation.noise=[0,0.3]"]
        assert isinstance(build(words).source, LatentClips)
        # no anchor is asked for
        assert isinstance(
            build(["scale=proxy", "data=latents", f"data.urls={folder}", "injector=none"]).source, LatentClips
        )


def write_manifest(folder: Path) -> None:
    shards = [
        {
            "file": path.name,
            "bytes": path.stat().st_size,
            "samples": len(index_tar(path, ("npy",))),
            "sha256": path.name,
        }
        for path in sorted(folder.glob("*.tar"))
    ]
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))


class TestEvaluation:
    SMALL = ("scale.frames=5", "scale.height=32", "scale.width=64", "scale.anchor_height=32", "scale.anchor_width=32")

    def latents(self, tmp_path: Path, place: Path) -> LatentClips:
        return LatentClips(str(write_latents(tmp_path / "small", build(["scale=proxy", *self.SMALL]), 2, place)), 8)

    def test_reads_the_held_out_clips_in_pixels_each_in_one_set(self, tmp_path: Path) -> None:
        place = videos(tmp_path / "videos", "val", 7, (6, 32, 64, 3))
        write_manifest(place)
        clips = self.latents(tmp_path, place)
        result = clips.evaluation(3, 0)
        real, real_b = torch.stack(list(result.real)), torch.stack(list(result.real_b))
        assert real.shape == real_b.shape == (3, 3, 5, 32, 64)
        assert len(set(torch.cat([real, real_b])[:, 0, 0, 0, 0].tolist())) == 6
        again = clips.evaluation(3, 0)
        assert torch.equal(again.real[2], real[2])
        assert np.array_equal(to_float(again.real.frames(0)), real[0])
        assert not torch.equal(torch.stack(list(clips.evaluation(3, 1).real)), real)
        with pytest.raises(ValueError, match=r"sampling\.count=4: .* has 7 held-out clips .*use sampling\.count=3"):
            clips.evaluation(4, 0)

    def test_says_so_when_too_few_of_the_held_out_clips_can_be_read(self, tmp_path: Path) -> None:
        place = videos(tmp_path / "videos", "val", 4, (6, 32, 64, 3))
        spoil(place, "val", 1)
        write_manifest(place)
        result = self.latents(tmp_path, place).evaluation(2, 0)
        with pytest.raises(ValueError, match=r"has 3 held-out clips for two sets; use sampling\.count=1"):
            result.captions()

    def test_says_so_when_the_videos_are_gone(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"val shards of the videos in .*gone.* cannot be read"):
            self.latents(tmp_path, tmp_path / "gone").evaluation(1, 0)


class TestFitting:
    def test_leaves_a_clip_of_the_right_size_as_it_is(self) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (7, 32, 48, 3), np.uint8)
        assert np.array_equal(fit(frames, (5, 32, 48)).numpy(), to_float(frames[:5]))

    def test_keeps_eight_bits_where_nothing_is_reduced_and_only_there(self) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (6, 36, 52, 3), np.uint8)
        unchanged, reduced = fit_frames(frames, (5, 32, 52)), fit_frames(frames, (5, 18, 26))
        assert isinstance(unchanged, np.ndarray)
        assert np.array_equal(to_float(unchanged), fit(frames, (5, 32, 52)))
        assert isinstance(reduced, torch.Tensor)
        assert torch.equal(reduced, fit(frames, (5, 18, 26)))

    def test_a_frame_does_not_depend_on_the_others(self) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (6, 36, 52, 3), np.uint8)
        assert torch.equal(fit(frames, (6, 20, 20))[:, 3:5], fit(frames[3:5], (2, 20, 20)))

    def test_cuts_about_the_centre_what_is_larger_in_one_direction(self) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (5, 36, 48, 3), np.uint8)
        assert np.array_equal(fit(frames, (5, 32, 48)).numpy(), to_float(frames[:, 2:34]))

    def test_reduces_what_is_larger_in_both_until_it_just_covers(self) -> None:
        ramp = np.linspace(0, 255, 120).astype(np.uint8)
        frames = np.broadcast_to(ramp[None, None, :, None], (5, 64, 120, 3))
        result = fit(np.ascontiguousarray(frames), (5, 32, 48))
        assert result.shape == (3, 5, 32, 48)
        assert float(result.abs().max()) <= 1
        # 60 columns of which the middle 48 are kept: 6 of 60 are cut off either side
        assert result[0, 0, 0, [0, -1]].numpy() == pytest.approx([-1 + 2 * 6.5 / 60, 1 - 2 * 6.5 / 60], abs=0.02)
