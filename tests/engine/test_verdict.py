"""Verdicts: clauses on small tables with p worked out by hand, their printed text, and their records."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import t, ttest_rel

from benchmarks.metrics import protocols
from benchmarks.report.page import evidence_of, page_html
from benchmarks.report.write import latex, markdown, terminal_verdict
from benchmarks.stats.comparison import compare
from experiments.engine.ablation import (
    Ablation,
    Clause,
    Statement,
    all_of,
    any_of,
    better,
    load,
    names,
    not_worse,
    same,
    statement,
)
from experiments.engine.job import all_jobs
from experiments.engine.outcome.result_files import read_result
from experiments.engine.outcome.table import make_table
from experiments.engine.outcome.verdict import (
    ANSWERS,
    MAX_BYTES,
    RESULTS,
    TABLE_TYPES,
    clauses_of,
    digest_of,
    digest_text,
    main,
    record,
    summary,
    verdict,
)
from experiments.engine.plan import make_plan, parse, plan_of
from experiments.engine.run_ablation import finish
from pw.io.arguments import ConfigError
from pw.io.manifest import write_mark
from pw.io.video import write_video
from pw.sample.clip_folders import sample_folder

BASE = (4.0, 4.2, 4.1)
# psd is lower-is-better. Differences to BASE, over their sd / sqrt(3), are the paired t of two degrees of freedom.
ARMS = {
    "base": BASE,
    "far": (1.0, 1.25, 1.05),  # −3 ± 0.05: t = −104, p < 0.001
    "near": (3.9, 4.2, 4.0),  # −0.1, 0, −0.1: t = −2, p = 0.18
    "bad": (5.0, 5.25, 5.05),  # +1, +1.05, +0.95
    "slip": (4.04, 4.26, 4.14),  # +0.04, +0.06, +0.04: worse, and by a hundredth
}
SCORES = {arm: {seed: {"psd": value} for seed, value in enumerate(values)} for arm, values in ARMS.items()}


def contradictions(digest: Mapping[str, Any], description: Statement, clauses: Sequence[str]) -> list[str]:
    """Contradictions between an ablation file and its recorded result; empty if they agree.

    clauses: the texts of the clauses that the file has now.
    """
    name, clauses_then = digest["ablation"], [row["clause"] for row in digest["verdict"]]
    wrong = []
    if clauses_then != list(clauses):
        wrong.append(
            f"{name}: recorded for the clauses {clauses_then}, the file has {list(clauses)}; make record name={name}"
        )
    if unknown := {row["answer"] for row in digest["verdict"]} - set(ANSWERS):
        wrong.append(f"{name}: no such answer: {', '.join(sorted(unknown))}")
    beginning = summary(digest["scale"], digest["seeds"], digest["verdict"])
    if not description.verdict.startswith(beginning):
        wrong.append(f"{name}: its Verdict must begin with: {beginning}")
    return wrong


def records(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Every recorded result by the name of its ablation."""
    return {path.stem: read_result(path, TABLE_TYPES, "make record") for path in sorted(results.glob("*.json"))}


def answer(clause: Clause, scores: dict = SCORES, primary: str = "psd") -> tuple[str, str]:
    (row,) = verdict([clause], scores, primary)
    assert row["clause"] == clause.text
    return row["answer"], row["evidence"]


