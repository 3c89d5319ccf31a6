"""pw.sample.evaluate and the stages' `synthesise`: the same clips however they are asked for."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pw.data import Clips, Evaluation, Source
from pw.data.procedural import generator
from pw.io.manifest import DamagedResult, check, write_mark
from pw.io.video import read_video, to_float, to_uint8
from pw.run.build import Run
from pw.sample import evaluate
from pw.sample.clip_folders import anchor_reference, is_sampled, reference_folder, write_reference
from pw.sample.evaluate import INITIAL_NOISE, evaluation_anchors, load_stage, sample
from pw.train.loop import train
from pw.train.record import training_folder

SHORTCUT = ("objective=shortcut", "train.updates=6", "optimizer.lr=1e-2")


@pytest.fixture(scope="module")
def trained(micro, tmp_path_factory) -> Path:
    """Outputs that hold the trained shortcut model and nothing else."""
    outputs = tmp_path_factory.mktemp("trained")
    train(micro(*SHORTCUT), outputs)
    return outputs


@pytest.fixture
def outputs(trained: Path, tmp_path: Path) -> Path:
    """A copy of them, to sample into."""
    shutil.copytree(trained, tmp_path / "outputs")
    return tmp_path / "outputs"


def clips(folder: Path) -> np.ndarray:
    return np.stack([read_video(path) for path in sorted(folder.glob("*.mkv"))])


def sampled(run: Run, outputs: Path, tmp_path: Path, name: str, **arguments) -> Path:
    """Sampled anew: the folder is found by a signature that leaves out how clips are batched."""
    shutil.copytree(outputs, tmp_path / name)
    return sample(run, tmp_path / name, **arguments)


def test_a_sampled_folder_holds_every_clip_an_anchor_to_each_and_the_mark(micro, outputs: Path):
    run = micro(*SHORTCUT)
    assert not is_sampled(run, 4, outputs)
    folder = sample(run, outputs)
    assert sorted(path.name for path in folder.glob("*.mkv")) == [f"{i:04d}.mkv" for i in range(4)]
    assert clips(folder).shape == (4, 2, 16, 16, 3)
    assert clips(folder / "anchors").shape == (4, 2, 8, 8, 3)
    done = json.loads((folder / "done.json").read_text())
    assert (done["clips"], done["seed"], done["signature"]) == (4, 0, run.signature)
    assert len(done["coverage"]["grid"]) == 2
    assert is_sampled(run, 4, outputs)
    assert not is_sampled(run, 5, outputs)
    assert not list(folder.glob("*.part"))
    assert len({clip.tobytes() for clip in clips(folder)}) == 4


def test_clips_that_are_drawn_wider_than_high_are_trained_and_sampled(micro, tmp_path: Path):
    run = micro("objective=flow", "scale.width=32", "scale.anchor_width=16", "train.updates=2", "sampling.count=2")
    train(run, tmp_path)
    folder = sample(run, tmp_path)
    assert clips(folder).shape == (2, 2, 16, 32, 3)
    assert clips(folder / "anchors").shape == (2, 2, 8, 16, 3)
    assert clips(write_reference(run, tmp_path) / "real").shape == (2, 2, 16, 32, 3)


@pytest.mark.parametrize(("pixels", "stored"), [(evaluate.SMALL_ANCHOR, 18), (2 * 8 * 8 - 1, evaluate.STORED_ANCHORS)])
def test_all_small_anchors_are_stored_and_of_large_ones_the_first(
    micro, outputs: Path, monkeypatch: pytest.MonkeyPatch, pixels: int, stored: int
):
    monkeypatch.setattr(evaluate, "SMALL_ANCHOR", pixels)
    run = micro(*SHORTCUT, "sampling.count=18")
    assert len(list((sample(run, outputs) / "anchors").glob("*.mkv"))) == stored


def test_clips_do_not_depend_on_how_they_are_batched_or_how_many_are_asked_for(micro, outputs: Path, tmp_path: Path):
    expected = clips(sampled(micro(*SHORTCUT), outputs, tmp_path, "two"))
    for size in (1, 3, 4):
        run = micro(*SHORTCUT, f"sampling.batch_size={size}")
        assert run.signature == micro(*SHORTCUT).signature
        result = clips(sampled(run, outputs, tmp_path, f"by_{size}"))
        assert np.abs(result.astype(int) - expected).max() <= 1  # a rounding, where sums are taken in another order
    few = clips(sampled(micro(*SHORTCUT), outputs, tmp_path, "few", limit=3))
    assert len(few) == 3
    assert np.abs(few.astype(int) - expected[:3]).max() <= 1


def test_lost_clips_come_back_and_the_others_stay(micro, outputs: Path):
    run = micro(*SHORTCUT)
    folder = sample(run, outputs)
    before = clips(folder)
    times = [(folder / f"{name}.mkv").stat().st_mtime_ns for name in ("0000", "0003")]
    (folder / "0002.mkv").unlink()  # half a batch of two, which is made whole: the same sums, so the same bits
    assert not is_sampled(run, 4, outputs)
    assert sample(run, outputs) == folder
    assert np.array_equal(clips(folder), before)
    assert [(folder / f"{name}.mkv").stat().st_mtime_ns for name in ("0000", "0003")] == times
    assert is_sampled(run, 4, outputs)


def test_an_unfinished_sampling_keeps_only_what_its_mark_lists(micro, outputs: Path):
    run = micro(*SHORTCUT)
    folder = sample(run, outputs)
    before, time = clips(folder), (folder / "0000.mkv").stat().st_mtime_ns
    first = [folder / "anchors" / "0000.mkv", folder / "0000.mkv", folder / "0001.mkv"]
    write_mark(folder / "sampled.json", {}, first)
    (folder / "done.json").unlink()
    shutil.copy(folder / "0000.mkv", folder / "0001.mkv")
    (folder / "0002.mkv").write_bytes(bytes(3000))
    assert np.array_equal(clips(sample(run, outputs)), before)
    assert (folder / "0000.mkv").stat().st_mtime_ns == time
    (folder / "done.json").unlink()  # and no other mark: nothing is known of them
    shutil.copy(folder / "0000.mkv", folder / "0001.mkv")
    assert np.array_equal(clips(sample(run, outputs)), before)


def test_more_clips_are_added_to_fewer(micro, outputs: Path):
    run = micro(*SHORTCUT)
    folder = sample(run, outputs, limit=2)
    assert json.loads((folder / "done.json").read_text())["clips"] == 2
    first = clips(folder)
    sample(run, outputs)
    assert len(clips(folder)) == 4
    assert np.array_equal(clips(folder)[:2], first)
    assert json.loads((folder / "done.json").read_text())["clips"] == 4


def test_another_evaluation_seed_has_other_clips_from_the_same_training(micro, outputs: Path):
    run = micro(*SHORTCUT)
    one, other = sample(run, outputs), sample(run, outputs, seed=5)
    assert one != other
    assert not np.array_equal(clips(one), clips(other))
    assert [path.name for path in (outputs / "train").iterdir()] == [run.training_signature]


def test_every_arm_is_sampled_for_the_same_anchors_from_the_same_noise(micro, outputs: Path):
    """Two arms that no training has told apart give the same clips."""
    one = micro("objective=flow", "train.updates=1", "optimizer.lr=1e-30")
    other = micro(
        "objective=shortcut", "weighting=uniform", "train.updates=1", "optimizer.lr=1e-30", "sampling.stride=zero"
    )
    assert one.signature != other.signature
    assert np.array_equal(clips(sample(one, outputs)), clips(sample(other, outputs)))


def test_the_reference_is_the_evaluation_clips_and_their_twins(micro, tmp_path: Path):
    run = micro(*SHORTCUT)
    folder = write_reference(run, tmp_path)
    evaluation = run.source.evaluation(4, run.seed)
    assert np.array_equal(clips(folder / "real"), to_uint8(torch.stack(list(evaluation.real))))
    assert np.array_equal(clips(folder / "real_b"), to_uint8(torch.stack(list(evaluation.real_b))))
    assert write_reference(micro("objective=flow"), tmp_path) == folder  # the same for every arm
    assert reference_folder(run, tmp_path, seed=1) != folder


@dataclass(frozen=True)
class Watched:
    """A run's clips; says how many are in memory at once at most, and stops after so many."""

    source: Source
    stops_after: int = 1_000
    indices: list[int] = field(default_factory=list)
    alive: list[int] = field(default_factory=lambda: [0, 0])  # now, at most

    def evaluation(self, count: int, seed: int) -> Evaluation:
        result = self.source.evaluation(count, seed)
        return replace(result, real=self.watch(result.real), real_b=self.watch(result.real_b))

    def watch(self, clips: Clips) -> Clips:
        def make(i: int) -> torch.Tensor:
            if len(self.indices) == self.stops_after:
                raise KeyboardInterrupt
            clip = clips[i].clone()
            self.indices.append(i)
            self.alive[0] += 1
            self.alive[1] = max(self.alive)
            weakref.finalize(clip.untyped_storage(), self.forget)
            return clip

        return Clips(len(clips), make)

    def forget(self) -> None:
        self.alive[0] -= 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@pytest.mark.parametrize("overrides", [SHORTCUT, (*SHORTCUT, "anchors=flawed"), ("stage=anchor", "train.updates=1")])
