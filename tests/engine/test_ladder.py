"""`pw ladder`: which arms stop when, what one scale says about the next, and a whole ladder of two small scales."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.stats.comparison import paired_t
from benchmarks.stats.sequential import bound
from experiments.engine.ablation import Clause, all_of, better, not_worse
from experiments.engine.ladder.claim_looks import ClaimAnswer, PairDifference, climb
from experiments.engine.ladder.ladder_command import LadderOptions, main, misfit, plan_rungs
from experiments.engine.ladder.ladder_report import RungOutcome, predict
from experiments.engine.plan import make_plan
from experiments.engine.plan import parse as parse_ablation
from pw.io.arguments import parse

ROOT = Path(__file__).parents[2]
SEEDS = (7, 3, 5, 1, 2)  # in this order
# psd, lower is better: `far` is 3 below `base` with hardly any spread, `near` is as good as base, `down` is worse
NOISE = {7: 0.00, 3: 0.02, 5: -0.03, 1: 0.01, 2: 0.02}
PSD = {
    "base": {seed: 4 + seed / 10 for seed in SEEDS},
    "far": {seed: 1 + seed / 10 + NOISE[seed] for seed in SEEDS},
    "near": {7: 4.75, 3: 4.26, 5: 4.53, 1: 4.06, 2: 4.21},
    "down": {seed: 5 + seed / 10 - NOISE[seed] for seed in SEEDS},
}
SCORES = {arm: {seed: {"psd": value} for seed, value in values.items()} for arm, values in PSD.items()}


class Simulated:
    """Scores that appear as they are asked for. asked: the numbers of seeds of each call."""

    def __init__(self, scores: Mapping[str, Any] = SCORES) -> None:
        self.scores, self.asked = scores, []

    def __call__(self, counts: Mapping[str, int]) -> dict[str, Any]:
        self.asked.append(dict(counts))
        return {arm: {seed: self.scores[arm][seed] for seed in SEEDS[:n]} for arm, n in counts.items()}


def climbed(*clauses: Clause, scores: Mapping[str, Any] = SCORES) -> tuple[list[ClaimAnswer], Simulated]:
    simulated = Simulated(scores)
    answers, counts = climb(clauses, [*scores], "psd", SEEDS, simulated)
    assert counts == simulated.asked[-1]
    return answers, simulated


class TestAnArm:
    def test_stops_when_every_claim_about_it_is_decided(self) -> None:
        (far, near), simulated = climbed(better("far", "base"), better("near", "far"))
        # far − base: −3 and −2.98 are t = −299 with 1 df, p = 0.0021, above the bound of two of five seeds (0.0019);
        # with −3.03 t = −206 with 2 df, p = 2e-5
        assert (far.answer, far.seeds) == ("holds", 3)
        assert (near.answer, near.seeds) == ("refuted", 3)
        assert simulated.asked == [dict.fromkeys(SCORES, 2), {"base": 3, "far": 3, "near": 3, "down": 2}]

    def test_goes_on_while_one_claim_about_it_is_open(self) -> None:
        noisy = {seed: {"psd": 4 + seed / 10 - 0.3 * k} for k, seed in zip((1, 2.9, 0.4, 1.5, 1.2), SEEDS, strict=True)}
        (far, close), simulated = climbed(
            better("far", "base"), better("near", "base"), scores=SCORES | {"near": noisy}
        )
        assert far.seeds == 3
        assert close.seeds > 3
        assert {row["base"] for row in simulated.asked[2:]} == set(range(4, close.seeds + 1))
        assert simulated.asked[-1]["far"] == 3

    def test_stops_for_futility_when_the_remaining_seeds_would_hardly_decide(self) -> None:
        (near,), simulated = climbed(better("near", "base"))
        assert near.answer == "not resolved"
        assert near.seeds < 5
        assert near.reason.startswith("futile: more seeds would decide it with ")
        assert max(simulated.asked[-1].values()) == near.seeds

    def test_runs_all_seeds_for_equality_within_a_margin_that_is_not_shown_before(self) -> None:
        (near,), simulated = climbed(not_worse("near", "base", margin=0.012))
        assert simulated.asked[-1]["near"] == near.seeds > 2
        assert "futile" not in near.reason


class TestAClaim:
    def test_is_decided_at_the_first_look_below_its_bound(self) -> None:
        """By the table's own t, on scores of both signs and sizes; looks after the decision change nothing."""
        rng = np.random.default_rng(4)
        for effect in (0.0, 0.3, 1.0, 4.0, -2.0) * 6:
            a, b = rng.standard_normal((2, 5)) * 0.2
            arms = {"a": dict(zip(SEEDS, a + effect, strict=True)), "b": dict(zip(SEEDS, b, strict=True))}
            scores = {arm: {s: {"psd": float(v)} for s, v in row.items()} for arm, row in arms.items()}
            (answer,), _ = climbed(better("a", "b"), scores=scores)
            difference = a + effect - b
            crossed = [n for n in (2, 3, 4, 5) if paired_t(difference[:n])[2] < bound(n, 5)]
            if answer.is_resolved:
                assert answer.seeds == crossed[0]
                mean = difference[: crossed[0]].mean()
                assert answer.answer == ("holds" if mean < 0 else "refuted")
                assert answer.differences[0].diff == pytest.approx(mean)
                assert answer.p < 0.05
            else:
                assert not crossed or answer.reason.startswith("futile")
                assert not any(n <= answer.seeds for n in crossed)

    def test_of_several_pairs_holds_when_all_of_them_do_at_the_same_look(self) -> None:
        (both,), _ = climbed(all_of("both", better("far", "base"), better("far", "down")))
        assert (both.answer, both.sign) == ("holds", True)
        (mixed,), _ = climbed(all_of("mixed", better("far", "base"), better("down", "base")))
        assert (mixed.answer, mixed.sign) == ("refuted", None)

    def test_of_one_clear_and_one_idle_pair_is_futile(self) -> None:
        (answer,), _ = climbed(all_of("both", better("far", "base"), better("near", "base")))
        assert answer.answer == "not resolved"
        assert answer.reason.startswith("futile")

    def test_counts_no_seed_beyond_those_that_the_ladder_ran(self) -> None:
        """All scores may be on disk already, of an ordinary ablation."""
        whole, part = Simulated(), Simulated()
        clauses = (better("far", "base"), better("near", "far"))
        answers = [climb(clauses, [*SCORES], "psd", SEEDS, run)[0] for run in (lambda counts: whole.scores, part)]
        assert answers[0] == answers[1]