class TestAClauseOfOnePair:
    def test_holds_is_refuted_or_not_resolved_as_the_table_marks_the_difference(self) -> None:
        assert answer(better("far", "base"))[0] == "holds"
        assert answer(better("bad", "base"))[0] == "refuted"
        assert answer(better("near", "base"))[0] == "not resolved"
        marks = compare(SCORES, primary="psd", versus=dict.fromkeys(SCORES, "base")).differences
        assert {arm: row["psd"].verdict for arm, row in marks.items() if row} == {
            "far": "better",
            "near": "no difference shown",
            "bad": "worse",
            "slip": "worse",
        }

    def test_gives_the_numbers_that_it_rests_on(self) -> None:
        # by hand: −3, −2.95 and −3.05 have the sd 0.05
        interval = ttest_rel(ARMS["far"], BASE).confidence_interval()
        assert (interval.high - interval.low) / 2 == pytest.approx(4.302652729749 * 0.05 / 3**0.5, rel=1e-6)
        assert answer(better("far", "base"))[1] == "psd 4.10 → 1.10 dB, −3.00 ± 0.12, p<0.001"

    def test_of_a_difference_in_a_higher_is_better_metric_is_read_the_other_way(self) -> None:
        scores = {arm: {s: {"mhd": row["psd"]} for s, row in seeds.items()} for arm, seeds in SCORES.items()}
        assert answer(better("far", "base"), scores, "mhd")[0] == "refuted"
        assert answer(better("bad", "base"), scores, "mhd")[0] == "holds"

    def test_says_the_same_only_within_a_margin_and_otherwise_only_when_not(self) -> None:
        assert answer(same("slip", "base"))[0] == "refuted"
        assert answer(same("near", "base"))[0] == "not resolved"
        assert answer(same("near", "base", margin=0.1))[0] == "holds"
        # by hand: a − b is −0.067 on average, further than a hundredth of 4.1
        assert answer(same("near", "base", margin=0.01))[0] == "not resolved"
        result = answer(same("slip", "base", margin=0.05))
        assert result[0] == "holds"  # a difference is shown, and shown to be within the margin
        assert result[1].endswith("p=0.020, within 5 %: p<0.001")
        assert answer(same("far", "base", margin=0.1))[0] == "refuted"

    def test_is_not_worse_where_it_is_better_or_within_the_margin(self) -> None:
        assert answer(not_worse("far", "base"))[0] == "holds"
        assert answer(not_worse("near", "base"))[0] == "not resolved"
        assert answer(not_worse("near", "base", margin=0.1))[0] == "holds"
        assert answer(not_worse("slip", "base"))[0] == "refuted"
        assert answer(not_worse("slip", "base", margin=0.05))[0] == "holds"
        assert answer(not_worse("bad", "base", margin=0.1))[0] == "refuted"

    def test_with_an_arm_that_was_not_run_says_so(self) -> None:
        partial = {"base": SCORES["base"], "far": {}}
        assert answer(better("far", "base"), partial) == ("not run", "no scores of far")

    def test_of_one_seed_is_not_resolved(self) -> None:
        single_seed = {arm: {0: seeds[0]} for arm, seeds in SCORES.items()}
        assert answer(better("far", "base"), single_seed) == ("not resolved", "psd 4.00 → 1.00 dB, −3.00, one seed")

    def test_without_a_score_of_its_metric_is_not_resolved(self) -> None:
        assert answer(better("far", "base", metric="swd")) == ("not resolved", "no swd of a common seed")

    def test_on_another_metric_is_behind_the_gate_of_the_primary(self) -> None:
        def two_metrics(psd: str) -> dict:
            return {
                arm: {s: {"psd": ARMS[of][s], "swd": ARMS[arm][s]} for s in range(3)}
                for arm, of in (("base", "base"), ("far", psd))
            }

        assert answer(better("far", "base", metric="swd"), two_metrics("far"))[0] == "holds"
        result = answer(better("far", "base", metric="swd"), two_metrics("near"))
        assert result[0] == "not resolved"
        assert result[1].endswith("p=0.18")  # the primary's


class TestAClauseOfSeveralPairs:
    """By hand: p of near against base is 0.18, of far and bad below 0.001."""

    def test_that_needs_all_holds_with_all_and_is_refuted_by_any(self) -> None:
        assert answer(all_of("x", better("far", "base"), better("base", "bad")))[0] == "holds"
        assert answer(all_of("x", better("far", "base"), better("near", "base")))[0] == "not resolved"
        assert answer(all_of("x", better("far", "base"), better("bad", "base")))[0] == "refuted"

    def test_that_needs_any_holds_with_any_and_is_refuted_by_all(self) -> None:
        assert answer(any_of("x", better("far", "base"), better("bad", "base")))[0] == "holds"
        assert answer(any_of("x", better("near", "base"), better("bad", "base")))[0] == "not resolved"
        assert answer(any_of("x", better("base", "far"), better("bad", "base")))[0] == "refuted"

    def test_pays_for_the_choice_among_them(self) -> None:
        # −0.3, −0.4, −0.2: t = −5.2, two-sided p at 2 df = 0.035, which does not stand a factor of two
        values = [b - d for b, d in zip(BASE, (0.3, 0.4, 0.2), strict=True)]
        edge = {**SCORES, "edge": {seed: {"psd": value} for seed, value in enumerate(values)}}
        assert 2 * t.sf(0.3 / (0.1 / 3**0.5), 2) == pytest.approx(0.0351, abs=1e-4)
        assert answer(better("edge", "base"), edge)[0] == "holds"
        assert answer(any_of("x", better("edge", "base"), better("near", "base")), edge)[0] == "not resolved"
        assert answer(all_of("x", better("base", "edge"), better("far", "base")), edge)[0] == "not resolved"
        assert answer(all_of("x", better("edge", "base"), better("far", "base")), edge)[0] == "holds"

    def test_may_be_answered_without_the_arms_that_were_not_run(self) -> None:
        partial = {**SCORES, "far": {}}
        assert answer(any_of("x", better("far", "base"), better("base", "bad")), partial)[0] == "holds"
        assert answer(all_of("x", better("far", "base"), better("bad", "base")), partial)[0] == "refuted"
        assert answer(all_of("x", better("far", "base"), better("base", "bad")), partial) == (
            "not run",
            "no scores of far",
        )

    def test_may_hold_other_clauses(self) -> None:
        nested = any_of("x", all_of("y", better("far", "base"), better("base", "bad")), better("near", "base"))
        assert answer(nested)[0] == "holds"
        assert [str(pair) for pair in nested.pairs()][1] == "base is better than bad"

    def test_counts_its_pairs_and_gives_the_numbers_of_the_one_that_decides(self) -> None:
        pairs = [better("far", "base"), better("base", "bad"), better("far", "bad"), better("near", "base")]
        result = answer(all_of("x", *pairs))
        assert result[0] == "not resolved"
        assert result[1].startswith("of 4 holds 3, not resolved 1; near is better than base: psd 4.10 → 4.03 dB")


