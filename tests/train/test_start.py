"""Shipped starts: used if the recipe is the same, tuned if the data differs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_shards import write_noise

from experiments.engine.job import all_jobs
from experiments.engine.plan import make_plan, parse
from experiments.engine.run_ablation import main
from pw.io.arguments import ConfigError
from pw.io.manifest import read_mark, write_mark
from pw.run.build import LARGEST, Run, build, read_card
from pw.run.compose import groups
from pw.stages import stage_module
from pw.train import start
from pw.train.loop import train
from pw.train.record import start_file, training_folder

RECIPE = ["start.updates=3"]  # the whole recipe of the tiny scale, but short


@dataclass(frozen=True)
class StartFiles:
    """The folders of a start that `make start` wrote, and of its training."""

    out: Path
    outputs: Path
    training: Path

    @property
    def card(self) -> dict:
        return json.loads((self.out / "hires.json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StartFiles:
    outputs = tmp_path_factory.mktemp("outputs")
    assert start.main(["name=hires", f"outputs={outputs}", *RECIPE]) == 0
    (training,) = (outputs / "train").iterdir()
    return StartFiles(outputs / "starts", outputs, training)


@pytest.fixture
def shipped(files: StartFiles, monkeypatch: pytest.MonkeyPatch) -> StartFiles:
    """The same start, as the shipped start of the repository."""
    monkeypatch.setenv("PW_STARTS", str(files.out))
    return files


def start_of(*overrides: str) -> Run:
    run = build([*RECIPE, "train.updates=2", *overrides]).start_run
    assert run is not None
    return run


def plan_of(*words: str, outputs: Path) -> list[str]:
    options = ["name=ansc", "arms=baseline,full", "seeds=2", *RECIPE, f"outputs={outputs}", *words]
    return options


class TestMakingAStart:
    def test_writes_its_averaged_weights_and_a_card_of_what_they_are(self, files: StartFiles) -> None:
        card, weights = files.card, files.out / "hires.safetensors"
        trained = load_file(files.training / "ema.safetensors")
        shipped_weights = load_file(weights)
        # flow matching never trains the stride embedding: whoever departs from this draws another
        assert shipped_weights.keys() == {key for key in trained if not key.startswith("stride_embedding.")}
        dtype = getattr(torch, card["dtype"])
        assert all(torch.equal(shipped_weights[key], trained[key].to(dtype)) for key in shipped_weights)
        assert weights.stat().st_size <= LARGEST
        assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert card["configuration"] == start_of("start.shipped=false").configuration_signature
        assert card["code"] == start_of("start.shipped=false").training_code
        assert (card["updates"], card["seed"]) == (3, 1000)
        assert card["parameters"] == sum(value.numel() for value in shipped_weights.values())
        assert [update for update, _ in card["first_losses"]] == [3]
        assert [point["update"] for point in card["curve"]] == [3]
        assert card.keys() >= {"seconds", "machine", "torch", "date", "commit", "recipe"}

    def test_of_a_training_that_is_there_trains_nothing(self, files: StartFiles, tmp_path: Path) -> None:
        words = ["name=hires", f"training={files.training}", f"out={tmp_path / 'out'}", f"outputs={tmp_path}", *RECIPE]
        assert start.main(words) == 0
        assert not (tmp_path / "train").exists()
        assert (tmp_path / "out" / "hires.safetensors").read_bytes() == (files.out / "hires.safetensors").read_bytes()

    def test_of_an_older_suite_s_training_goes_by_its_configuration(
        self, files: StartFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = tmp_path / "old"
        shutil.copytree(files.training, old)
        done = {k: v for k, v in read_mark(old / "done.json").items() if k != "configuration"}
        write_mark(old / "done.json", done, [old / "ema.safetensors"])
        words = ["name=hires", f"training={old}", f"outputs={tmp_path}"]
        assert start.main([*words, *RECIPE]) == 0
        assert start.main([*words, "start.updates=4"]) == 1
        assert "is not of this recipe, train.updates is 3 there and 4 here" in capsys.readouterr().err

    def test_of_a_training_that_this_code_does_not_make_is_refused(
        self, files: StartFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = tmp_path / "other"
        shutil.copytree(files.training, other)
        point = json.loads((other / "metrics.jsonl").read_text())
        (other / "metrics.jsonl").write_text(json.dumps(point | {"loss_flow": point["loss_flow"] * 1.01}) + "\n")
        words = ["name=hires", f"training={other}", f"out={tmp_path / 'out'}", f"outputs={tmp_path}", *RECIPE]
        assert start.main(words) == 1
        assert f"{other / 'metrics.jsonl'}: has " in capsys.readouterr().err
        write_mark(other / "done.json", read_mark(other / "done.json"), [other / "metrics.jsonl"])
        assert start.main(words) == 1
        assert "its loss by update 3 was" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "name=: one of base, guided, hires"),
            (["name=hire"], "name=hire: one of base, guided, hires"),
            (["name=none"], "name=none: one of base, guided, hires"),
            (["name=hires", "optimizer.lrr=1"], "optimizer.lrr=1"),
            (["name=hires", "start.tuning=-1"], "start.tuning=-1"),
            (["name=hires", "start.tuning_lr=0"], "start.tuning_lr=0"),
        ],
    )
    def test_is_told_what_would_do(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert start.main(words) == 2
        assert message in capsys.readouterr().err


class TestARunOfTheShippedRecipe:
    def test_departs_from_the_shipped_weights_whatever_it_runs_on(self, shipped: StartFiles) -> None:
        for overrides in ([], ["trainer=gpu"], ["trainer.threads=2"], ["seed=3"], ["weighting=uniform"]):
            start_run = start_of(*overrides)
            assert start_run.card is not None
            assert start_file(start_run) == shipped.out / "hires.safetensors"
        assert start_of("trainer=gpu").training_signature == start_of().training_signature

    def test_has_a_signature_of_the_very_weights(self, shipped: StartFiles, tmp_path: Path, monkeypatch) -> None:
        signature = build(RECIPE).training_signature
        for path in shipped.out.iterdir():
            shutil.copy(path, tmp_path)
        weights = {key: value + 0.5 for key, value in load_file(tmp_path / "hires.safetensors").items()}
        save_file(weights, tmp_path / "hires.safetensors")
        sha256 = hashlib.sha256((tmp_path / "hires.safetensors").read_bytes()).hexdigest()
        (tmp_path / "hires.json").write_text(json.dumps(shipped.card | {"sha256": sha256}))
        monkeypatch.setenv("PW_STARTS", str(tmp_path))
        assert start_of().card is not None
        assert build(RECIPE).training_signature != signature

    def test_is_trained_from_them_and_says_so(self, shipped: StartFiles, tmp_path: Path) -> None:
        run = build([*RECIPE, "objective=flow", "train.updates=0"])
        folder = train(run, tmp_path)
        assert [path.name for path in (tmp_path / "train").iterdir()] == [folder.name]
        trained_weights, weights = load_file(folder / "ema.safetensors"), load_file(shipped.out / "hires.safetensors")
        assert all(torch.equal(trained_weights[key], weights[key].float()) for key in weights)
        shipped_start = json.loads((folder / "done.json").read_text())["shipped_start"]
        assert shipped_start == {"name": "hires", "updates": 3, "sha256": shipped.card["sha256"]}

    def test_has_no_start_to_train_in_an_ablation_which_says_so(
        self, shipped: StartFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = plan_of(outputs=tmp_path)
        jobs, _ = all_jobs(make_plan(parse(words)))
        assert not [job.label for job in jobs if job.kind == "train" and "start" in job.label]
        assert main([*words, "dry_run=true"]) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert f"start hires: shipped, 3 updates, sha256 {shipped.card['sha256'][:12]}" in output

    def test_trains_it_from_its_recipe_when_asked_to(self, shipped: StartFiles, tmp_path: Path) -> None:
        unshipped = start_of("start.shipped=false")
        assert unshipped.card is None
        assert unshipped.training_signature == shipped.training.name
        jobs, _ = all_jobs(make_plan(parse(plan_of("start.shipped=false", outputs=tmp_path))))
        assert f"train:{unshipped.training_signature}" in {job.key for job in jobs}

    def test_of_another_recipe_or_network_trains_its_own_and_says_why(
        self, shipped: StartFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for override, reason in (
            ("start.updates=4", "has another recipe"),
            ("start.seed=7", "has another recipe"),
            ("backbone.num_layers=2", "has another network"),
            ("injector.hidden=0.5", "has another network"),
        ):
            start_run = start_of(override)
            assert (start_run.card, start_run.start_run) == (None, None), override
            assert reason in start_run.note
        assert main([*plan_of("backbone.num_layers=2", outputs=tmp_path), "dry_run=true"]) == 0
        assert "3 flow updates, seed 1000 (the shipped start has another network)" in " ".join(
            capsys.readouterr().out.split()
        )

    def test_of_another_start_than_is_shipped_trains_its_own(self, shipped: StartFiles) -> None:
        start_run = start_of("start=base")
        assert (start_run.card, start_run.note) == (None, "")


class TestOtherData:
    WORDS = ("start.tuning=2", "train.batch_size=2")

    def urls(self, folder: Path) -> list[str]:
        return ["data=shards", f"data.urls={write_noise(folder, train=8, val=4)}/*.tar"]

    def test_are_met_by_the_shipped_weights_tuned_to_them_shortly(self, shipped: StartFiles, tmp_path: Path) -> None:
        start_run = start_of(*self.urls(tmp_path), "start.tuning=5", "start.tuning_lr=2e-4")
        assert (start_run.train.updates, start_run.optimizer.lr) == (5, 2e-4)
        assert start_run.config.choices["data"] == "shards"
        assert start_run.start_run is not None
        assert start_run.start_run.card is not None
        others = [start_of(*self.urls(tmp_path), *words) for words in (["start.tuning=6"], ["start.tuning_lr=1e-4"])]
        assert len({start_run.training_signature, *(other.training_signature for other in others)}) == 3
        assert start_of("degradation.blur=[2,2]").start_run is not None  # other anchors are other data, too

    def test_share_the_tuned_start_between_all_arms_which_is_said(
        self, shipped: StartFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = plan_of(*self.urls(tmp_path), "start.tuning=1500", outputs=tmp_path / "outputs")
        plan = make_plan(parse(words))
        (tuned,) = {run.start_run.training_signature for _, _, run in plan.runs() if run.start_run}
        keys = [job.key for job in all_jobs(plan)[0] if job.kind == "train"]
        assert keys.count(f"train:{tuned}") == 1
        assert len(keys) == 5  # two arms, two seeds, and the one that they depart from
        assert main([*words, "dry_run=true"]) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert f"start checkpoint {tuned}: hires: shipped, 3 updates" in output
        assert "then 1,500 updates on these data at a learning rate of 0.001" in output

    def test_train_from_scratch_without_the_shipped_one(self, shipped: StartFiles, tmp_path: Path) -> None:
        urls = self.urls(tmp_path)
        for overrides in (["start.shipped=false"], ["start.tuning=0"]):
            start_run = start_of(*urls, *overrides)
            assert (start_run.start_run, start_run.train.updates) == (None, 3)

    def test_are_trained_on_from_the_shipped_weights(self, shipped: StartFiles, tmp_path: Path) -> None:
        run = build([*RECIPE, *self.urls(tmp_path), "start.tuning=1", "objective=flow", "train.updates=0"])
        assert run.start_run is not None
        train(run, tmp_path / "outputs")
        done = json.loads((training_folder(run.start_run, tmp_path / "outputs") / "done.json").read_text())
        assert done["updates"] == 1
        assert done["shipped_start"]["name"] == "hires"
        tuned, weights = (
            load_file(start_file(run.start_run, tmp_path / "outputs")),
            load_file(shipped.out / "hires.safetensors"),
        )
        difference = max(float((tuned[key] - weights[key].float()).abs().max()) for key in weights)
        assert 0 < difference < 0.05


@pytest.mark.parametrize("damage", ["weights", "card", "gone"])
def test_a_damaged_shipped_start_is_named_with_what_would_do(
    damage: str, files: StartFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in files.out.iterdir():
        shutil.copy(path, tmp_path)
    file = tmp_path / f"hires.{'json' if damage == 'card' else 'safetensors'}"
    file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:-7])
    monkeypatch.setenv("PW_STARTS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"hires\..*start\.shipped=false") as error:
        start_of()
    assert str(file) in str(error.value)
    assert start_of("start.shipped=false").card is None


COMMITTED = [name for name in groups()["start"] if name != "none" and read_card(name)]


@pytest.mark.skipif(bool(COMMITTED), reason="some are")
def test_without_a_shipped_start_every_start_is_trained_from_its_recipe() -> None:
    run = build([]).start_run
    assert run is not None
    assert (run.card, run.note) == (None, "")


@pytest.mark.parametrize("name", COMMITTED)
class TestACommittedStart:
    def test_is_the_one_that_its_recipe_asks_for_and_fits_its_network(self, name: str) -> None:
        run = build([f"start={name}"]).start_run
        assert run is not None
        assert run.card is not None, f"pw/starts/{name} is of another recipe than conf/start/{name}.yaml"
        assert run.card.file.stat().st_size <= LARGEST
        weights = load_file(run.card.file)
        module = stage_module(run)
        module.configure_model()
        ema = {k: v for k, v in module.ema.state_dict().items() if not k.startswith("stride_embedding.")}
        assert {key: value.shape for key, value in weights.items()} == {k: v.shape for k, v in ema.items()}
        assert run.card.content["parameters"] == sum(value.numel() for value in weights.values())
        assert all(bool(value.isfinite().all()) for value in weights.values())

    def test_begins_as_this_code_begins(self, name: str) -> None:
        """If a change of code is meant to change it, train it again: `make start name=… args="out=pw/starts"`."""
        run = build([f"start={name}"]).start_run
        assert run is not None
        card = run.card
        assert card is not None
        run = replace(run, card=None)  # what it departs from may be shipped
        expected, losses = card.content["first_losses"], start.first_losses(run)
        assert [update for update, _ in losses] == [update for update, _ in expected]
        for (update, loss), (_, recorded) in zip(losses, expected, strict=True):
            assert math.isclose(loss, recorded, rel_tol=start.TOLERANCE), (
                f"this code (hash {run.training_code}) no longer makes start {name}, which code {card.content['code']} "
                f"made: the loss by update {update} is {loss}, was {recorded}"
            )
