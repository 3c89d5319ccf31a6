"""`pw judge`: what a judge is shown and can know, what is kept and what is refused, and what the votes say."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, needs_browser

from benchmarks.metrics import protocols
from benchmarks.report import write as report
from experiments.engine.job import all_jobs
from experiments.engine.judge.judge_command import JudgeOptions, main, plan_for
from experiments.engine.judge.judge_server import JudgeServer
from experiments.engine.judge.vote_files import VoteFile, take_answers
from experiments.engine.judge.vote_media import Shown, export
from experiments.engine.judge.vote_plan import REAL, VotePlan, clips_of, read_plan, read_plans, votes_folder
from experiments.engine.judge.vote_report import read_judges, votes_of
from experiments.engine.outcome.table import make_table
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.status import outline, write_outline
from pw.io.arguments import ConfigError
from pw.io.files import write_csv
from pw.io.manifest import write_mark
from pw.io.paths import ROOT
from pw.io.video import write_video
from pw.sample.clip_folders import reference_folder, sample_folder

ARMS = ("baseline", "original", "full")
CLIPS = 4
WORDS = ["name=ansc", f"arms={','.join(ARMS)}", "seeds=2", f"sampling.count={CLIPS}"]


def write_clips(folder: Path, mark: Path, level: int) -> None:
    for index in range(CLIPS):
        video = np.random.default_rng(level + index).integers(0, 256, (3, 24, 24, 3), np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"{index:04d}.mkv", video)
    write_mark(mark, {"clips": CLIPS}, folder.glob("*.mkv"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """An ablation with clips and scores of three arms and two seeds, of which nothing is trained."""
    outputs = tmp_path_factory.mktemp("judge") / "outputs"
    outputs.mkdir()
    plan = make_plan(parse([*WORDS, f"outputs={outputs}"]))
    for seed in plan.options.seeds:
        reference = reference_folder(plan.ceiling.runs[seed], outputs, seed)
        write_clips(reference / "real", reference / "done.json", 1000 * seed)
        for number, arm in enumerate(plan.arms, 1):
            folder = sample_folder(arm.runs[seed], outputs, seed)
            write_clips(folder, folder / "done.json", 1000 * seed + 100 * number)
    jobs, rows = all_jobs(plan)
    for row in rows:
        place = ARMS.index(row.name) if row.name in ARMS else 0
        folder = Path(row.job.score["out"])
        folder.mkdir(parents=True, exist_ok=True)
        values = ({"video": f"{i:04d}.mkv", "mhd": 0.01 * (place + 1)} for i in range(CLIPS))
        write_csv(folder / "scores.csv", ["video", "mhd"], values)
        contract = {"arm": row.name, "metrics": protocols(["mhd", "psd"])}
        metrics = {"psd": 1.0 + place + 0.01 * row.seed, "mhd": 0.01 * (place + 1)}
        write_mark(
            folder / "scores.json", {"metrics": metrics, "n_videos": {}, "contract": contract}, [folder / "scores.csv"]
        )
    write_outline(outline(plan, jobs, rows), plan.options)
    vote_plan, _ = drawn(plan, votes=24)  # its files of clips are those of most tests
    (votes_folder(plan) / f"plan-{vote_plan.id}.json").unlink()
    return plan


@pytest.fixture
def plan(made: Plan, tmp_path: Path) -> Plan:
    """`made`, for a test alone."""
    outputs = tmp_path / "outputs"
    shutil.copytree(made.options.outputs, outputs)
    return replace(made, options=replace(made.options, outputs=outputs))


def drawn(plan: Plan, judge: str = "anna", votes: int = 12, **options: Any) -> tuple[VotePlan, Shown]:
    votes_folder(plan).mkdir(exist_ok=True)
    words = JudgeOptions(name="ansc", judge=judge, votes=votes, outputs=plan.options.outputs, **options)
    return plan_for(words, plan, options.get("arms", ARMS), clips_of(plan))


def answer(plan: Plan, vote_plan: VotePlan, prefer: Callable[[Any], str], *, attentive: bool = True) -> VoteFile:
    """Answer all pairs. prefer: pair of arms -> choice."""
    file = VoteFile(vote_plan, votes_folder(plan))
    for pair in vote_plan.pairs:
        is_real = "left" if pair.sides[0] == REAL else "right"
        check = {"degraded": is_real if attentive else "tie", "same": "tie"}.get(pair.kind)
        file.add(pair.id, check or prefer(pair), 1500)
    return file


def prefers(arm: str) -> Callable[[Any], str]:
    """For one arm wherever it is shown, else a tie."""
    return lambda pair: "tie" if arm not in pair.sides else ("left", "right")[pair.sides.index(arm)]


@contextmanager
def served(plan: Plan, vote_plan: VotePlan, shown: Shown) -> Iterator[JudgeServer]:
    with JudgeServer(VoteFile(vote_plan, votes_folder(plan)), shown, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class TestTheDrawnPairs:
    def test_are_balanced_over_arms_sides_and_clips_and_none_comes_twice(self, plan: Plan) -> None:
        vote_plan, _ = drawn(plan, votes=24)
        pairs = [pair for pair in vote_plan.pairs if pair.kind == "arms"]
        assert Counter(frozenset(pair.sides) for pair in pairs) == dict.fromkeys(
            (frozenset(two) for two in (ARMS[:2], ARMS[1:], ARMS[::2])), 8
        )
        left = Counter((frozenset(pair.sides), pair.sides[0]) for pair in pairs)
        assert set(left.values()) == {4}
        assert set(Counter((pair.seed, pair.name) for pair in pairs).values()) == {3}
        assert len({(frozenset(pair.sides), pair.seed, pair.name) for pair in pairs}) == 24

    def test_of_another_judge_are_in_another_order_and_begin_with_what_was_shown_least(self, plan: Plan) -> None:
        plans = [drawn(plan, judge, 12)[0] for judge in ("anna", "ben")]
        orders = [[(frozenset(p.sides), p.seed, p.name) for p in one.pairs if p.kind == "arms"] for one in plans]
        assert not set(orders[0]) & set(orders[1])  # 24 pairs of clips are there
        assert [p.sides for p in plans[0].pairs] != [p.sides for p in plans[1].pairs]

    def test_have_checks_among_them_of_real_clips(self, plan: Plan) -> None:
        vote_plan, shown = drawn(plan, votes=24)
        kinds = Counter(pair.kind for pair in vote_plan.pairs)
        assert kinds == {"arms": 24, "degraded": 3, "same": 1}
        for pair in vote_plan.pairs:
            files = [shown.files[shown.entries[media]["strip"]].read_bytes() for media in pair.media]
            assert pair.media[0] != pair.media[1]
            assert (files[0] == files[1]) == (pair.kind == "same")

    def test_that_are_claimed_come_first_where_the_number_is_no_multiple(self, plan: Plan) -> None:
        """Claimed of these arms: original over baseline, full over baseline."""
        for judge in ("anna", "ben", "cleo", "dan"):
            for path in votes_folder(plan).glob("plan-*.json"):
                path.unlink()
            pairs = {frozenset(pair.sides) for pair in drawn(plan, judge, 2)[0].pairs if pair.kind == "arms"}
            assert pairs == {frozenset(ARMS[:2]), frozenset(ARMS[::2])}

    def test_go_on_where_the_judge_stopped_and_are_drawn_again_if_an_arm_has_other_clips(self, plan: Plan) -> None:
        first, _ = drawn(plan)
        file = VoteFile(first, votes_folder(plan))
        file.add(first.pairs[0].id, "tie")
        assert drawn(plan)[0] == first
        folder = sample_folder(plan.arms[0].runs[0], plan.options.outputs, 0)
        write_clips(folder, folder / "done.json", 777)
        assert drawn(plan)[0].id != first.id

    def test_for_more_votes_are_those_that_the_judge_has_not_seen(self, plan: Plan) -> None:
        first, _ = drawn(plan, votes=12)
        answer(plan, first, prefers("full"))
        with pytest.raises(ConfigError, match="votes=12: anna has given 12"):
            drawn(plan, votes=12)
        second, _ = drawn(plan, votes=20)
        keys = [
            {(frozenset(p.sides), p.seed, p.name) for p in one.pairs if p.kind == "arms"} for one in (first, second)
        ]
        assert len(keys[1]) == 8
        assert not keys[0] & keys[1]

    def test_leave_out_a_clip_that_is_gone_or_no_video_and_name_it(
        self, plan: Plan, capsys: pytest.CaptureFixture[str]
    ) -> None:
        gone, damaged = (sample_folder(plan.arms[i].runs[0], plan.options.outputs, 0) for i in (0, 1))
        (gone / "0001.mkv").unlink()
        (damaged / "0002.mkv").write_bytes(b"no video")
        write_mark(damaged / "done.json", {"clips": CLIPS}, damaged.glob("*.mkv"))
        vote_plan, _ = drawn(plan, votes=24)
        told = capsys.readouterr().err
        assert "baseline seed 0 clip 0001: is gone" in told
        assert "original seed 0 clip 0002: " in told
        shown = {(side, pair.seed, pair.name) for pair in vote_plan.pairs for side in pair.sides}
        assert not shown & {("baseline", 0, "0001"), ("original", 0, "0002")}
        assert len(vote_plan.pairs) > 12


class TestWhatIsSent:
    def secrets(self, plan: Plan) -> list[str]:
        runs = [run for _, _, run in plan.runs()]
        signatures = [f(run) for run in runs for f in (lambda r: r.training_signature, lambda r: r.sample_signature(0))]
        hashes = [clip.sha256 for clips in clips_of(plan).values() for clip in clips.values()]
        return [*ARMS, "ansc", "degraded", ".mkv", str(plan.options.outputs), *signatures, *hashes]

    def test_says_nothing_of_arms_signatures_and_files(self, plan: Plan) -> None:
        vote_plan, shown = drawn(plan)
        with served(plan, vote_plan, shown) as server:
            sent = []
            names = [entry["strip"] for entry in shown.entries.values()]
            for path in ["", *(f"media/{name}" for name in names)]:
                connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
                connection.request("GET", f"/{server.token}/{path}")
                response = connection.getresponse()
                assert response.status == 200
                sent.append(f"{path} {response.headers} {response.read().decode('latin-1')}")
        text = "\n".join(sent)
        assert vote_plan.pairs[0].id in text
        assert not [secret for secret in self.secrets(plan) if secret in text]
        assert not re.search(r"full|real\b|same\b", json.dumps(page_data(sent[0])))

    def test_is_the_same_in_an_exported_folder(self, plan: Plan, tmp_path: Path) -> None:
        vote_plan, shown = drawn(plan, export=tmp_path / "for-anna")
        export(vote_plan, shown, tmp_path / "for-anna")
        files = [path for path in (tmp_path / "for-anna").rglob("*") if path.is_file()]
        assert {path.name for path in files} == {"index.html", *shown.files}
        text = "".join(f"{path.name} {path.read_bytes().decode('latin-1')}" for path in files)
        assert not [secret for secret in self.secrets(plan) if secret in text]

    def test_is_changed_by_no_name(self, plan: Plan, tmp_path: Path) -> None:
        hostile = "</script><script>alert(1)</script>\"'{{ 7 * 7 }}"
        vote_plan, shown = drawn(plan, hostile, export=tmp_path / "page")
        export(vote_plan, shown, tmp_path / "page")
        text = (tmp_path / "page" / "index.html").read_text()
        assert text.count("<script") == 2
        assert page_data(text)["judge"] == hostile
        assert read_plan(next(votes_folder(plan).glob("plan-*.json"))).judge == hostile


def page_data(text: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


class TestTheServer:
    @pytest.fixture
    def server(self, plan: Plan) -> Iterator[JudgeServer]:
        with served(plan, *drawn(plan)) as server:
            yield server

    def ask(self, server: JudgeServer, path: str, body: object = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        content = None if body is None else body if isinstance(body, str) else json.dumps(body)
        sent = ({"Content-Type": "application/json"} if content else {}) | {
            k.replace("_", "-"): v for k, v in headers.items()
        }
        connection.request("GET" if content is None else "POST", path, content, sent)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")

    def vote(self, server: JudgeServer, pair: str, choice: str, ms: object = 5, **headers: str) -> int:
        return self.ask(server, f"/{server.token}/vote", {"pair": pair, "choice": choice, "ms": ms}, **headers)[0]

    def test_listens_on_this_machine_alone(self, server: JudgeServer) -> None:
        assert server.server_address[0] == "127.0.0.1"

    def test_answers_nobody_without_the_token_or_by_another_name(self, server: JudgeServer) -> None:
        pair = server.file.plan.pairs[0].id
        page, port = f"/{server.token}/", server.server_port
        assert self.ask(server, page)[0] == self.ask(server, page, Host=f"localhost:{port}")[0] == 200
        assert self.ask(server, "/")[0] == self.ask(server, f"/{server.token[:-1]}/")[0] == 403
        assert self.ask(server, page, Host="evil.example")[0] == self.ask(server, page, Host="127.0.0.1:1")[0] == 403
        assert self.vote(server, pair, "left", Host=f"rebound.example:{port}") == 403
        assert self.vote(server, pair, "left", Origin="http://evil.example") == 403
        assert self.vote(server, pair, "left", Content_Type="text/plain") == 404
        assert self.ask(server, f"{page}media/../../plan.json")[0] == self.ask(server, f"{page}media/%2e%2e")[0] == 404
        assert not server.file.answers

    def test_keeps_an_answer_on_the_disk_before_it_says_so_and_takes_the_last_one_back(
        self, server: JudgeServer
    ) -> None:
        first, second = (pair.id for pair in server.file.plan.pairs[:2])
        folder = server.file.path.parent
        assert self.vote(server, first, "left", 1200) == 200
        assert VoteFile(server.file.plan, folder).answers == {first: ("left", 1200)}
        assert self.vote(server, second, "tie") == 200
        assert self.vote(server, first, "undo") == 400  # it is not the last
        assert self.vote(server, second, "undo") == self.vote(server, second, "right") == 200
        assert [choice for choice, _ in VoteFile(server.file.plan, folder).answers.values()] == ["left", "right"]
        assert f'["{first}", "left", 1200]' in self.ask(server, f"/{server.token}/")[1]

    @pytest.mark.parametrize(
        "body",
        [
            *('{"pair": "0", "choice": "left", "ms": 1}', "[]", "null", "{", "[" * 4000, "x" * 5000),
            *({"pair": "PAIR", "choice": "best", "ms": 1}, {"pair": "PAIR", "choice": "left", "ms": -1}),
            *({"pair": "PAIR", "choice": "left", "ms": True}, {"pair": "PAIR", "choice": "left"}, {"pair": ["PAIR"]}),
        ],
        ids=lambda body: str(body)[:40],
    )
    def test_refuses_what_is_no_answer(self, server: JudgeServer, body: object) -> None:
        text = (body if isinstance(body, str) else json.dumps(body)).replace("PAIR", server.file.plan.pairs[0].id)
        assert self.ask(server, f"/{server.token}/vote", text)[0] in (400, 413)
        assert not server.file.answers

    def test_refuses_a_second_answer(self, server: JudgeServer) -> None:
        pair = server.file.plan.pairs[0].id
        assert [self.vote(server, pair, choice) for choice in ("left", "right")] == [200, 400]


class TestTheFileOfVotes:
    def test_goes_on_after_a_line_that_a_kill_cut_short(self, plan: Plan) -> None:
        vote_plan, _ = drawn(plan)
        file = VoteFile(vote_plan, votes_folder(plan))
        for pair in vote_plan.pairs[:3]:
            file.add(pair.id, "left")
        text = file.path.read_bytes()
        file.path.write_bytes(text[:-7])
        again = VoteFile(vote_plan, votes_folder(plan))
        assert [*again.answers] == [pair.id for pair in vote_plan.pairs[:2]]
        again.add(vote_plan.pairs[2].id, "left")
        assert file.path.read_bytes() == text

    @pytest.mark.parametrize(
        "change",
        [
            lambda lines: [lines[0].replace("left", "right"), *lines[1:]],
            lambda lines: lines[1:],
            lambda lines: [lines[0], lines[2]],
            lambda lines: [lines[1], lines[0], lines[2]],
            lambda lines: [*lines, lines[0]],
            lambda lines: [lines[0], "[]", *lines[1:]],
        ],
        ids=["edited", "first gone", "middle gone", "exchanged", "repeated", "another"],
    )
    def test_that_was_edited_is_refused_by_name_and_line(
        self, plan: Plan, change: Callable[[list[str]], list[str]]
    ) -> None:
        vote_plan, _ = drawn(plan)
        file = VoteFile(vote_plan, votes_folder(plan))
        for pair in vote_plan.pairs[:3]:
            file.add(pair.id, "left")
        file.path.write_text("\n".join(change(file.path.read_text().splitlines())) + "\n")
        with pytest.raises(ConfigError, match=rf"{file.path.name}: line \d is not as it was written"):
            read_judges(plan)

    def test_of_a_plan_that_was_edited_is_not_counted(self, plan: Plan) -> None:
        vote_plan, _ = drawn(plan)
        path = votes_folder(plan) / f"plan-{vote_plan.id}.json"
        path.write_text(path.read_text().replace('"full"', '"original"'))
        with pytest.raises(ConfigError, match="is not as it was written, its checksum differs"):
            read_judges(plan)


def saved(vote_plan: VotePlan, votes: Any, **changes: Any) -> dict[str, Any]:
    """The file that a page saves."""
    content = {"plan": vote_plan.id, "judge": vote_plan.judge, "shown": vote_plan.shown, "votes": votes} | changes
    text = json.dumps([*content.values()], separators=(",", ":"), ensure_ascii=False)
    return {**content, "checksum": sha256(text.encode()).hexdigest()}


class TestAnswersFromAFile:
    def test_are_taken_in_once(self, plan: Plan, tmp_path: Path) -> None:
        vote_plan, _ = drawn(plan, export=tmp_path / "page")
        votes = [[pair.id, "left", 900] for pair in vote_plan.pairs[:5]]
        path = tmp_path / "votes-anna.json"
        path.write_text(json.dumps(saved(vote_plan, votes)))
        plans, folder = read_plans(votes_folder(plan)), votes_folder(plan)
        assert [take_answers(path, plans, folder)[1] for _ in range(2)] == [5, 0]
        assert len(VoteFile(vote_plan, folder).answers) == 5

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"plan": "0123456789abcdef"}, "answers to plan '0123456789abcdef', which is not in"),
            ({"shown": "0" * 32}, "answers of 'anna' to other clips than those of plan"),
            ({"judge": "ben"}, "answers of 'ben' to other clips"),
            ({"votes": [["0123456789abcdef", "left", 1]]}, "'left': was not asked"),
            ({"votes": [["PAIR", "best", 1]]}, "'best': was not asked"),
            ({"votes": [["PAIR", "left", -1]]}, "was not asked"),
            ({"votes": [["PAIR", "left", 1], ["PAIR", "left", 1]]}, "is answered twice"),
            ({"votes": [["PAIR", "left"]]}, "is no answer"),
            ({"votes": {}}, "is no file of answers"),
            ({"checksum": "0" * 64}, "its checksum differs"),
        ],
    )
    def test_that_are_not_those_of_the_page_are_refused_by_name(
        self, plan: Plan, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        vote_plan, _ = drawn(plan, export=tmp_path / "page")
        content = json.loads(json.dumps(changes).replace("PAIR", vote_plan.pairs[0].id))
        checksum = {"checksum": content.pop("checksum")} if "checksum" in content else {}
        path = tmp_path / "votes.json"
        path.write_text(
            json.dumps(saved(vote_plan, **{"votes": [[vote_plan.pairs[1].id, "tie", 1]], **content}) | checksum)
        )
        with pytest.raises(ConfigError, match=f"add={path}: .*{message}"):
            take_answers(path, read_plans(votes_folder(plan)), votes_folder(plan))
        assert not VoteFile(vote_plan, votes_folder(plan)).answers
        path.write_text("# not JSON")
        with pytest.raises(ConfigError, match=f"add={path}: is no file of answers that the page saved"):
            take_answers(path, read_plans(votes_folder(plan)), votes_folder(plan))

    def test_that_contradict_those_that_are_there_are_refused(self, plan: Plan, tmp_path: Path) -> None:
        vote_plan, _ = drawn(plan, export=tmp_path / "page")
        VoteFile(vote_plan, votes_folder(plan)).add(vote_plan.pairs[0].id, "left", 1)
        (tmp_path / "votes.json").write_text(json.dumps(saved(vote_plan, [[vote_plan.pairs[0].id, "right", 1]])))
        with pytest.raises(ConfigError, match="is answered twice"):
            take_answers(tmp_path / "votes.json", read_plans(votes_folder(plan)), votes_folder(plan))

    @pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 10**5, "\udcff"])
    def test_of_another_kind_are_refused(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ConfigError, match=re.escape(f"add={tmp_path / 'x.json'}: ")):
            take_answers(tmp_path / "x.json", [], tmp_path)


class TestTheReport:
    def votes(self, plan: Plan) -> dict[str, Any]:
        votes = votes_of(plan, all_jobs(plan)[1])
        assert votes is not None
        return votes

    def test_has_shares_of_the_votes_and_no_names_of_judges(self, plan: Plan) -> None:
        """Two arms, 8 clips, 2 judges: full loses once on either side for each, so its odds are 12.5 : 4.5."""
        for judge in ("anna", "ben"):
            vote_plan, _ = drawn(plan, judge, 8, arms=("baseline", "full"))
            lost = {pair.sides: pair.id for pair in vote_plan.pairs if pair.kind == "arms"}.values()
            answer(plan, vote_plan, lambda pair, lost=lost: prefers("baseline" if pair.id in lost else "full")(pair))
        votes = self.votes(plan)
        assert (votes["n"], votes["judges"], [*votes["arms"]]) == (16, 2, ["baseline", "full"])
        assert votes["arms"]["full"]["mean"] == pytest.approx(100 * 12.5 / 17, abs=1e-4)
        assert votes["arms"]["full"]["mean"] + votes["arms"]["baseline"]["mean"] == pytest.approx(100)
        assert votes["vs_previous"] == {}  # full is compared with original, on which nobody voted
        assert votes["notes"][0] == "16 votes (0 ties) of 2 judges on 8 clips"
        assert "anna" not in json.dumps(votes)

    def test_gives_each_metric_the_share_of_votes_that_it_agrees_with(self, plan: Plan) -> None:
        """mhd is higher, psd is worse from arm to arm: votes for the later arm agree with the one, not the other."""
        vote_plan, _ = drawn(plan, votes=24)
        answer(plan, vote_plan, lambda pair: prefers(max(pair.sides, key=ARMS.index))(pair))
        agreement = {entry["metric"]: entry for entry in self.votes(plan)["agreement"]}
        assert agreement["mhd"]["mean"] == pytest.approx(100 * 24.5 / 25)
        assert agreement["psd"]["mean"] == pytest.approx(100 * 0.5 / 25)
        assert (agreement["mhd"]["n"], agreement["mhd"]["level"], agreement["psd"]["level"]) == (24, "video", "set")
        assert [*agreement] == ["mhd", "psd"]

    def test_leaves_out_a_judge_who_did_not_look_whatever_the_votes(self, plan: Plan) -> None:
        for judge, attentive in (("anna", True), ("ben", False)):
            answer(plan, drawn(plan, judge)[0], prefers("full"), attentive=attentive)
        votes = self.votes(plan)
        assert (votes["n"], votes["judges"]) == (12, 1)
        assert "1 judge left out by the checks (3 of 3 checks failed)" in votes["notes"]
        assert "of this judge alone" in votes["notes"][0]

    def test_does_not_count_votes_on_clips_that_were_made_again(self, plan: Plan) -> None:
        vote_plan, _ = drawn(plan, votes=24)
        answer(plan, vote_plan, prefers("full"))
        folder = sample_folder(plan.arms[2].runs[1], plan.options.outputs, 1)
        write_clips(folder, folder / "done.json", 999)
        votes = self.votes(plan)  # full of seed 1 was in 2 x 4 pairs
        assert votes["n"] == 16
        assert "8 votes are on clips that were made again since, or on other arms, and do not count" in votes["notes"]

    def test_counts_no_pair_that_could_not_be_shown(self, plan: Plan) -> None:
        answer(plan, drawn(plan)[0], lambda pair: "gap" if pair.seed else "tie")
        votes = self.votes(plan)
        assert votes["n"] < 12
        assert f"{12 - votes['n']} pairs could not be shown" in votes["notes"]

    def test_is_a_column_of_the_table_and_without_votes_none(self, plan: Plan) -> None:
        rows = all_jobs(plan)[1]
        result = make_table(plan, rows, {})
        assert "votes" not in result
        assert "people" not in report.latex(result)
        answer(plan, drawn(plan, votes=24)[0], prefers("full"))
        result = make_table(plan, rows, {})
        assert [name for name in result["votes"]["arms"]] == [*ARMS]
        assert result["votes"]["best"] == "full"
        line = next(line for line in report.markdown(result).splitlines() if line.startswith("| full |"))
        assert "▲" in line
        assert "votes [%]" in report.markdown(result)
        header, *lines = report.to_csv(result).splitlines()
        assert {"votes.mean", "votes.diff", "votes.verdict", "votes.versus"} <= set(header.split(","))
        assert json.loads(report.to_json(result))["votes"]["n"] == 24
        assert [line.split(",")[0] for line in lines] == [*ARMS, "ceiling", "floor"]

    def test_costs_no_table_if_it_cannot_be_read(self, plan: Plan) -> None:
        file = answer(plan, drawn(plan)[0], prefers("full"))
        file.path.write_text(file.path.read_text().replace("tie", "left"))
        result = make_table(plan, all_jobs(plan)[1], {})
        assert "votes" not in result
        assert [note for note in result["notes"] if "votes are left out: " in note and file.path.name in note]


def call(*words: str) -> int:
    return main(words)


class TestTheCommand:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("", "judge=… is missing: the name of who votes; give one of judge=NAME, add=FILE, report=true"),
            ("judge=a report=true", "judge and report are given; give one"),
            ("export=/nope/x report=true", "export=/nope/x: judge=… is missing"),
            ("judge=a votes=0", "votes=0: a whole number from 1"),
            ("judge=a\tb", "expected a name of at most 60 characters"),
            ("add=/nope.json", "add=/nope.json: there is no such file"),
            ("judge=a arms=full", "arms=full: expected two arms or more"),
            ("judge=a arms=full,basline", "arms=basline: no such arm; did you mean baseline?"),
            ("report=true", "report=true: nobody has voted on ansc yet"),
        ],
    )
    def test_says_what_is_wrong_in_one_line(
        self, made: Plan, words: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert call("name=ansc", f"outputs={made.options.outputs}", *words.split(" ") if words else ()) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert message in told[0]

    def test_names_an_ablation_that_has_not_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("name=ansc", "judge=a", f"outputs={tmp_path}") == 2
        assert "name=ansc: has not run in" in capsys.readouterr().err

    def test_names_a_free_port_where_one_is_busy(self, made: Plan, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.socket() as busy:
            busy.bind(("127.0.0.1", 0))
            busy.listen()
            port = busy.getsockname()[1]
            assert call("name=ansc", "judge=a", f"port={port}", f"outputs={made.options.outputs}") == 2
        told = capsys.readouterr().err
        assert f"port {port} is in use" in told
        assert re.search(r"port=\d+ is free", told)

    def test_overwrites_no_folder(self, made: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        assert call("name=ansc", "judge=a", f"export={tmp_path}", f"outputs={made.options.outputs}") == 2
        assert "is there and not empty" in capsys.readouterr().err


@needs_browser
class TestInABrowser:
    @pytest.fixture
    def browser(self, tmp_path: Path) -> Iterator[Browser]:
        with Browser(tmp_path / "profile") as browser:
            yield browser

    def ready(self, browser: Browser) -> None:
        browser.wait("!document.getElementById('choose-left').disabled")

    def position(self, browser: Browser) -> str:
        return browser.value("document.getElementById('at').textContent")

    def test_keys_vote_undo_and_zoom_and_a_page_that_is_loaded_again_goes_on(
        self, plan: Plan, browser: Browser
    ) -> None:
        vote_plan, shown = drawn(plan, votes=4)
        total = len(vote_plan.pairs)
        with served(plan, vote_plan, shown) as server:
            browser.open(server.url)
            self.ready(browser)
            assert self.position(browser) == f"1 of {total}"
            browser.press("+")
            assert browser.value("document.getElementById('zoom').textContent") == "2×"
            for place, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowDown"], 2):
                self.ready(browser)
                browser.press(key)
                browser.wait(f"document.getElementById('at').textContent === '{place} of {total}'")
            self.ready(browser)
            browser.press("u")
            browser.wait(f"document.getElementById('at').textContent === '3 of {total}'")
            browser.call("Page.reload")
            browser.wait(
                f"document.readyState === 'complete' && document.getElementById('at').textContent === '3 of {total}'"
            )
            for place in range(3, total + 1):
                self.ready(browser)
                browser.press("ArrowRight")
                browser.wait(f"document.getElementById('progress').value === {place}")
            browser.wait("document.body.classList.contains('done')")
        answers = VoteFile(vote_plan, votes_folder(plan)).answers
        assert [*answers] == [pair.id for pair in vote_plan.pairs]
        assert [choice for choice, _ in answers.values()] == ["left", *["right"] * (total - 1)]
        assert not browser.errors

    def test_both_clips_are_at_the_same_frame_and_an_answer_that_is_not_kept_is_asked_again(
        self, plan: Plan, browser: Browser
    ) -> None:
        vote_plan, shown = drawn(plan, votes=2)
        with served(plan, vote_plan, shown) as server:
            browser.open(server.url)
            self.ready(browser)
            browser.press(" ")
            for step, frame in enumerate([1, 2, 0]):
                browser.value("player.show(0)" if step == 0 else "0")
                browser.press(".")
                found = [self.pixel(browser, side) for side in ("left", "right")]
                assert found == [self.expected(shown, media, frame) for media in vote_plan.pairs[0].media]
            server.file.path.mkdir()  # nothing can be written
            browser.press("ArrowLeft")
            browser.wait("document.getElementById('message').textContent.startsWith('Not kept')")
            assert self.position(browser) == f"1 of {len(vote_plan.pairs)}"

    def pixel(self, browser: Browser, side: str) -> list[int]:
        pixel = "canvas => [...canvas.getContext('2d').getImageData(3, 3, 1, 1).data].slice(0, 3)"
        return browser.value(f"({pixel})(document.getElementById('{side}'))")

    def expected(self, shown: Shown, media: str, frame: int) -> list[int]:
        from PIL import Image

        entry = shown.entries[media]
        return np.asarray(Image.open(shown.files[entry["strip"]]))[frame * entry["height"], 0].tolist()

    def test_a_page_from_disk_keeps_answers_and_saves_a_file_that_is_taken_in(
        self, plan: Plan, browser: Browser, tmp_path: Path
    ) -> None:
        folder = tmp_path / "for ännä"
        vote_plan, shown = drawn(plan, "ännä", 3, export=folder)
        export(vote_plan, shown, folder)
        url, total = (folder / "index.html").as_uri(), len(vote_plan.pairs)
        browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.open(url)
        self.ready(browser)
        browser.press("ArrowLeft")
        browser.wait(f"document.getElementById('at').textContent === '2 of {total}'")
        browser.call("Page.reload")
        browser.wait(
            f"document.readyState === 'complete' && document.getElementById('at').textContent === '2 of {total}'"
        )
        for place in range(2, total + 1):
            self.ready(browser)
            browser.press("ArrowRight")
            browser.wait(f"document.getElementById('progress').value === {place}")
        browser.click("#save")
        file = tmp_path / "votes-ännä.json"
        browser.wait("true")
        for _ in range(500):
            if file.exists():
                break
            browser.wait("new Promise(done => setTimeout(done, 20, true))")
        assert take_answers(file, [vote_plan], votes_folder(plan)) == (vote_plan, total)
        assert not browser.errors


@pytest.mark.slow
def test_an_exported_page_and_its_answers_pass_through_the_command_into_the_table(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["name=ansc", f"outputs={plan.options.outputs}"]
    assert call(*words, "judge=anna", "votes=3", f"export={tmp_path / 'page'}") == 0
    told = capsys.readouterr().out
    assert "index.html: 7 pairs (3 votes and 4 checks); send the folder" in told
    assert f"-m pw judge name=ansc add=FILE outputs={plan.options.outputs}\n" in told
    vote_plan = read_plans(votes_folder(plan))[0]
    file = tmp_path / "votes.json"
    file.write_text(json.dumps(saved(vote_plan, [[pair.id, "tie", 5] for pair in vote_plan.pairs])))
    assert call(*words, f"add={file}") == 0
    total = len(vote_plan.pairs)
    assert f"anna: {total} new answers, {total} of {total} in all" in capsys.readouterr().out
    assert "left out by the checks" in (plan.folder / "table.md").read_text()
    assert call(*words, "report=true") == 0
    told = capsys.readouterr().out
    assert "  anna: 3 votes (0 left, 0 right, 3 ties); missed 3 of 3 degraded clips; preferred one of" in told
    assert "LEFT OUT: 3 of 3 checks failed" in told


@pytest.mark.slow
def test_a_session_that_is_killed_loses_nothing_and_goes_on(plan: Plan) -> None:
    """Two judges at once; one is killed with an answer just given. Ctrl-C writes the table with the votes of both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start(judge: str, port: int) -> tuple[subprocess.Popen[str], str]:
        words = ["name=ansc", f"judge={judge}", "votes=6", f"port={port}", f"outputs={plan.options.outputs}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pw", "judge", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, next(line.strip() for line in process.stdout if "http" in line)

    def vote(url: str, pair: str) -> int:
        host, _, path = url.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=60)
        body = json.dumps({"pair": pair, "choice": "left", "ms": 7})
        connection.request("POST", f"/{path}vote", body, {"Content-Type": "application/json"})
        return connection.getresponse().status

    anna, url = start("anna", port)
    ben, other = start("ben", port + 1)
    plans = {one.judge: one for one in read_plans(votes_folder(plan))}
    assert [vote(url, pair.id) for pair in plans["anna"].pairs[:2]] == [200, 200]
    assert vote(other, plans["ben"].pairs[0].id) == 200
    anna.kill()
    anna.wait(60)
    anna, url = start("anna", port)
    assert vote(url, plans["anna"].pairs[1].id) == 400  # it is there
    assert vote(url, plans["anna"].pairs[2].id) == 200
    for process in (anna, ben):
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    assert [len(VoteFile(plans[judge], votes_folder(plan)).answers) for judge in ("anna", "ben")] == [3, 1]
    assert "votes" in json.loads((plan.folder / "table.json").read_text())