def outcome(scale: str, answers: Sequence[tuple[str, bool | None]]) -> RungOutcome:
    rows = [
        ClaimAnswer(f"claim {i}", answer, 3, 0.01, "", (PairDifference("a, b", "psd", 0.1, gains),))
        for i, (answer, gains) in enumerate(answers)
    ]
    return RungOutcome(scale, rows, {"a": 3, "b": 3}, SEEDS, "")


class TestThePrediction:
    def test_counts_what_the_smaller_scale_said_of_the_larger(self) -> None:
        small = [("holds", True), ("holds", True), ("not resolved", True), ("refuted", False), ("not resolved", None)]
        large = [("holds", True), ("refuted", False), ("holds", True), ("refuted", False), ("not resolved", True)]
        found = predict(outcome("tiny", small), outcome("small", large))
        assert found.outcomes == {
            "same verdict": 2,
            "reversed": 1,
            "resolved at one scale alone": 1,
            "resolved at neither": 1,
        }
        assert found.signs == (3, 4)
        # Clopper-Pearson of 3 in 4: beta quantiles 0.025 of (3, 2) and 0.975 of (4, 1), the latter 0.975^(1/4)
        assert found.low == pytest.approx(0.194, abs=0.001)
        assert found.high == pytest.approx(0.975**0.25)
        assert str(found).startswith("tiny → small: of 5 claims: same verdict 2, reversed 1, ")
        assert "same sign in 3 of 4 (95 % interval 19 to 99 %" in str(found)

    def test_of_no_sign_has_no_interval(self) -> None:
        found = predict(outcome("tiny", [("not resolved", None)]), outcome("small", [("holds", True)]))
        assert (found.signs, found.low, found.high) == ((0, 0), None, None)
        assert "same sign in 0 of 0" in str(found)
        assert "interval" not in str(found)