def test_one_evaluation_clip_is_in_memory_however_many_are_sampled(micro, tmp_path: Path, overrides: tuple[str, ...]):
    run = micro(*overrides, "sampling.count=9", "sampling.batch_size=3")
    watched = Watched(run.source)
    folder = sample(replace(run, source=watched), tmp_path)
    assert len(clips(folder)) == 9
    assert len(watched.indices) >= 2 * 9
    assert watched.alive == [0, 1]


def test_an_interrupted_reference_has_no_name_and_what_it_had_is_kept(micro, tmp_path: Path):
    run = micro("stage=anchor")
    expected = write_reference(run, tmp_path / "whole")
    stopped = replace(run, source=Watched(run.source, stops_after=5))
    with pytest.raises(KeyboardInterrupt):
        write_reference(stopped, tmp_path)
    folder = reference_folder(stopped, tmp_path)  # by its code another source, drawing the same clips
    assert not (folder / "real").exists()
    assert not (folder / "real_b").exists()
    first_times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mkv")}
    assert [path.name for path in sorted(first_times)] == ["0000.mkv", "0001.mkv", "0002.mkv", "0000.mkv", "0001.mkv"]
    (folder / ".real_b" / ".0002.mkv.1.part").write_bytes(b"cut off")
    shutil.copy(folder / ".real" / "0001.mkv", folder / ".real_b" / "0001.mkv")  # not what its mark lists
    watched = Watched(run.source)
    assert write_reference(replace(run, source=watched), tmp_path) == folder
    # real_b's second and third and the last ones; then all, for anchors
    assert watched.indices == [1, 2, 3, 3, 0, 0, 1, 1, 2, 2, 3, 3]
    times = {path.parent.name: path.stat().st_mtime_ns for path in folder.rglob("0000.mkv") if "real" in str(path)}
    assert times == {path.parent.name[1:]: then for path, then in first_times.items() if path.name == "0000.mkv"}
    for name in ("real", "real_b", anchor_reference(run).name, anchor_reference(run, twin=True).name):
        assert np.array_equal(clips(folder / name), clips(expected / name))
        assert len(list((folder / name).iterdir())) == 4
    mark, expected_mark = (check(path / "done.json") for path in (folder, expected))
    assert (
        mark["files"].keys()
        == expected_mark["files"].keys()
        == {str(path.relative_to(folder)) for path in folder.rglob("*.mkv")}
    )
    assert [mark[key] for key in ("clips", "seed", "note")] == [expected_mark[key] for key in ("clips", "seed", "note")]