class TestTheClausesOfAnAblation:
    def test_are_those_of_its_rows_where_it_names_none(self) -> None:
        ablation = Ablation(varies=("weighting",), arms={})
        clauses = clauses_of(ablation, {"a": None, "b": "a", "c": "b"})
        assert [clause.text for clause in clauses] == ["b is better than a", "c is better than b"]

    @pytest.mark.parametrize("name", names())
    def test_are_of_arms_that_there_are(self, name: str) -> None:
        plan = make_plan(parse([f"name={name}", "seeds=1"]))
        clauses = clauses_of(plan.ablation, {arm.name: arm.versus for arm in plan.arms})
        assert clauses
        assert len({clause.text for clause in clauses}) == len(clauses)
        arm_names = {arm.name for arm in plan.arms}
        assert all({pair.arm, pair.other} <= arm_names for clause in clauses for pair in clause.pairs())

    @pytest.mark.parametrize(
        ("claims", "primary", "says"),
        [
            ((better("fulll", "off"),), "psd", "no arm fulll; did you mean full? arms: off, full"),
            ((better("full", "off", metric="niqe"),), "psd", "niqe is not among the metrics (psd)"),
            ((same("full", "off", margin=10),), "psd", "margin=10 is a share, between 0 and 1"),
            ((), "swd", "own: primary=swd: is not among the metrics (psd); add it, or name one of them"),
        ],
    )
    def test_are_checked_before_anything_runs(self, claims: tuple[Clause, ...], primary: str, says: str) -> None:
        arms = {"off": "weighting=uniform", "full": "weighting=delta_sigma"}
        ablation = Ablation(varies=("weighting",), arms=arms, claims=claims, primary=primary, metrics=("psd",))
        with pytest.raises(ConfigError) as error:
            plan_of(replace(parse(["name=ansc"]), name="own"), ablation, Statement("", "", "", ""))
        assert says in str(error.value)

    def test_may_be_of_an_arm_that_is_left_out_of_a_run(self) -> None:
        arms = {"off": "weighting=uniform", "half": "weighting.p=0.25", "full": "weighting.p=0.5"}
        ablation = Ablation(varies=("weighting",), arms=arms, claims=(better("half", "off"),))
        plan = plan_of(replace(parse(["name=ansc", "arms=off,full"]), name="own"), ablation, Statement("", "", "", ""))
        assert [arm.name for arm in plan.arms] == ["off", "full"]


def table() -> dict:
    comparison = compare(SCORES, primary="psd", versus=dict.fromkeys(SCORES, "base"))
    others = (better(arm, "base") for arm in ("bad", "near", "gone"))
    clauses = (better("far", "base", "far & wide"), *others)
    return {
        "ablation": "ansc",
        "title": "What?",
        "claim": "All are better.",
        "refuted": "if not",
        "primary": comparison.primary,
        "verdict": verdict(clauses, SCORES, "psd"),
        "scale": "tiny",
        "seeds": [0, 1, 2],
        "settings": ["seeds=3"],
        "contract": {"git_commit": "abc"},
        "arms": [{"name": arm, **comparison.row(arm), "status": "ok"} for arm in SCORES],
        "best": comparison.best,
    }