def planned(*words: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(scale -> rung, scale -> why it is left out)."""
    rungs, left_out = plan_rungs(parse(LadderOptions, [*words, "dry_run=true"]))
    return {rung.scale: rung for rung in rungs}, left_out


class TestThePlan:
    def test_names_what_a_scale_lacks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # without data/shards
        rungs, left_out = planned("name=ansc", "arms=baseline,full", f"outputs={tmp_path / 'out'}")
        assert [*rungs] == ["tiny"]
        cut = "no clips: `pw data path=DIR scale=small` cuts them from your videos, then "
        assert left_out["small"] == f"{cut}small.data.urls=data/shards-small"
        assert "data=none: name its clips by proxy.data=latents proxy.data.urls=DIR" in left_out["proxy"]
        assert [clause.text for clause in rungs["tiny"].clauses] == ["all of it beats the baseline"]
        assert not (tmp_path / "out").exists()

    def test_gives_a_scale_its_own_words_in_place_of_those_of_all(self, tmp_path: Path) -> None:
        words = ["arms=baseline,full", "seeds=4", "tiny.seeds=[5,2,9]", "train.updates=7", "tiny.train.batch_size=3"]
        rungs, _ = planned("name=ansc", "scales=tiny,proxy", *words, f"outputs={tmp_path}")
        run = rungs["tiny"].plan.arms[0].first
        assert rungs["tiny"].plan.options.seeds == (5, 2, 9)
        assert (run.train.updates, run.train.batch_size, run.scale.name) == (7, 3, "tiny")
        assert rungs["tiny"].plan.folder == tmp_path / "ladder-ansc" / "tiny"
        assert 0 < rungs["tiny"].seconds[0] < rungs["tiny"].seconds[1]

    def test_of_a_part_has_the_first_seeds_of_each_arm(self, tmp_path: Path) -> None:
        rungs, _ = planned("name=ansc", "scales=tiny,proxy", "seeds=[4,0,2]", f"outputs={tmp_path}")
        arms = [arm.name for arm in rungs["tiny"].plan.arms]
        part = rungs["tiny"].part(dict.fromkeys(arms, 2) | {"full": 3})
        assert {(arm.name, seed) for arm, seed, _ in part.runs()} == {
            *((arm, seed) for arm in arms for seed in (4, 0)),
            ("full", 2),
        }
        assert {probe.seed for probe in part.probes} == {4, 0}
        assert "too narrow" in part.table_note
        assert rungs["tiny"].part(dict.fromkeys(arms, 3)).table_note == ""

    def test_does_not_fit_a_card_that_is_too_small(self) -> None:
        words = ["name=steps", "scale=proxy", "seeds=2", "optimizer.lr=1e-5", "optimizer.final_lr=1"]
        plan = make_plan(parse_ablation(words))
        assert "does not fit" in misfit(plan, "RTX4090")
        assert misfit(plan, "H200") == ""

    # (words, what the message says)
    @pytest.mark.parametrize(
        ("words", "parts"),
        [
            ([], ["name=… is missing"]),
            (["name=ans"], ["no such ablation", "did you mean ansc?"]),
            (["name=ansc", "scales=tiny,proxxy"], ["scales=proxxy", "did you mean proxy?"]),
            (["name=ansc", "scales=2k,tiny"], ["from cheap to dear", "scales=tiny,2k"]),
            (["name=ansc", "scales=tiny"], ["two or more", "pw ablation"]),
            (["name=ansc", "scales=tiny,tiny"], ["two or more"]),
            (["name=ansc", "seeds=1"], ["seeds=1", "seeds=2"]),
            (["name=ansc", "scale=tiny"], ["scales=tiny,small,proxy"]),
            (["name=ansc", "scales=tiny,proxy", "2k.seeds=3"], ["2k.seeds=3", "has no 2k"]),
            (["name=ansc", "fresh=true"], ["has no fresh"]),
            (["name=ansc", "arms=uniform,full"], ["no claim is about uniform, full alone"]),
            (["name=ansc", "tiny.wieghting=uniform"], ["tiny: ", "did you mean weighting?"]),
            (["name=ansc", "arms=baseline,full", "scales=tiny,proxy"], ["compares two", "tiny can run", "data=none"]),
        ],
        ids=" ".join,
    )
    def test_of_wrong_words_is_one_line(
        self, words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*words, f"outputs={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not [part for part in parts if part not in error], error
        assert not (tmp_path / "out").exists()


ABLATION = '''"""Do more updates help?

Claim     They do.
Refuted   if not.
Verdict   not run yet.
"""

from experiments import Ablation, better

ABLATION = Ablation(
    fixed="stage=hires sampling.num_steps=2 sampling.solution_steps=2 sampling.count=4 start.updates=2",
    varies=("train.updates",),
    arms={"two": "train.updates=2", "four": "train.updates=4", "six": "train.updates=6"},
    claims=(better("four", "two", "four updates beat two"), better("six", "four", "six updates beat four")),
    metrics=("psd",),
)
'''
SCALE = "# @package _global_\ndefaults:\n  - tiny\n  - _self_\nscale:\n  name: short\n  frames: 2\n"
WORDS = ["name=longer", "scales=short,tiny", "seeds=3", "train.batch_size=2", "workers=2"]


def ladder(folder: Path, words: Sequence[str] = WORDS) -> subprocess.Popen[str]:
    """A ladder that runs in a user's folder with a scale and an ablation of its own."""
    (folder / "conf/scale").mkdir(parents=True, exist_ok=True)
    (folder / "conf/scale/short.yaml").write_text(SCALE)
    (folder / "experiments").mkdir(exist_ok=True)
    (folder / "experiments/longer.py").write_text(ABLATION)
    command = [sys.executable, "-m", "pw", "ladder", *words, f"outputs={folder / 'out'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams)


def trained(outputs: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in outputs.glob("train/*/done.json")}


@pytest.mark.slow
def test_a_ladder_that_is_stopped_goes_on_to_its_end_and_does_nothing_twice(tmp_path: Path) -> None:
    outputs, stopped = tmp_path / "out", ladder(tmp_path)
    deadline = time.monotonic() + 900
    while len(trained(outputs)) < 3 and stopped.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=900)
    assert stopped.returncode == 128 + signal.SIGTERM, output
    assert "run the same command again to resume" in output
    before = trained(outputs)
    assert len(before) >= 3
    assert not (outputs / "ladder-longer/ladder.json").exists()

    second = ladder(tmp_path)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output
    now = trained(outputs)
    assert {name: now[name] for name in before} == before
    assert "short → tiny: of 2 claims" in output

    folder = outputs / "ladder-longer"
    found = json.loads((folder / "ladder.json").read_text())
    assert [rung["scale"] for rung in found["rungs"]] == ["short", "tiny"]
    assert sum(found["predictions"][0]["outcomes"].values()) == 2
    # what ran is what the ladder says: trainings of each scale, and a start for each
    assert len(now) == 2 + sum(sum(rung["counts"].values()) for rung in found["rungs"])
    for rung in found["rungs"]:
        table = json.loads((folder / rung["scale"] / "table.json").read_text())
        assert table["scale"] == rung["scale"]
        assert {arm["name"]: len(arm["values"]["psd"]) for arm in table["arms"]} == rung["counts"]
        assert all(arm["status"] == "ok" for arm in table["arms"])
        for answer, (arm, other) in zip(rung["answers"], (("four", "two"), ("six", "four")), strict=True):
            values = {row["name"]: row["values"]["psd"] for row in table["arms"]}
            seeds = [str(seed) for seed in range(answer["seeds"])]
            mean = sum(values[arm][seed] - values[other][seed] for seed in seeds) / len(seeds)
            assert answer["differences"][0]["diff"] == pytest.approx(mean)
            assert answer["answer"] in ("holds", "refuted", "not resolved")
    text = (folder / "ladder.md").read_text()
    assert "six updates beat four" in text
    assert "short → tiny" in text
    assert "six updates beat four" in (folder / "index.html").read_text()

    files = {path: path.stat().st_mtime_ns for path in outputs.glob("[tvs]*/**/*") if path.is_file()}
    third = ladder(tmp_path)
    output, _ = third.communicate(timeout=900)
    assert third.returncode == 0, output
    assert json.loads((folder / "ladder.json").read_text()) == found
    marks = [path for path in files if path.name in ("done.json", "scores.json")]
    assert len(marks) > 30
    assert {path: path.stat().st_mtime_ns for path in marks} == {path: files[path] for path in marks}


@pytest.mark.slow
def test_a_ladder_without_clips_for_other_scales_runs_tiny_alone(tmp_path: Path) -> None:
    process = ladder(tmp_path, ["name=longer", "arms=two,four", "seeds=2", "train.batch_size=2"])
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert output.count("small is left out: no clips: `pw data path=DIR scale=small`") == 1
    found = json.loads((tmp_path / "out/ladder-longer/ladder.json").read_text())
    assert [(rung["scale"], rung["counts"]) for rung in found["rungs"]] == [("tiny", {"two": 2, "four": 2})]
    assert found["predictions"] == []
    assert (tmp_path / "out/ladder-longer/ladder.md").read_text().startswith("# Do more updates help? At tiny\n")
