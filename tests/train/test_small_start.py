"""A shipped start of another scale than tiny, trained on shards: found by scale and recipe, whatever the clips."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pw.io.arguments import ConfigError
from pw.io.files import sha256
from pw.io.paths import ROOT
from pw.io.video import write_video
from pw.prepare import ingest
from pw.run.build import LARGEST, Run, build, read_card
from pw.stages import stage_module
from pw.train import start
from pw.train.record import start_file

SMALL = ("scale=small", "start.updates=1")
CLIPS = ROOT.parent / "shared" / "data" / "clips"


def cut(folder: Path, seed: int) -> Path:
    """The shards that `pw data` makes for this scale of a video: a picture of noise that pans."""
    (folder / "videos").mkdir()
    picture = np.random.default_rng(seed).integers(0, 256, (128, 160, 3), np.uint8)
    write_video(folder / "videos" / "noise.mkv", np.stack([np.roll(picture, n, 1) for n in range(60)]), 25)
    assert ingest.main([f"path={folder / 'videos'}", "scale=small", f"out={folder / 'shards'}"]) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut(tmp_path_factory.mktemp("clips"), seed=0)


@pytest.fixture(scope="module")
def starts(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pw start` writes at this scale."""
    outputs = tmp_path_factory.mktemp("outputs")
    assert start.main(["name=hires", f"outputs={outputs}", f"data.urls={clips}", *SMALL]) == 0
    return outputs / "starts"


@pytest.fixture
def shipped(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW_STARTS", str(starts))


def start_of(*overrides: str) -> Run:
    run = build([*SMALL, *overrides]).start_run
    assert run is not None
    return run


@pytest.mark.usefixtures("shipped")
class TestAStartThatWasTrainedOnShards:
    def test_is_named_after_its_scale_and_says_what_it_saw(self, starts: Path, clips: Path) -> None:
        assert sorted(path.name for path in starts.iterdir()) == ["hires-small.json", "hires-small.safetensors"]
        card = json.loads((starts / "hires-small.json").read_text())
        own = start_of(f"data.urls={clips}", "start.shipped=false")
        assert (card["scale"], card["configuration"]) == ("small", own.configuration_signature)
        assert card["without_data"] == start_of("data=none", "start.shipped=false").configuration_signature
        assert card["videos"] == {"noise.mkv": sha256(clips.parent / "videos" / "noise.mkv")}
        assert (starts / "hires-small.safetensors").stat().st_size <= LARGEST

    def test_is_where_the_same_clips_depart_from(self, starts: Path, clips: Path) -> None:
        run = start_of(f"data.urls={clips}")
        assert run.card is not None
        assert start_file(run) == starts / "hires-small.safetensors"

    def test_is_planned_with_by_who_has_no_clips(self) -> None:
        assert start_of("data=none").card is not None

    def test_is_tuned_to_other_clips_at_any_size_of_the_same_network(self, tmp_path: Path) -> None:
        urls = f"data.urls={cut(tmp_path, seed=1)}"
        for others in ((), ("scale.shift=5",)):
            run = start_of(urls, "start.tuning=7", *others)
            assert (run.card, run.train.updates) == (None, 7)
            assert run.start_run is not None
            assert run.start_run.card is not None
        assert start_of("data=procedural").start_run is not None

    @pytest.mark.parametrize(
        ("override", "reason"),
        [
            ("start.updates=2", "has another recipe"),
            ("start.seed=7", "has another recipe"),
            ("backbone.num_layers=2", "has another network"),
            ("start.tuning=0", "is not tuned"),
        ],
    )
    def test_of_another_recipe_or_network_is_not_taken(self, override: str, reason: str, tmp_path: Path) -> None:
        run = start_of(f"data.urls={cut(tmp_path, seed=1)}", override)
        assert (run.card, run.start_run) == (None, None)
        assert reason in run.note

    def test_is_not_that_of_the_default_scale(self) -> None:
        run = build(["start.updates=1"]).start_run
        assert run is not None
        assert (run.card, run.note) == (None, "")


class TestTheRecipeAtThisScale:
    def test_is_the_scales_for_hires_alone(self) -> None:
        settings = yaml.safe_load((ROOT / "conf/scale/small.yaml").read_text())["start"]
        assert [*settings] == ["hires"]
        hires = build(["scale=small", "data=none"]).start
        assert {key: getattr(hires, key) for key in settings["hires"]} == settings["hires"]
        assert build(["scale=small", "data=none", "start.updates=7"]).start.updates == 7
        for name in ("base", "guided", "none"):
            assert build(["scale=small", "data=none", f"start={name}"]).start == build([f"start={name}"]).start

    def test_of_stage_i_is_that_of_base_for_another_network(self) -> None:
        anchor = build(["scale=small", "data=none", "anchors=generated"]).anchor_run
        assert anchor is not None
        start = anchor.start_run
        assert start is not None
        assert (start.card, start.train.updates) == (None, build(["start=base"]).start.updates)
        assert start.note == "the shipped start has another network"

    def test_is_refused_under_an_unknown_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "conf/scale").mkdir(parents=True)
        text = "# @package _global_\ndefaults:\n  - tiny\n  - _self_\nstart:\n  hirse:\n    updates: 3\n"
        (tmp_path / "conf/scale/mine.yaml").write_text(text)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=r"start\.hirse"):
            build(["scale=mine"])


COMMITTED = ROOT / "pw" / "starts"


@pytest.mark.skipif(not (COMMITTED / "hires-small.json").exists(), reason="none is committed")
class TestTheCommittedOne:
    def test_is_the_one_that_its_recipe_asks_for_and_fits_its_network(self) -> None:
        run = build(["scale=small", "data=none"]).start_run
        assert run is not None
        assert run.card is not None, "pw/starts/hires-small is of another recipe than conf/scale/small.yaml"
        assert run.card.updates == run.train.updates
        assert run.card.file.stat().st_size <= LARGEST
        weights, module = load_file(run.card.file), stage_module(run)
        module.configure_model()
        ema = {k: v for k, v in module.ema.state_dict().items() if not k.startswith("stride_embedding.")}
        assert {key: value.shape for key, value in weights.items()} == {k: v.shape for k, v in ema.items()}
        assert run.card.content["parameters"] == sum(value.numel() for value in weights.values())
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())

    @pytest.mark.slow
    @pytest.mark.skipif(not CLIPS.is_dir(), reason="../shared/data/clips is not here")
    def test_begins_as_this_code_begins_on_clips_that_pw_data_makes_again(self, tmp_path: Path) -> None:
        out = tmp_path / "shards"
        assert ingest.main([f"path={CLIPS}", "scale=small", f"out={out}"]) == 0
        run = build(["scale=small", f"data.urls={out}"]).start_run
        card = read_card("hires", "small")
        assert run is not None
        assert card is not None
        assert run.card == card  # the very clips
        losses = start.first_losses(replace(run, card=None))
        for (update, loss), (recorded_update, recorded) in zip(losses, card.content["first_losses"], strict=True):
            assert update == recorded_update
            assert math.isclose(loss, recorded, rel_tol=start.TOLERANCE)