class TestTheVerdictInPrint:
    def test_is_the_first_thing_below_the_claim(self) -> None:
        text = markdown(table())
        assert (
            "**Claim.** All are better.\n\n- ✓ **holds**: far & wide (psd 4.10 → 1.10 dB, −3.00 ± 0.12, p<0.001)"
            in text
        )
        assert "- ✗ **refuted**: bad is better than base (" in text
        assert "- · **not resolved**: near is better than base (" in text
        assert "- – **not run**: gone is better than base (no scores of gone)" in text
        assert text.index("not run") < text.index("| | PSD [dB]")
        page = page_html(evidence_of(table()))
        assert '<li class="holds"><b>✓ holds</b> <span>far &amp; wide' in page
        assert page.index("All are better") < page.index("✓ holds") < page.index("<table>")
        assert "% holds: far & wide (psd" in latex(table())

    @pytest.mark.parametrize("width", [60, 120])
    def test_is_a_line_a_clause_in_the_terminal(self, width: int) -> None:
        out = io.StringIO()
        Console(file=out, width=width).print(terminal_verdict(table()))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert [line.split()[0] for line in lines if line[0] != " "] == ["claim", "✓", "✗", "·", "–"]

    def test_says_by_which_test_the_marks_are_given(self) -> None:
        assert "PSD, the primary metric, is tested alone at 5 %" in markdown(table())
        assert "all metrics are tested, by Holm over them" in markdown({**table(), "primary": None})

    def test_puts_a_p_that_was_not_tested_in_parentheses(self) -> None:
        scores = {
            arm: {s: {"psd": ARMS[of][s], "swd": ARMS[arm][s]} for s in range(3)}
            for arm, of in (("base", "base"), ("far", "near"))
        }
        comparison = compare(scores, primary="psd")
        result = {**table(), "arms": [{"name": arm, **comparison.row(arm)} for arm in scores]}
        line = next(line for line in markdown(result).splitlines() if line.startswith("| far |") and "p=0.18" in line)
        assert line.count("(p<0.001)") == 1
        assert "▲" not in line


class TestTheEndOfARun:
    """An ablation with scores on disk, without trainings."""

    @pytest.fixture
    def outputs(self, tmp_path: Path) -> Path:
        plan = make_plan(parse(["name=ansc", f"outputs={tmp_path}"]))
        places = {arm.name: place for place, arm in enumerate(plan.arms)}
        for row in all_jobs(plan)[1]:
            # psd falls by one from arm to arm, with a wobble; of the floor and the probes it does not matter
            place = places.get(row.name, 0)
            psd = 9.0 - place + 0.01 * (row.seed % 3) * (place + 1)
            result = {"metrics": {"psd": psd}, "n_videos": {"psd": 8}}
            contract = {"arm": row.name, "metrics": protocols(["psd"])}
            write_mark(Path(row.job.score["out"]) / "scores.json", {**result, "contract": contract}, [])
        clip = sample_folder(plan.arms[0].first, tmp_path, plan.options.seeds[0]) / "0000.mkv"
        clip.parent.mkdir(parents=True)
        write_video(clip, np.full((3, 24, 24, 3), 128, np.uint8))
        return tmp_path

    def test_is_its_verdict_after_the_table_and_before_the_paths(self, outputs: Path) -> None:
        plan = make_plan(parse(["name=ansc", f"outputs={outputs}", "tracking=none"]))
        out = io.StringIO()
        assert finish(plan, all_jobs(plan)[1], {}, Console(file=out, width=120), 0.0) == 0
        output = out.getvalue()
        clauses = clauses_of(plan.ablation, {arm.name: arm.versus for arm in plan.arms})
        assert output.index("differences to the arm above") < output.index("✓ holds") < output.index("index.html")
        assert output.count("✓ holds") == len(clauses)
        result = json.loads((plan.folder / "table.json").read_text())
        assert [row["clause"] for row in result["verdict"]] == [clause.text for clause in clauses]
        assert result["primary"] == "psd"
        assert (plan.folder / "table.md").read_text().index("✓ **holds**") < 1500

    def test_of_some_arms_says_which_clauses_were_not_run(self, outputs: Path) -> None:
        first, *_, last = make_plan(parse(["name=ansc"])).arms
        plan = make_plan(parse(["name=ansc", f"arms={first.name},{last.name}", f"outputs={outputs}"]))
        middle = make_plan(parse(["name=ansc"])).arms[-2].name
        claims = (better(last.name, first.name, "all of it"), better(middle, first.name, "less of it"))
        plan = replace(plan, ablation=replace(plan.ablation, claims=claims))
        result = make_table(plan, all_jobs(plan)[1], {})
        assert [row["answer"] for row in result["verdict"]] == ["holds", "not run"]


