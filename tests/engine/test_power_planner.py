"""Power of n prompts and m seeds, against hand-made cases, scipy, and a simulation of the test."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import nct, t
from simulated_tables import control_variate_width

from benchmarks.metrics import protocols
from benchmarks.stats.comparison import paired_t
from experiments.engine.plan import make_plan, parse
from experiments.engine.power_analysis.power_planner import PowerOptions, assumed_sd, main, plan_power, target_of
from experiments.engine.power_analysis.spread import (
    Level,
    Spread,
    components,
    control_variate_pays_from,
    noncentrality,
    pool_components,
    prompts_for,
    purchases,
    seeds_for,
    smallest_difference,
    t_power,
)
from pw.io.arguments import ConfigError
from pw.io.arguments import parse as parse_options
from pw.io.manifest import read_mark, write_mark
from pw.io.video import write_video
from pw.sample.clip_folders import reference_folder, sample_folder
from pw.train.record import training_folder

SPREAD = Spread(0.4, 1.0, "measured", "made up", 128, 6)
LEVEL = Level()
OPTIONS = PowerOptions(ablation="ansc")


class TestThePower:
    @pytest.mark.parametrize(("df", "effect"), [(1, 3.81), (4, 2.78), (9, 2.26), (99, 3.0)])
    def test_is_the_noncentral_ts(self, df: int, effect: float) -> None:
        bound = t.ppf(0.975, df)
        expected = nct.sf(bound, df, effect) + nct.cdf(-bound, df, effect)
        assert t_power(effect, df, 0.05) == pytest.approx(expected, abs=1e-6)

    def test_is_there_where_scipys_is_not(self) -> None:
        # 2 seeds, Holm over 16 metrics: with df = 1, T is Z / |Z'|, whose power follows by drawing
        df, alpha, effect = 1, 0.05 / 16, 204.0
        rng = np.random.default_rng(0)
        draws = (rng.normal(size=400_000) + effect) / np.abs(rng.normal(size=400_000))
        assert t_power(effect, df, alpha) == pytest.approx((np.abs(draws) > t.ppf(1 - alpha / 2, df)).mean(), abs=0.003)

    def test_at_no_difference_is_the_level(self) -> None:
        for df in (1, 2, 9, 99):
            assert t_power(0.0, df, 0.05) == pytest.approx(0.05, abs=1e-5)

    def test_of_a_textbook_case(self) -> None:
        # Cohen's d = 0.5, one sample of 34, two-sided 5 %: power 0.808 (G*Power's table)
        assert t_power(0.5 * math.sqrt(34), 33, 0.05) == pytest.approx(0.808, abs=0.001)
        one = Spread(0.0, 1.0, "assumed", "")
        assert prompts_for(one, 1, 0.5, LEVEL) == 34

    @pytest.mark.parametrize(("prompts", "seeds"), [(20, 3), (5, 6)])
    def test_equals_that_of_the_tables_own_test_in_a_simulation(self, prompts: int, seeds: int) -> None:
        # 20,000 tables: 3 sd of a share of 0.8 are 0.0085
        delta = smallest_difference(SPREAD, prompts, seeds, LEVEL)
        rng = np.random.default_rng(seeds)
        of_seed = rng.normal(0, SPREAD.seed, (20_000, seeds))
        of_videos = rng.normal(0, SPREAD.video / math.sqrt(prompts), (20_000, seeds))
        p = paired_t(delta + of_seed + of_videos)[2]
        assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.0085)


@given(
    seed=st.floats(0, 3),
    video=st.floats(0.01, 3),
    prompts=st.integers(2, 500),
    seeds=st.integers(2, 40),
    metrics=st.integers(1, 16),
)
@settings(max_examples=60)
def test_more_prompts_or_seeds_never_show_less(seed: float, video: float, prompts: int, seeds: int, metrics: int):
    spread, level = Spread(seed, video, "assumed", ""), Level(metrics=metrics)
    difference = smallest_difference(spread, prompts, seeds, level)
    assert smallest_difference(spread, prompts + 1, seeds, level) <= difference * (1 + 1e-9)
    assert smallest_difference(spread, prompts, seeds + 1, level) < difference
    assert smallest_difference(spread, prompts, seeds, Level(metrics=metrics + 1)) > difference


@given(target=st.floats(0.05, 5), prompts=st.integers(2, 300))
@settings(max_examples=40)
def test_what_is_needed_is_the_least_that_does(target: float, prompts: int):
    need = seeds_for(SPREAD, prompts, target, LEVEL)
    assert smallest_difference(SPREAD, prompts, need, LEVEL) <= target
    assert need == 2 or smallest_difference(SPREAD, prompts, need - 1, LEVEL) > target
    prompts_alone = prompts_for(SPREAD, 1, target, LEVEL)
    assert smallest_difference(SPREAD, prompts_alone, 1, LEVEL) <= target
    assert prompts_alone == 2 or smallest_difference(SPREAD, prompts_alone - 1, 1, LEVEL) > target


def test_no_number_of_prompts_makes_up_for_seeds():
    floor = noncentrality(2, 0.05, 0.8) * SPREAD.seed / math.sqrt(3)
    assert prompts_for(SPREAD, 3, 0.99 * floor, LEVEL) is None
    assert prompts_for(SPREAD, 3, 1.01 * floor, LEVEL) > 100


def test_one_seed_is_of_the_two_checkpoints_and_nothing_for_a_metric_of_the_set():
    assert smallest_difference(SPREAD, 100, 1, LEVEL) == pytest.approx(noncentrality(99, 0.05, 0.8) * 1.0 / 10)
    assert smallest_difference(Spread(1.0, None, "measured", "", 128), 100, 1, LEVEL) is None


def test_variance_components_are_found_again():
    # 40 pairs of 4 seeds of 60 videos: the seeds' variance has 120 df, so its sd is known to 6.5 % (one sd)
    rng = np.random.default_rng(1)
    pairs = [components([0.3 + s + rng.normal(0, 1.0, 60) for s in rng.normal(0, 0.4, 4)]) for _ in range(40)]
    spread = pool_components(pairs, 100.0, 60, "")
    assert spread.seed == pytest.approx(40, rel=0.2)
    assert spread.video == pytest.approx(100, rel=0.03)
    assert spread.df == 120


def test_a_seeds_variance_is_never_negative():
    rows = [[-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]  # means are all 0, less than the videos alone would give
    assert pool_components([components(rows)], 1.0, 2, "").seed == 0
    assert pool_components([components([[1.0]])], 1.0, 1, "") is None


def test_the_part_of_the_clips_in_a_sets_metric_is_what_the_jackknife_says():
    # by hand: means 1, 3, 5 have the variance 4; 50 clips bring 1 to a seed's, so one brings 50 and the trainings 3
    pair = components([[1.0], [3.0], [5.0]], [0.5, 1.0, 1.5], 50)
    assert (pair.within, pair.df_within, pair.videos) == (50.0, 21, 50.0)
    spread = pool_components([pair], 1.0, 50, "", of_set=True)
    assert (spread.seed, spread.video) == (pytest.approx(math.sqrt(3)), pytest.approx(math.sqrt(50)))
    assert spread.share_of_videos(50) == pytest.approx(0.25)
    assert spread.error(50, 3) == pytest.approx(math.sqrt(4 / 3))
    assert smallest_difference(spread, 50, 1, LEVEL) is None  # two checkpoints have one difference, and no test


def test_what_buys_most_is_what_the_variance_is_made_of():
    def differences(spread: Spread, seeds: int) -> dict[str, float | None]:
        return {row["what"]: row["shown"] for row in purchases(spread, 100, seeds, LEVEL, lambda prompts, seeds: 0.0)}

    trainings = differences(Spread(1.0, 0.1, "measured", ""), 3)
    assert trainings["two more seeds"] < 0.6 * trainings["twice the clips"]
    clips = Spread(0.01, 10.0, "measured", "")
    halved = smallest_difference(clips, 100, 10, LEVEL) / math.sqrt(2)
    assert differences(clips, 10)["twice the clips"] == pytest.approx(halved, rel=1e-3)
    assert differences(clips, 10)["twice the clips"] < differences(clips, 10)["two more seeds"]
    unknown = differences(Spread(1.0, None, "measured", "", 100), 3)
    assert unknown["twice the clips"] is None
    assert unknown["two more seeds"] < 2


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.943), (5, 0.429), (10, 0.143)])
def test_a_control_variate_pays_from_where_its_interval_is_as_wide_as_the_paired_ts(seeds: int, share: float):
    assert control_variate_pays_from(seeds) == pytest.approx(share, abs=0.002)
    if seeds > 3:  # at 3 the width has no variance, and a simulation does not settle
        assert control_variate_width(seeds, control_variate_pays_from(seeds), 20_000) == pytest.approx(1, abs=0.02)
    assert control_variate_pays_from(2) is None


def test_dovers_spread_is_carried_over_to_the_scripts_scale():
    # 100 p (1 - p) sd / divisor at p = 0.1431: 100 * 0.12262 * 0.03773 / 0.07355
    assert assumed_sd("dover_technical", 14.31, {})[0] == pytest.approx(6.290, abs=0.001)
    assert assumed_sd("dynamic_degree", 50.0, {})[0] == 50.0
    assert assumed_sd("musiq", 57.0, {"musiq": 7.0}) == (7.0, "given")
    assert assumed_sd("mhd_mse", 0.01, {}) is None


def test_what_is_asked_for_is_half_a_point_or_a_tenth_of_the_mean():
    assert target_of("musiq", 50.0, OPTIONS) == 0.5
    assert target_of("imaging_quality", 65.0, OPTIONS) == 0.5
    assert target_of("psd", 2.0, OPTIONS) == pytest.approx(0.2)
    assert target_of("mhd_ratio", 0.6, OPTIONS) == pytest.approx(math.log(1.1))
    options = PowerOptions(ablation="ansc", of=(("", "5%"), ("psd", "0.3")))
    assert target_of("swd", 0.04, options) == pytest.approx(0.002)
    assert target_of("psd", 2.0, options) == 0.3


def write_scores(outputs: Path, spread_of_seeds: float) -> None:
    """Scores of two arms of `ansc` with known differences, as `score_folder` leaves them."""
    plan = make_plan(parse(["name=ansc", "arms=exponential,full", "seeds=3"]))
    rng = np.random.default_rng(2)
    for i, (arm, seed, run) in enumerate(plan.runs()):
        folder = outputs / "scores" / f"{i:08x}"
        folder.mkdir(parents=True)
        shift = 0.0 if arm.versus is None else 0.001 * seed * spread_of_seeds
        values = 0.02 + shift + 0.002 * rng.normal(size=50)
        lines = [f"{k:04d},3,{v!r}" for k, v in enumerate(values.tolist())]
        (folder / "scores.csv").write_text("\n".join(["video,frames,mhd", *lines]) + "\n")
        result = {
            "metrics": {"mhd": float(values.mean()), "psd": 2.0 + shift},
            "n_videos": {"mhd": 50, "psd": 50},
            "contract": {
                "signature": run.sample_signature(seed),
                "arm": arm.name,
                "metrics": protocols(["mhd", "psd"]),
                "clips": {"n": 50, "sha256": f"seed {seed}"},
            },
        }
        write_mark(folder / "scores.json", result, [folder / "scores.csv"])


def test_a_plan_is_made_from_the_scores_on_disk(tmp_path: Path):
    write_scores(tmp_path, 1.0)
    words = ["ablation=ansc", "arms=exponential,full", "metrics=mhd,psd,swd", f"outputs={tmp_path}"]
    answer = plan_power(parse_options(PowerOptions, words))
    by_name = {entry.name: entry for entry in answer.spreads}
    assert by_name.keys() == {"mhd", "psd"}
    # the shifts are 0, 1, 2 thousandths: sd 0.001, with what 50 videos leave of 0.0028 in it
    assert by_name["psd"].spread.seed == pytest.approx(0.001)
    assert by_name["psd"].spread.video is None
    assert by_name["mhd"].spread.video == pytest.approx(0.002 * math.sqrt(2), rel=0.15)
    assert by_name["mhd"].spread.source == "1 pair of arms, 3 seeds, 50 videos"
    # psd is tested alone, the other two by Holm behind it
    assert (by_name["psd"].level.metrics, by_name["mhd"].level.metrics) == (1, 2)
    assert answer.notes == ["swd: not scored yet; run `make ablation name=ansc`"]


@pytest.mark.slow
def test_clips_on_disk_say_what_they_bring_to_the_primarys_variance(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_scores(tmp_path, 1.0)
    words = ["ablation=ansc", "arms=exponential,full", "metrics=mhd,psd", f"outputs={tmp_path}"]
    assert main(words) == 0
    assert "PSD, the primary metric: the clips' share of its variance is unknown" in " ".join(
        capsys.readouterr().out.split()
    )
    plan = make_plan(parse(["name=ansc", "arms=exponential,full"]))
    for i, (_, seed, run) in enumerate(plan.runs()):
        for folder in (sample_folder(run, tmp_path, seed), reference_folder(run, tmp_path, seed) / "real"):
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(i if folder.name != "real" else 100 + seed)
            for clip in range(16):
                write_video(folder / f"{clip:04d}.mkv", rng.integers(60, 190, (3, 24, 24, 3)).astype(np.uint8))
    psd = next(entry for entry in plan_power(parse_options(PowerOptions, words)).spreads if entry.name == "psd")
    assert psd.spread.video > 0
    assert psd.spread.of_set
    out = tmp_path / "power.json"
    assert main([*words, f"out={out}"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "of the variance of a difference comes from the clips" in output
    assert "Largest gain: " in output
    answer = json.loads(out.read_text())
    assert [row["what"] for row in answer["buys"]] == ["twice the clips", "two more seeds"]
    assert "A control variate of the clips, fitted on 3 seeds, " in output
    assert 0 < answer["share_of_clips"] <= 1


def test_scores_of_another_protocol_or_other_clips_are_not_used(tmp_path: Path):
    write_scores(tmp_path, 1.0)
    for i, path in enumerate(sorted((tmp_path / "scores").glob("*/scores.json"))):
        result = read_mark(path)
        result["contract"]["metrics"]["mhd"]["protocol"] = "mhd/0"
        result["contract"]["clips"]["sha256"] = f"clips {i}"
        write_mark(path, result, [path.with_suffix(".csv")])
    answer = plan_power(
        parse_options(
            PowerOptions, ["ablation=ansc", "arms=exponential,full", "metrics=mhd,psd", f"outputs={tmp_path}"]
        )
    )
    assert answer.spreads == []
    assert "another protocol" in answer.notes[0]


@pytest.mark.parametrize("text", ["", '{"metrics": {"mhd', "null", '{"metrics": {}}'])
def test_scores_that_are_cut_off_or_somebody_elses_are_named(text: str, tmp_path: Path, capsys):
    write_scores(tmp_path, 1.0)
    path = tmp_path / "scores" / "00000003" / "scores.json"
    path.write_text(text)
    assert main(["ablation=ansc", "arms=exponential,full", "metrics=mhd", f"outputs={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert f"error: {path}: " in message
    assert "`make ablation` makes it again" in message


def test_scores_per_video_that_are_gone_are_named(tmp_path: Path, capsys):
    write_scores(tmp_path, 1.0)
    path = tmp_path / "scores" / "00000003" / "scores.csv"
    path.unlink()
    assert main(["ablation=ansc", "arms=exponential,full", "metrics=mhd", f"outputs={tmp_path}"]) == 2
    assert f"error: {path}: is gone; `make ablation` makes it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "text", "says"),
    [
        ("train", '{"signature": "', "is truncated"),
        ("train", '{"signature": "0"}', "has no checksum"),
        ("videos", "", "is truncated"),
        ("videos", '{"clips": 8}', "has no checksum"),
    ],
)
def test_a_mark_that_is_cut_off_or_somebody_elses_is_named(what: str, text: str, says: str, tmp_path: Path, capsys):
    write_scores(tmp_path, 1.0)
    words = ["ablation=ansc", "arms=exponential,full", "metrics=mhd", f"outputs={tmp_path}"]
    run = make_plan(parse(["name=ansc", "arms=exponential,full"])).arms[0].runs[1]
    folder = training_folder(run, tmp_path) if what == "train" else sample_folder(run, tmp_path, 1)
    folder.mkdir(parents=True)
    (folder / "done.json").write_text(text)
    assert main(words) == 2
    message = capsys.readouterr().err
    assert f"error: {folder / 'done.json'}: {says}" in message
    assert ("remove" if what == "train" else "make ablation") in message


def test_the_papers_own_differences_stand_beside_what_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "power.json"
    assert main(["ablation=ansc", "seeds=5", f"outputs={tmp_path}", f"out={out}"]) == 0
    output = capsys.readouterr().out
    assert "ASSUMED" in output
    assert "exponential → full" in output
    steps = {(s["step"], s["metric"]): s for s in json.loads(out.read_text())["steps"]}
    step = steps["exponential → full", "musiq"]
    assert step["diff"] == pytest.approx(1.24)
    # an sd of 10 and a correlation of 0.5: 10 sqrt(2 * 0.5) / sqrt(100) times the noncentrality at df 99, Holm over 4
    assert step["shown_by_checkpoints"] == pytest.approx(noncentrality(99, 0.05 / 4, 0.8))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "ablation=… is missing"),
        (["ablation="], "ablation=: is empty"),
        (["ablation=anscc"], "did you mean ansc"),
        (["ablation=anscc"], "error: ablation=anscc: "),
        (["ablation=ansc", "promts=3"], "promts=3: there is no key promts; "),
        (["ablation=ansc", "promts=3"], "; or, of the options, did you mean prompts?"),
        (["ablation=ansc", "prompts=1"], "prompts=1: a whole number from 2"),
        (["ablation=ansc", "of=none"], "of=none"),
        (["ablation=ansc", "correlation=1"], "correlation=1"),
        (["ablation=ansc", "sd=9"], "sd=9"),
        (["ablation=ansc", "metrics=musick"], "unknown metric 'musick'"),
        (["paper=table_77"], "no table 'table_77'"),
        (["paper=table_9_3", "stage=hires"], "nothing to override"),
    ],
)
def test_a_mistake_in_the_call_is_named(words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_words_that_are_no_options_are_overrides_of_the_runs():
    words = ["ablation=ansc", "seeds=5", "train.updates=9"]
    assert parse_options(PowerOptions, words).overrides == ("train.updates=9",)
    with pytest.raises(ConfigError, match="write key=value"):
        parse_options(PowerOptions, ["ansc"])
