"""benchmarks.systems: cards, what a folder of videos says about itself, registering videos, refusing early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import paper
from benchmarks.systems import CARDS, Setting, load, names, read_card
from benchmarks.systems.external import fields
from benchmarks.systems.generation_call import Call, SystemOptions, make_call
from benchmarks.systems.jobs import STEM_BYTES, check_names, costs, input_jobs, make_jobs, read_prompts, stem, videos
from benchmarks.systems.system_command import commands, main, prepare_folder
from pw.io.arguments import parse
from pw.io.video import write_video

# rows of the paper's tables -> the systems in them
ROWS = {
    "table_1": {
        *("wan2_2_5b_2k", "wan2_2_5b_4k", "flashvideo", "ultrawan_1k", "ultrawan_4k", "cinescale", "cinescale_pro"),
        *("pixelwizard_2k", "pixelwizard_4k"),
    },
    "table_2": {
        *("flashvideo", "ultrawan_1k", "ultrawan_4k", "cinescale", "cinescale_pro"),
        *("pixelwizard_2k", "pixelwizard_4k"),
    },
    "table_3": {
        *("star_2k", "dove_2k", "seedvr2_2k", "flashvsr_2k", "star_4k", "dove_4k", "flashvsr_4k"),
        *("pixelwizard_2k", "pixelwizard_4k"),
    },
    "table_8_1": {
        *("vchitect_venhancer", "cogvideox_1_5", "cogvideox_5b", "cogvideox_2b", "mochi_1", "ltx_video"),
        *("opensora_1_2", "opensora_plan_1_1", "hunyuanvideo", "wan2_1_1_3b", "flashvideo", "turbo2k"),
        "pixelwizard_2k",
    },
    "table_8_2": {"flashvideo_4k", "ultrawan_4k", "pixelwizard_4k"},
}
TABLE_1 = {  # frames, width, height, playback rate as Table 1 prints them
    "wan2_2_5b_2k": (121, 2560, 1440, 24),
    "wan2_2_5b_4k": (121, 3840, 2144, 24),
    "flashvideo": (49, 1920, 1072, 8),
    "ultrawan_1k": (81, 1920, 1088, 16),
    "ultrawan_4k": (81, 3840, 2160, 16),
    "cinescale": (81, 1920, 1088, 16),
    "cinescale_pro": (81, 2880, 1632, 16),
    "pixelwizard_2k": (121, 2560, 1440, 24),
    "pixelwizard_4k": (121, 3840, 2144, 24),
}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball\na heron, at dawn\n")
    return path


def clip(path: Path, width: int = 16, height: int = 16, frames: int = 3, fps: float = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    write_video(path, rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8), fps, path.suffix == ".mkv")
    return path


def call_of(words: list[str]) -> Call:
    """What `pw system` with these words asks for."""
    return make_call(parse(SystemOptions, words))


def changed_card(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """A card with one passage replaced."""
    text = (Path(__file__).parents[3] / "benchmarks" / "systems" / "cards" / f"{name}.yaml").read_text()
    assert old in text
    path = tmp_path / f"{name}.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


class TestACard:
    @pytest.mark.parametrize("name", names())
    def test_is_read(self, name: str) -> None:
        assert load(name).name == name

    @pytest.mark.parametrize("table", ROWS)
    def test_is_there_for_every_row_of_a_table(self, table: str) -> None:
        assert {name for name in names() if table in load(name).rows} == ROWS[table]

    @pytest.mark.parametrize("table", ROWS)
    def test_is_called_as_its_row_so_that_the_table_finds_its_folder(self, table: str) -> None:
        labels = {row.arm: row.label for row in paper.load(table).rows}
        assert {name: load(name).rows[table] for name in ROWS[table]} == labels

    @pytest.mark.parametrize("name", TABLE_1)
    def test_has_the_setting_that_table_1_prints(self, name: str) -> None:
        setting = load(name).setting
        assert (setting.frames, setting.width, setting.height, setting.fps) == TABLE_1[name]

    @pytest.mark.parametrize("name", [name for name in names() if load(name).kind == "command"])
    def test_of_a_program_uses_fields_that_there_are(self, name: str) -> None:
        adapter: Any = load(name).adapter
        used = fields(adapter.command)
        assert {"prompt", "prompt_file", "input", "input_dir"} & used
        assert (adapter.takes == "video") == bool({"input", "input_dir"} & used)
        assert "{out}" in adapter.command

    def test_with_an_unknown_key_is_refused_by_the_key(self, tmp_path: Path) -> None:
        path = changed_card(tmp_path, "mochi_1", "title:", "colour: red\ntitle:")
        with pytest.raises(ValueError, match="unknown keys colour"):
            read_card(path)

    def test_without_a_key_is_refused_by_the_key(self, tmp_path: Path) -> None:
        path = changed_card(tmp_path, "mochi_1", ", steps: 64", "")
        with pytest.raises(ValueError, match="setting: missing keys steps"):
            read_card(path)

    def test_with_a_value_of_another_type_is_refused(self, tmp_path: Path) -> None:
        path = changed_card(tmp_path, "mochi_1", "width: 848", "width: wide")
        with pytest.raises(ValueError, match="width='wide': expected int"):
            read_card(path)

    def test_of_another_kind_says_which_there_are(self, tmp_path: Path) -> None:
        path = changed_card(tmp_path, "mochi_1", "kind: diffusers", "kind: magic")
        with pytest.raises(ValueError, match="one of diffusers, pixelwizard, command, videos"):
            read_card(path)

    def test_of_what_is_made_here_must_know_its_size(self, tmp_path: Path) -> None:
        path = changed_card(tmp_path, "mochi_1", "width: 848", "width: null")
        with pytest.raises(ValueError, match="known size"):
            read_card(path)


class TestTheList:
    @pytest.mark.parametrize(
        ("columns", "ends"), [(80, "8.1        *"), (200, "8.1        * Tencent Hunyuan Community License")]
    )
    def test_names_every_system_with_its_numbers_and_whether_its_licence_must_be_accepted(
        self, columns: int, ends: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        for system in map(load, names()):
            line = next(line for line in lines if line.startswith(f"{system.name} "))
            size, frames, fps = system.setting.texts()
            assert {size, f"{frames}@{fps}", *(table[6:].replace("_", ".") for table in system.rows)} <= {*line.split()}
        assert next(line for line in lines if line.startswith("hunyuanvideo")).endswith(ends)

    def test_shows_a_card_in_full(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["name=star_2k", "show=true"]) == 0
        assert capsys.readouterr().out == (CARDS / "star_2k.yaml").read_text(encoding="utf-8")


class TestAStem:
    def test_is_what_vbench_looks_for(self) -> None:
        assert stem("A person is finger snapping, in super slow motion", 3) == (
            "A person is finger snapping, in super slow motion-3"
        )

    def test_replaces_what_no_file_name_holds(self) -> None:
        assert stem("24/7\nin \x00Tokyo", 0) == "24_7_in _Tokyo-0"
        assert stem("... and then", 0) == "_.. and then-0"

    def test_of_a_long_prompt_is_cut_and_told_apart(self) -> None:
        first, second = stem("é" * 200 + "a", 12), stem("é" * 200 + "b", 12)
        assert first != second
        assert len(first.encode()) <= STEM_BYTES
        assert first.endswith("-12")

    def test_of_vbenchs_longest_prompt_is_whole(self) -> None:
        assert stem("x" * 210, 4) == "x" * 210 + "-4"


class TestPrompts:
    def test_of_a_jsonl_are_made_from_the_long_text_and_filed_under_the_short(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text('{"id": 3, "text": "a ball", "long": "a red ball rolls"}\n\n{"text": "a cat"}\n')
        jobs = make_jobs(read_prompts(path), 2)
        assert [(job.stem, job.text, job.seed) for job in jobs] == [
            ("a ball-0", "a red ball rolls", 0),
            ("a cat-0", "a cat", 0),
            ("a ball-1", "a red ball rolls", 1),
            ("a cat-1", "a cat", 1),
        ]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": "a", "colour": "b"}', "line 1: expected.*not colour"),
            ('{"prompt": "a"}', "line 1 is not.*prompt"),
            ('{"text": ""}', "must not be empty"),
            ("a ball", "line 1 is not"),
        ],
    )
    def test_that_are_not_understood_are_named_by_line(self, tmp_path: Path, line: str, message: str) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text(f"{line}\n")
        with pytest.raises(ValueError, match=message):
            read_prompts(path)

    @pytest.mark.parametrize(("name", "count"), [("vbench", 944), ("vbench_6", 251)])
    def test_of_vbench_come_with_the_suite(self, name: str, count: int) -> None:
        prompts = [prompt for prompt, _ in read_prompts(Path(name))]
        assert len(make_jobs([(prompt, prompt) for prompt in prompts], 5)) == 5 * count
        assert "a person swimming in ocean" in prompts
        assert ("In a still frame, a stop sign" in prompts) == (name == "vbench")  # of temporal flickering alone
        assert set(prompts) <= {prompt for prompt, _ in read_prompts(Path("vbench"))}

    def test_of_a_list_that_is_not_there_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"prompts=vbnch: no such file; .*did you mean vbench\?"):
            read_prompts(Path("vbnch"))

    def test_that_share_a_file_name_are_refused(self) -> None:
        with pytest.raises(ValueError, match="occurs twice"):
            make_jobs([("a/b", "a/b"), ("a_b", "a_b")], 1)
        jobs = make_jobs([("a b", "a b"), ("A b", "A b")], 1)
        with pytest.raises(ValueError, match="occurs twice"):
            check_names(jobs, ignores_case=True)

    def test_name_the_videos_to_enlarge(self, tmp_path: Path) -> None:
        clip(tmp_path / "in" / "videos" / "a ball-1.mp4")
        [job] = input_jobs(tmp_path / "in", None, 1)
        assert (job.prompt, job.seed, job.stem) == ("a ball", 1, "a ball-1")
        with pytest.raises(ValueError, match="1 of 1 are missing: a ball-0"):
            input_jobs(tmp_path / "in", [("a ball", "a ball")], 1)


class TestACall:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["name=wan3"], "no such system"),
            (["name=wan2_2_5b"], "prompts=FILE"),
            (["name=wan2_2_5b", "prompts=none.txt"], "prompts=none.txt"),
            (["name=hunyuanvideo"], "not for use in the EU"),
            (["name=wan2_2_5b", "colour=red"], "colour=red: no option"),
            (["name=wan2_2_5b", "steps=0"], "steps=0: a whole number from 1"),
            (["name=wan2_2_5b", "steps=many"], "steps=many: a whole number"),
            (["name=cogvideox_2b", "shift=3"], "has no such setting"),
            (["name=wan2_2_5b", "offload=yes"], "offload=yes: true or false"),
            (["name=wan2_2_5b", "offload=true", "device=cpu"], "not with device=cpu"),
            (["name=wan2_2_5b", "quality=60"], "quality=60"),
            (["name=wan2_2_5b", "quality=9"], "quality=9: is for H.264; add lossless=false"),
            (["name=wan2_2_5b", "width=63", "lossless=false"], "width=63: not a multiple of 8"),
            (["name=wan2_2_5b", "shard=2/2"], "shard=2/2"),
            (["name=wan2_2_5b", "gpus=none"], "gpus=none"),
            (["name=wan2_2_5b", "trainer=ddp"], "trainer=ddp"),
            (["name=cinescale", "trainer=fsdp", "checkout=."], "trainer=fsdp: no option of cinescale"),
            (["name=wan2_2_5b", "inputs=."], "takes no inputs"),
            (["name=cinescale"], "checkout="),
            (["name=cinescale", "checkout=.", "timeout=soon"], "timeout=soon"),
            (["name=flashvideo", "accept_licence=true", "weights=w", "seeds=2", "checkout=."], "takes no seed"),
            (["name=ultrawan_1k", "accept_licence=true", "checkout=."], "weights=PATH"),
            (["name=dove_2k", "accept_licence=true"], "set inputs=DIR"),
            (["name=pixelwizard_2k", "shift=3"], "has no such setting"),
            (["name=pixelwizard_2k", "trainer=ddp"], "trainer=ddp: gpus=N shares the videos; trainer=fsdp"),
            (["name=pixelwizard_2k", "trainer=fsdp", "trainer.devices=2"], "trainer.devices=2: set gpus=N"),
            (["name=turbo2k"], "register existing ones with videos=DIR"),
        ],
    )
    def test_that_is_wrong_is_refused_before_anything_loads(
        self, words: list[str], message: str, prompts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        is_complete = "prompts=FILE" in message or any("prompts=" in w for w in words)
        assert main(words if is_complete else [*words, f"prompts={prompts}"]) == 2
        assert message in capsys.readouterr().err

    def test_says_how_it_leaves_the_native_setting(self, prompts: Path) -> None:
        call = call_of(["name=wan2_2_5b_2k", f"prompts={prompts}", "steps=8", "width=1280"])
        assert call.deviations[:2] == ["width=1280 instead of the native 2560", "steps=8 instead of the native 50"]

    def test_lists_its_jobs_beside_those_of_earlier_calls(self, prompts: Path, tmp_path: Path) -> None:
        out = f"out={tmp_path / 'out'}"
        prepare_folder(call_of(["name=mochi_1", f"prompts={prompts}", out, "limit=1"]))
        prepare_folder(call_of(["name=mochi_1", f"prompts={prompts}", out, "seeds=2"]))
        lines = (tmp_path / "out" / "jobs.jsonl").read_text().splitlines()
        assert [json.loads(line)["stem"] for line in lines] == [
            *("a red ball-0", "a heron, at dawn-0", "a red ball-1", "a heron, at dawn-1")
        ]
        assert (tmp_path / "out" / "card.yaml").read_text().startswith("name: mochi_1")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("hunyuanvideo", "HunyuanVideoPipeline(hunyuanvideo-community/HunyuanVideo), seed 0: a red ball"),
            ("cinescale", "pw_cinescale.py --prompt 'a red ball' --seed 0 --width 1920 --height 1088"),
            ("pixelwizard_4k", "scale=4k frames=121 fps=24"),
        ],
    )
    def test_without_a_run_says_what_would_be_run(
        self, name: str, message: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert main([f"name={name}", f"prompts={prompts}", f"out={out}", "dry_run=true"]) == 0
        assert message in capsys.readouterr().out
        assert not out.exists()

    def test_for_pixelwizard_hands_on_what_is_not_its_own(self, prompts: Path, tmp_path: Path) -> None:
        call: Call = call_of(["name=pixelwizard_2k", f"prompts={prompts}", f"out={tmp_path}", "hires=ab12", "steps=3"])
        [line] = commands(call)
        assert "hires=ab12" in line
        assert "sampling.num_steps=3" in line


class TestCosts:
    def note(self, folder: Path, name: str, **note: Any) -> None:
        content = {"width": 10, "height": 10, "frames": 4, "device": "GPU", **note}
        (folder / "jobs").mkdir(exist_ok=True)
        (folder / "jobs" / f"{name}.json").write_text(json.dumps(content))

    def test_are_medians_over_the_videos(self, tmp_path: Path) -> None:
        for name, seconds, peak in (("a", 8.0, 5), ("b", 12.0, 9), ("c", 100.0, 7)):
            self.note(tmp_path, name, seconds_diffusion=seconds, seconds_total=1.0, peak_memory_bytes=peak)
        result = costs(tmp_path)
        assert (result.n, result.latency) == (3, 12.0)
        assert result.latency_per_pixel == pytest.approx(12 / 400)  # as Table 1: pixels of all frames
        assert result.latency_per_frame == pytest.approx(3.0)
        assert (result.peak_memory, result.devices) == (9, ("GPU",))

    def test_that_were_not_measured_for_all_are_none(self, tmp_path: Path) -> None:
        self.note(tmp_path, "a", seconds_diffusion=8.0, seconds_total=9.0)
        self.note(tmp_path, "b", seconds_diffusion=None, seconds_total=9.0)
        result = costs(tmp_path)
        assert (result.latency, result.latency_per_pixel, result.parameters, result.peak_memory) == (None,) * 4

    def test_say_on_what_and_how_they_were_measured(self, tmp_path: Path) -> None:
        self.note(tmp_path, "a", processes=8, peak_memory_bytes=1, peak_memory_from="torch, allocated")
        result = costs(tmp_path)
        assert result.devices == ("8 × GPU, one model over all",)  # not Table 1's single GPU
        assert result.peak_memory_from == ("torch, allocated",)

    def test_of_an_empty_folder_are_none(self, tmp_path: Path) -> None:
        assert (costs(tmp_path).n, costs(tmp_path).latency) == (0, None)


class TestRegistering:
    def test_says_what_is_there_missing_and_wrong_and_copies_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, out = tmp_path / "there", tmp_path / "out"
        size = "{width: 512, height: 512, frames: 221, fps: 24"
        card = changed_card(tmp_path, "opensora_plan_1_1", size, "{width: 32, height: 16, frames: 3, fps: 24")
        clip(folder / "a red ball-0.mp4", 32, 16, 3, 24)
        clip(folder / "a heron, at dawn-0.mp4", 16, 16, 3, 24)
        clip(folder / "something else-0.mp4", 32, 16, 3, 24)
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("a red ball\na heron, at dawn\na cat\n")
        words = [f"name={card}", f"videos={folder}", f"out={out}", f"prompts={prompts}"]
        assert main(words) == 1
        registration = json.loads((out / "registered.json").read_text())
        assert registration["present"] == ["a red ball-0"]
        assert registration["missing"] == ["a cat-0"]
        assert registration["unasked"] == ["something else-0"]
        [[file, problem]] = registration["wrong"]
        assert file == "a heron, at dawn-0.mp4"
        assert "width is 16, requested 32" in problem
        assert sorted(path.name for path in out.iterdir()) == ["card.yaml", "registered.json"]
        lines = capsys.readouterr().out.splitlines()
        assert f"left out: {folder / 'a heron, at dawn-0.mp4'}: width is 16, requested 32" in lines
        assert "missing: 1: a cat-0" in lines
        assert [path.name for path in videos(out)] == ["a red ball-0.mp4"]

    def test_checks_no_size_that_the_card_does_not_know(self, tmp_path: Path) -> None:
        clip(tmp_path / "there" / "a-0.mkv", 20, 12, 2, 30)
        assert main(["name=turbo2k", f"videos={tmp_path / 'there'}", f"out={tmp_path / 'out'}"]) == 0

    def test_of_an_empty_folder_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["name=turbo2k", f"videos={tmp_path}", f"out={tmp_path / 'out'}"]) == 2
        assert "there is no video (.mp4, .m4v" in capsys.readouterr().err


def test_a_setting_reads_as_a_line() -> None:
    assert str(Setting(832, 480, 81, 16.0, 50, 6.0, 8.0)) == "832x480, 81 frames at 16 fps, 50 steps"
    assert str(Setting(None, None, None, 24.0, None, None, None)) == "?x?, ? frames at 24 fps"