class TestARecordedResult:
    def write(self, outputs: Path, **changes: object) -> Path:
        folder = outputs / "ansc"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.json").write_text(json.dumps({**table(), **changes}))
        return outputs

    def test_is_a_small_digest_of_the_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = record("ansc", self.write(tmp_path), tmp_path / "results")
        entry = json.loads(out.read_text())
        assert out.stat().st_size < MAX_BYTES
        far = next(arm for arm in entry["arms"] if arm["name"] == "far")
        assert far["metrics"]["psd"] == [1.1, pytest.approx(0.7714, abs=2e-4), 1.429, 3]
        assert dict(zip(entry["columns"]["vs_previous"], far["vs_previous"]["psd"], strict=True))["verdict"] == "better"
        assert entry["verdict"] == table()["verdict"]
        assert entry["git_commit"] == "abc"
        assert records(tmp_path / "results") == {"ansc": entry}

    def test_of_many_arms_keeps_what_the_claim_is_about(self, tmp_path: Path) -> None:
        many = [{"name": f"arm {i}", "metrics": {}, "vs_previous": {}} for i in range(28)]
        for arm in many:
            for metric in ("psd", "swd", "mhd", "mhd_ratio", "anchor_fidelity"):
                arm["metrics"][metric] = dict(mean=1 / 3, low=1 / 3, high=1 / 3, n=5)
                arm["vs_previous"][metric] = dict.fromkeys(("diff", "low", "high", "p", "p_adjusted"), 1 / 3) | {
                    "verdict": "no difference shown",
                    "versus": "paper@2",
                }
        assert len(digest_text(digest_of(table() | {"arms": many}))) > MAX_BYTES
        digest = json.loads(record("ansc", self.write(tmp_path, arms=many), tmp_path / "results").read_text())
        assert set(digest["arms"][3]["metrics"]) == {"psd"}

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"failed": ["full seed 1"]}, "some of its runs failed"),
            ({"settings": ["seeds=3", "train.updates=9"]}, "was made with train.updates=9"),
            ({"ablation": "beta"}, "is the table of beta"),
            ({"verdict": None}, "which this suite does not write"),
            ({"checksum": "0" * 64}, "is not as it was written, its checksum differs"),
        ],
    )
    def test_of_a_part_or_of_another_thing_is_refused(self, changes: dict, says: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=says):
            record("ansc", self.write(tmp_path, **changes), tmp_path / "results")

    def test_without_a_table_says_what_makes_one(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["name=ansc", f"outputs={tmp_path}"]) == 2
        assert "`make ablation name=ansc` makes it" in capsys.readouterr().err
        assert main(["nam=ansc"]) == 2

    def test_is_held_against_the_words_of_the_file(self) -> None:
        digest = digest_of(table())
        clauses = [row["clause"] for row in digest["verdict"]]
        good = "(tiny, 3 seeds) holds 1, refuted 1, not resolved 1, not run 1."
        assert summary("tiny", [0, 1, 2], digest["verdict"]) == good
        description = statement(f"What?\n\nClaim     a\nRefuted   if b\nVerdict   {good} And more.\n")
        assert contradictions(digest, description, clauses) == []
        assert contradictions(digest, replace(description, verdict="(tiny, 3 seeds) holds 4."), clauses) == [
            f"ansc: its Verdict must begin with: {good}"
        ]
        assert "make record name=ansc" in contradictions(digest, description, [*clauses, "new"])[0]


class TestTheRecordedResults:
    """The records of this checkout, in experiments/results."""

    def test_agree_with_the_verdicts_of_their_files(self) -> None:
        wrong = []
        for name, digest in records().items():
            plan = make_plan(parse([f"name={name}", "seeds=1"]))
            clauses = clauses_of(plan.ablation, {arm.name: arm.versus for arm in plan.arms})
            wrong += contradictions(digest, load(name)[1], [clause.text for clause in clauses])
        assert wrong == []

    def test_are_there_for_every_ablation_once_there_are_any(self) -> None:
        recorded = {path.stem for path in RESULTS.glob("*.json")}
        missing = sorted(set(names()) - recorded) if recorded else []
        assert not missing, f"make record name={missing[0]}"
        assert recorded <= set(names())
