"""benchmarks.systems.diffusers_pipelines: every pipeline of the cards generates, with small random weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_pipelines import write_small
from small_processes import train_together

from benchmarks.systems import load, names
from benchmarks.systems.diffusers_pipelines import fingerprint, locate, scheduler, shard
from benchmarks.systems.jobs import costs
from benchmarks.systems.system_command import main
from pw.io.video import probe, read_video

ROOT = Path(__file__).parents[3]
SMALL = {  # the smallest size of each class
    "WanPipeline": ("width=64", "height=32", "frames=5"),
    "CogVideoXPipeline": ("width=32", "height=32", "frames=9"),
    "LTXPipeline": ("width=64", "height=32", "frames=9"),
    "MochiPipeline": ("width=32", "height=32", "frames=7"),
    "HunyuanVideoPipeline": ("width=32", "height=32", "frames=5"),
}
SYSTEMS = ("wan2_2_5b_2k", "wan2_1_1_3b", "cogvideox_1_5", "cogvideox_2b", "ltx_video", "mochi_1", "hunyuanvideo")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`small(class)` is the folder of its small weights."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = write_small(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


@pytest.fixture
def words(small: Any, tmp_path: Path) -> Any:
    """`words(system)` is a call that makes two small videos below tmp_path."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na heron\n")

    def make_words(name: str, out: str = "out") -> list[str]:
        adapter: Any = load(name).adapter
        files = [f"prompts={prompts}", f"out={tmp_path / out}", f"weights={small(adapter.pipeline)}"]
        return [f"name={name}", *files, "device=cpu", "steps=2", "accept_licence=true", *SMALL[adapter.pipeline]]

    return make_words


def videos(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_video(path) for path in sorted((folder / "videos").iterdir())}