def test_damaged_reference_clips_are_made_again_and_the_others_stay(micro, tmp_path: Path):
    run = micro("stage=anchor")
    folder = write_reference(run, tmp_path)
    before = {path: (path.stat().st_mtime_ns, read_video(path)) for path in folder.rglob("*.mkv")}
    damaged = [folder / "real" / "0001.mkv", anchor_reference(run, tmp_path) / "0002.mkv"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    write_reference(micro("stage=hires"), tmp_path)  # which needs no anchors: half a set of them is not of the mark
    assert not [name for name in check(folder / "done.json")["files"] if name.startswith(damaged[1].parent.name)]
    write_reference(run, tmp_path)
    assert check(folder / "done.json")["files"].keys() == {str(path.relative_to(folder)) for path in before}
    for path, (time, pixels) in before.items():
        assert np.array_equal(read_video(path), pixels)
        # those of the set that was left are not of any mark in between
        assert (path.stat().st_mtime_ns == time) == (path not in damaged and path.parent != damaged[1].parent)


def test_a_clip_is_the_solvers_answer_to_its_own_noise_and_anchor(micro, outputs: Path):
    """By hand, from the exported weights: x - span * v over the grid."""
    run = micro(*SHORTCUT)
    folder, module = sample(run, outputs), load_stage(run, outputs)
    state = torch.randn(48, 2, 4, 4, generator=generator(0, 2, INITIAL_NOISE))[None]
    anchor = evaluation_anchors(run, outputs, 0)([2])
    latent, text = module.anchor_latent(anchor), torch.zeros(1, 4, 8)
    # 2 steps at shift 4.5: 1000 -> 818.18 -> 0; strides 181.8 and 818.2, floored to even
    for timestep, end, stride in ((1000.0, 9000 / 11, 180.0), (9000 / 11, 0.0, 818.0)):
        t, s = torch.tensor([timestep]), torch.tensor([stride])
        with torch.no_grad():
            v = module.ema(state, t, s, text, latent, sigma_timestep=t)
        state = state - (timestep - end) / 1000 * v
    expected = to_uint8(module.codec.decode(state).clamp(-1, 1))[0]
    assert np.abs(read_video(folder / "0002.mkv").astype(int) - expected).max() <= 1


def test_weights_of_another_signature_are_refused(micro, outputs: Path):
    run, other = micro(*SHORTCUT), micro(*SHORTCUT, "injector=alpha_zero")
    folder = training_folder(other, outputs)
    folder.mkdir()
    shutil.copy(training_folder(run, outputs) / "ema.safetensors", folder)
    shutil.copy(training_folder(run, outputs) / "done.json", folder)
    with pytest.raises(DamagedResult, match=f"is of {run.training_signature}, not of {folder.name}"):
        load_stage(other, outputs)
    write_mark(folder / "done.json", {}, [folder / "ema.safetensors"])
    with pytest.raises(ValueError, match=r"another signature.*injector\.gate"):
        load_stage(other, outputs)


def test_a_flow_model_is_sampled_at_stride_zero_and_a_shortcut_at_its_strides(micro):
    feeds_strides = {}
    for objective in ("flow", "shortcut"):
        run = micro(f"objective={objective}")
        feeds_strides[objective] = run.feeds_strides()
    assert feeds_strides == {"flow": False, "shortcut": True}


@pytest.mark.parametrize(
    "overrides",
    [
        ("solver=unipc",),
        ("sampling.timesteps=[900,600,300]",),
        ("guidance=on", "guidance.drop=text_and_anchor", "guidance.first_steps=1"),
        ("anchors=clean",),
        ("anchors=flawed",),
        ("sampling.shift=1",),
    ],
    ids=lambda o: o[0],
)
def test_ways_of_sampling_share_one_training_and_differ_in_clips(micro, outputs: Path, overrides: tuple[str, ...]):
    # 3 steps: UniPC's first and last are of first order, so on 2 it is Euler
    # guidance steers away from dropped anchors, so it must have been trained on some
    shared = (*SHORTCUT, "sampling.num_steps=3", "train.condition_dropout=0.1")
    plain, other = (micro(*shared, *more) for more in ((), overrides))
    assert plain.training_signature == other.training_signature
    result = clips(sample(other, outputs))
    assert result.shape == (4, 2, 16, 16, 3)
    assert not np.array_equal(result, clips(sample(plain, outputs)))


def test_flawed_anchors_do_not_depend_on_how_they_are_batched(micro, outputs: Path, tmp_path: Path):
    expected = clips(sampled(micro(*SHORTCUT, "anchors=flawed"), outputs, tmp_path, "two"))
    result = clips(sampled(micro(*SHORTCUT, "anchors=flawed", "sampling.batch_size=3"), outputs, tmp_path, "three"))
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_stage_one_makes_clips_at_the_anchors_size_and_enlarges_them(micro, tmp_path: Path):
    run = micro("stage=anchor", "train.updates=2", "sampling.num_steps=2")
    folder = sample(run, tmp_path)
    assert clips(folder).shape == (4, 2, 16, 16, 3)
    assert clips(folder / "native").shape == (4, 2, 8, 8, 3)
    assert not list((folder / "anchors").iterdir())


def test_the_whole_pipeline_feeds_stage_twos_anchors_from_stage_one(micro, tmp_path: Path):
    stage_one = '["stage=anchor","start=none","sampling.num_steps=2","train.batch_size=2"]'
    run = micro(
        "objective=flow",
        "train.updates=2",
        "anchors=generated",
        "anchors.stage.updates=2",
        f"anchors.stage.overrides={stage_one}",
    )
    folder = sample(run, tmp_path)
    assert run.anchor_run is not None
    native = clips(sample(run.anchor_run, tmp_path, seed=run.seed) / "native")
    assert np.array_equal(clips(folder / "anchors"), native)
    anchors = evaluation_anchors(run, tmp_path, run.seed)(range(4))
    assert np.array_equal(anchors.numpy(), np.stack([to_float(clip) for clip in native]))
    reference = micro("objective=flow", "train.updates=2")
    assert reference.training_signature == run.training_signature
    assert not np.array_equal(clips(sample(reference, tmp_path)), clips(folder))