class TestAPipeline:
    def test_of_every_class_on_a_card_is_tested_here(self) -> None:
        adapters: list[Any] = [load(name).adapter for name in names() if load(name).kind == "diffusers"]
        tested: list[Any] = [load(name).adapter for name in SYSTEMS]
        assert {a.pipeline for a in adapters} == {a.pipeline for a in tested} == set(SMALL)

    @pytest.mark.parametrize("name", SYSTEMS)
    def test_makes_a_video_at_the_cards_rate_and_notes_its_cost(self, name: str, words: Any, tmp_path: Path) -> None:
        assert main([*words(name), "limit=1"]) == 0
        about = json.loads((tmp_path / "out" / "jobs" / "a red ball-0.json").read_text())
        info = probe(tmp_path / "out" / "videos" / "a red ball-0.mkv")
        assert (info.width, info.height, info.frames) == (about["width"], about["height"], about["frames"])
        assert info.fps == load(name).setting.fps
        assert 0 < about["seconds_diffusion"] < about["seconds_total"]
        assert sum(about["seconds"].values()) == pytest.approx(about["seconds_total"], abs=0.05)
        assert 0 < about["parameters"] < about["parameters_all"]
        assert about["device"] == "CPU"
        assert about["peak_memory_bytes"] is None
        assert about["encoding"] == {"codec": "ffv1"}
        assert about["weights"]["fingerprint"]
        assert f"steps=2 instead of the native {load(name).setting.steps}" in about["deviations"]
        assert about["licence"] == load(name).licence.name

    def test_makes_what_diffusers_makes_by_itself(self, words: Any, small: Any, tmp_path: Path) -> None:
        from diffusers import WanPipeline

        assert main([*words("wan2_2_5b_2k"), "limit=1", "guidance=3", "shift=7"]) == 0
        frames = read_video(tmp_path / "out" / "videos" / "a red ball-0.mkv")
        pipe = WanPipeline.from_pretrained(small("WanPipeline"))
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=7.0)
        adapter: Any = load("wan2_2_5b_2k").adapter
        expected = pipe(
            prompt="a red ball",
            negative_prompt=adapter.arguments["negative_prompt"],
            width=64,
            height=32,
            num_frames=5,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
        ).frames[0]
        assert np.abs(frames - expected * 255).max() <= 0.501

    def test_repeats_a_seed_and_tells_seeds_apart(self, words: Any, tmp_path: Path) -> None:
        assert main([*words("ltx_video"), "seeds=2"]) == 0
        assert main([*words("ltx_video", "again"), "seeds=2"]) == 0
        clips, clips_again = videos(tmp_path / "out"), videos(tmp_path / "again")
        assert all(np.array_equal(clips[name], clips_again[name]) for name in clips)
        assert not np.array_equal(clips["a heron-0.mkv"], clips["a heron-1.mkv"])

    def test_goes_on_where_it_was(self, words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*words("ltx_video"), "limit=1"]) == 0
        note = tmp_path / "out" / "jobs" / "a red ball-0.json"
        before = note.read_text()
        assert main(words("ltx_video")) == 0
        assert "1 of 2 to make" in capsys.readouterr().err
        assert note.read_text() == before
        assert costs(tmp_path / "out").n == 2
        assert costs(tmp_path / "out").latency_per_frame

    def test_writes_h264_when_it_is_asked_to(self, words: Any, tmp_path: Path) -> None:
        assert main([*words("ltx_video"), "limit=1", "lossless=false", "quality=12"]) == 0
        assert probe(tmp_path / "out" / "videos" / "a red ball-0.mp4").codec == "h264"
        about = json.loads((tmp_path / "out" / "jobs" / "a red ball-0.json").read_text())
        assert about["encoding"] == {"codec": "h264", "crf": 12}

    def test_that_makes_other_frames_than_asked_is_told(
        self, words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        of_wan = [word for word in words("wan2_2_5b_2k") if not word.startswith("frames=")]
        assert main([*of_wan, "limit=1", "frames=6"]) == 1  # Wan makes 4n + 1
        assert "frames is 5, requested 6" in capsys.readouterr().err
        assert not (tmp_path / "out" / "jobs").exists()


class TestWeights:
    def test_that_are_not_there_come_with_the_command_that_fetches_them(
        self, words: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        words_without_weights = [word for word in words("wan2_2_5b") if not word.startswith("weights=")]
        assert main(words_without_weights) == 2
        assert "`hf download Wan-AI/Wan2.2-TI2V-5B-Diffusers` fetches them" in capsys.readouterr().err

    def test_are_looked_for_before_diffusers_is_imported(self, tmp_path: Path) -> None:
        """Its import takes 20 s of a core: a mistake is answered before."""
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("a heron\n")
        script = (
            "import sys; from benchmarks.systems.system_command import main\n"
            f"assert main(['name=wan2_2_5b', 'prompts={prompts}', 'out={tmp_path / 'out'}', 'device=cpu']) == 2\n"
            "assert 'diffusers' not in sys.modules"
        )
        env = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, check=True, timeout=900)

    def test_in_another_layout_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"model_index\.json"):
            locate(str(tmp_path), None)

    def test_of_another_pipeline_are_refused(self, words: Any, small: Any, capsys: pytest.CaptureFixture[str]) -> None:
        words_without_weights = [w for w in words("ltx_video") if not w.startswith("weights=")]
        assert main([*words_without_weights, f"weights={small('MochiPipeline')}"]) == 2
        assert "are of MochiPipeline, ltx_video needs LTXPipeline" in capsys.readouterr().err

    def test_have_another_fingerprint_when_a_configuration_changes(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"a": 1}')
        before = fingerprint(tmp_path)
        (tmp_path / "config.json").write_text('{"a": 2}')
        assert fingerprint(tmp_path) != before

    def test_shift_is_called_as_the_scheduler_calls_it(self) -> None:
        from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

        assert scheduler(FlowMatchEulerDiscreteScheduler(), {}, 7.0).config.shift == 7.0
        changes = {"class": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        result = scheduler(FlowMatchEulerDiscreteScheduler(), changes, 8.0)
        assert isinstance(result, UniPCMultistepScheduler)
        assert result.config.flow_shift == 8.0
        with pytest.raises(ValueError, match="CogVideoXDDIMScheduler has none"):
            scheduler(CogVideoXDDIMScheduler(), {}, 3.0)


class TestOneModelOverTwoProcesses:
    """trainer=fsdp: what is made does not depend on how many processes share the model."""

    @pytest.mark.slow
    def test_makes_the_same_videos_as_one_and_keeps_a_part_of_the_weights_in_each(
        self, words: Any, small: Any, tmp_path: Path
    ) -> None:
        call = [*words("wan2_2_5b_2k", "alone"), "seeds=2", "limit=3"]  # the fourth is made and not kept
        assert main(call) == 0
        alone = videos(tmp_path / "alone")
        shared = [*words("wan2_2_5b_2k", "shared"), "seeds=2", "limit=3", "trainer=fsdp"]
        ranks = train_together(2, SystemCall(shared, free_port()), ShardCount(small("WanPipeline"), free_port()))
        videos_of_two = videos(tmp_path / "shared")
        assert videos_of_two.keys() == alone.keys()
        assert all(np.array_equal(videos_of_two[name], alone[name]) for name in alone)
        note, note_alone = (
            json.loads((tmp_path / out / "jobs" / "a red ball-0.json").read_text()) for out in ("shared", "alone")
        )
        assert note["processes"] == 2
        assert note["parameters"] == note_alone["parameters"]
        assert [status for status, _ in ranks] == ["0", "0"]
        for _, text in ranks:
            part, whole = map(int, text.split(" of "))
            assert 0.4 * whole < part < 0.6 * whole

    def test_wants_to_know_how_many(self, words: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*words("wan2_2_5b_2k"), "trainer=fsdp"]) == 2
        assert "set gpus=N too" in capsys.readouterr().err


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _join(rank: int, port: str) -> None:
    """Set the environment variables of torchrun."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


@dataclass(frozen=True)
class SystemCall:
    """A call of `pw system` in one of two processes; the result is its exit status."""

    words: list[str]
    port: str

    def carried_out(self, rank: int) -> str:
        _join(rank, self.port)
        return str(main(self.words))


@dataclass(frozen=True)
class ShardCount:
    """A sharded denoiser; the result is `x of y`: parameters in this process, parameters in total."""

    weights: Path
    port: str

    def carried_out(self, rank: int) -> str:
        from diffusers import WanTransformer3DModel

        _join(rank, self.port)
        torch.distributed.init_process_group("gloo")
        denoiser = WanTransformer3DModel.from_pretrained(self.weights, subfolder="transformer")
        whole = sum(parameter.numel() for parameter in denoiser.parameters())
        shard(denoiser, "cpu")
        part = sum(parameter.to_local().numel() for parameter in denoiser.parameters())
        torch.distributed.destroy_process_group()
        return f"{part} of {whole}"
