"""pw.generate: prompt to video with the small random pipeline, resuming, and early errors."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pw.cost.generation_cost import generation_cost
from pw.generate.estimate import describe, part_seconds
from pw.generate.output import load_codec
from pw.generate.pipeline import OTHER_FILES, allow_open_files, generate, main
from pw.generate.request import GenerateOptions, GenerationRequest, make_request
from pw.io.arguments import parse, to_words
from pw.io.manifest import write_mark
from pw.io.progress import duration
from pw.io.video import read_video
from pw.nn import options
from pw.nn.networks import Network, load_network
from pw.nn.tiny_decoder import TinyDecoder
from pw.run.build import build
from pw.stages import network_of
from pw.train.record import training_folder, write_config

SIZE = (
    *("scale=tiny", "scale.height=64", "scale.width=96", "scale.anchor_height=32", "scale.anchor_width=64"),
    *("scale.anchor_upsample=latent", "anchor.sampling.num_steps=2", "sampling.num_steps=2", "hires=random"),
)


def request_of(words: list[str]) -> GenerationRequest:
    """The checked request of a command's words."""
    return make_request(parse(GenerateOptions, words))


@pytest.fixture
def call(pipeline: tuple[Path, Any], tmp_path: Path):
    """`call("prompt=a heron")` is a checked call that writes below tmp_path."""

    def request(*words: str) -> GenerationRequest:
        frames = () if any(w.startswith(("frames=", "scale.frames=")) for w in words) else ("frames=5",)
        out = () if any(w.startswith("out=") for w in words) else (f"out={tmp_path / 'out'}",)
        return request_of([*SIZE, f"weights={pipeline[0]}", *frames, *out, *words])

    return request


class Stopped(Exception):
    """Ends a call early."""


def stop_with(said: list[str], request: GenerationRequest) -> None:
    """Keep the estimate and end the call."""
    said.append(describe(request, 1))
    raise Stopped


def stop_at(part: str) -> Any:
    def progress(what: str, share: float, within: float) -> None:
        if part in what:
            raise Stopped

    return progress


class TestOnePrompt:
    def test_becomes_a_video_an_anchor_and_a_manifest(self, call: Any) -> None:
        request = call("prompt=A heron, over a lake!", "seed=3")
        shares: list[float] = []
        [path] = generate(request, lambda what, share, within: shares.append(share))
        assert path.name.startswith("a-heron-over-a-lake_")
        assert read_video(path).shape == (5, 64, 96, 3)
        assert len({frame.tobytes() for frame in read_video(path)}) > 1
        data = json.loads(path.with_suffix(".mp4.json").read_text())
        assert (data["prompt"], data["seed"], data["frames"], data["fps"]) == ("A heron, over a lake!", 3, 5, 24.0)
        assert data["size"] == [96, 64]
        assert (data["anchor"]["steps"], data["anchor"]["solver"], data["anchor"]["guidance"]) == (2, "unipc", 5.0)
        assert (data["hires"]["steps"], data["hires"]["solver"]) == (2, "euler")
        assert (data["hires"]["guided_steps"], data["hires"]["guidance_baked"]) == (2, None)
        assert set(data["seconds"]) == {"text", "anchor", "hires", "decode", "file"}
        assert data["peak_memory_gb"]["decode"] > 0
        anchor = load_file(request.anchor_file(request.prompts[0]))["latent"]
        assert anchor.shape == (1, 4, 2, 2, 4)
        assert not list((request.out / "latents").iterdir())
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)

    def test_with_offloaded_blocks_is_the_same_video(self, call: Any, tmp_path: Path) -> None:
        words = ("trainer.offload=group", "trainer.offload=none")
        [offloaded], [plain] = (generate(call("prompt=a heron", word, f"out={tmp_path / word}")) for word in words)
        assert offloaded.name == plain.name
        assert np.array_equal(read_video(offloaded), read_video(plain))
        notes = [json.loads(path.with_suffix(".mp4.json").read_text()) for path in (offloaded, plain)]
        assert [[note[stage]["offload"] for stage in ("anchor", "hires")] for note in notes] == [
            ["group", "group"],
            ["none", "none"],
        ]

    def test_with_weights_in_8_bits_says_so(self, call: Any) -> None:
        [path] = generate(call("prompt=a heron", "trainer.storage=fp8", "anchor.trainer.storage=as_computed"))
        note = json.loads(path.with_suffix(".mp4.json").read_text())
        assert (note["anchor"]["storage"], note["hires"]["storage"]) == ("as_computed", "fp8")

    @pytest.mark.slow
    def test_lossless_is_the_decoded_frames_themselves(self, call: Any) -> None:
        request = call("prompt=a heron", "lossless=true")
        [path] = generate(request)
        assert path.suffix == ".mkv"
        repeated = call("prompt=a heron", "lossless=true", f"out={path.parent.parent / 'again'}")
        [other] = generate(repeated)
        assert np.array_equal(read_video(path), read_video(other))  # the same seed, the same video

    def test_of_one_frame_becomes_a_picture(self, call: Any) -> None:
        [path] = generate(call("prompt=a heron", "frames=1"))
        assert path.suffix == ".png"
        assert np.asarray(Image.open(path)).shape == (64, 96, 3)

    @pytest.mark.slow
    def test_with_another_seed_or_text_is_another_video(self, call: Any) -> None:
        one, seed, text = (generate(call(*w, "lossless=true"))[0] for w in (
            ("prompt=a heron",), ("prompt=a heron", "seed=1"), ("prompt=a fox",)))  # fmt: skip
        assert len({one, seed, text}) == 3
        assert len({read_video(path).tobytes() for path in (one, seed, text)}) == 3

    def test_enlarges_the_anchor_in_pixels_where_the_scale_says_so(self, call: Any) -> None:
        [path] = generate(call("prompt=a heron", "scale.anchor_upsample=pixel"))
        assert read_video(path).shape == (5, 64, 96, 3)

    def test_needs_no_weights_to_be_tried_out(self, call: Any) -> None:
        """weights=random: random networks of the configured sizes; at the tiny scale with a small VAE, to be fast."""
        shares: list[float] = []
        request = call("prompt=a heron", "weights=random")
        [path] = generate(request, lambda what, share, within: shares.append(share))
        assert read_video(path).shape == (5, 64, 96, 3)
        assert shares[-1] == pytest.approx(1.0)
        assert sum(p.numel() for p in load_codec(request).vae.parameters()) < 5e6  # Wan's has 705 million

    def test_may_be_decoded_by_a_small_decoder(self, call: Any, tmp_path: Path) -> None:
        """It is another video, by a name of its own, and its manifest says so."""
        file = tmp_path / "tiny.safetensors"
        net = TinyDecoder(4, (8, 8, 8, 8), (1, 2, 2))
        save_file(net.state_dict(), file)
        words = ("prompt=a heron", "lossless=true")
        by_vae, by_tiny = call(*words), call(*words, "codec.decoder=tiny", f"codec.decoder_file={file}")
        [path], shares = generate(by_vae), []
        [small] = generate(by_tiny, lambda what, share, part: shares.append(part) if what == "decoding" else None)
        latent = load_file(by_tiny.anchor_file(by_tiny.prompts[0]))["latent"]
        assert torch.equal(latent, load_file(by_vae.anchor_file(by_vae.prompts[0]))["latent"])
        assert small.name != path.name
        assert not np.array_equal(read_video(small), read_video(path))
        assert [share for share in shares if share] == pytest.approx([0.5, 1.0])  # two latent frames
        decode = json.loads(by_tiny.manifest(by_tiny.prompts[0]).read_text())["decode"]
        assert (decode["decoder"], decode["decoder_file"], decode["tile"]) == ("tiny", str(file), 768)
        torch.nn.init.zeros_(net.decoder[-1].get_parameter("bias"))
        save_file(net.state_dict(), file)
        again = call(*words, "codec.decoder=tiny", f"codec.decoder_file={file}")
        assert again.prompts[0].name not in (by_tiny.prompts[0].name, by_vae.prompts[0].name)

    @pytest.mark.slow
    def test_tells_how_far_the_decode_is_by_tiles_and_frames(self, call: Any) -> None:
        request = call("prompt=a heron", "frames=9", "codec.tile=64", "codec.overlap=16")
        within: list[float] = []
        generate(request, lambda what, share, part: within.append(part) if what == "decoding" else None)
        # two tiles of three latent frames: 9 frames of 96 x 64 px in tiles of 64
        assert [share for share in within if share] == pytest.approx([n / 6 for n in range(1, 7)])


class TestTheEstimate:
    def test_is_the_plans_for_each_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        said: list[str] = []
        words = ["prompt=a", "weights=random", "scale=2k", "trainer=cpu", f"out={tmp_path}"]
        with pytest.raises(Stopped):  # before torch and diffusers are imported
            make_request(parse(GenerateOptions, words), lambda request: stop_with(said, request))
        cost = generation_cost(build(["scale=2k", "trainer=cpu"]), build(["scale=2k", "trainer=cpu", "stage=anchor"]))
        # 0.074 TFLOP/s of two threads, 121 x 1440 x 2560 px at 25.5 Mpx/s; random weights have no text encoder
        hires, decode = (duration(phase.flops.total / 0.074e12) for phase in cost.phases[2:])
        assert f"stage II {hires}, decode {decode}, file 17 s" in said[0]
        assert "text" not in said[0].partition("\n")[0]
        assert "0.074 TFLOP/s of a process of 2 CPU threads, not measured here" in said[0]

    def test_knows_the_size_of_the_vae(self, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        small, wan = call("prompt=a", "weights=random"), call("prompt=a", "weights=random")
        wan.hires = dataclasses.replace(wan.hires, scale=dataclasses.replace(wan.hires.scale, name="2k"))
        assert part_seconds(small)["decode"] == pytest.approx(part_seconds(wan)["decode"] / 32**2)  # 8 of 256 channels


class TestSeveralPrompts:
    def test_come_from_a_file_in_its_order(self, call: Any, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text('{"prompt": "a fox", "seed": 4}\n{"prompt": "a heron"}\n')
        request = call(f"prompts={tmp_path / 'p.jsonl'}")
        assert [(p.text, p.seed) for p in request.prompts] == [("a fox", 4), ("a heron", 0)]
        (tmp_path / "p.txt").write_text("a fox\n\na heron\n")
        assert [p.text for p in call(f"prompts={tmp_path / 'p.txt'}").prompts] == ["a fox", "a heron"]

    @pytest.mark.slow
    def test_do_not_depend_on_each_other(self, call: Any, tmp_path: Path) -> None:
        (tmp_path / "p.txt").write_text("a fox\na heron\n")
        both = generate(call(f"prompts={tmp_path / 'p.txt'}", "lossless=true"))
        [alone] = generate(call("prompt=a heron", "lossless=true", f"out={tmp_path / 'alone'}"))
        assert both[1].name == alone.name
        assert np.array_equal(read_video(both[1]), read_video(alone))


class TestACallThatWasStopped:
    @pytest.mark.parametrize(
        "part", [*(pytest.param(p, marks=pytest.mark.slow) for p in ("stage I:", "decoding")), "stage II:"]
    )
    def test_goes_on_to_the_same_video_and_does_nothing_twice(self, call: Any, tmp_path: Path, part: str) -> None:
        request = call("prompt=a heron", "lossless=true")
        with pytest.raises(Stopped):
            generate(request, stop_at(part))
        assert not request.is_done(request.prompts[0])
        anchors = {path: path.stat().st_mtime_ns for path in (request.out / "anchors").iterdir()}
        assert len(anchors) == (part != "stage I:")
        [path] = generate(call("prompt=a heron", "lossless=true"))
        manifest = json.loads(path.with_suffix(".mkv.json").read_text())
        assert set(manifest["peak_memory_gb"]) == {"text", "anchor", "hires", "decode"}
        assert set(manifest["seconds"]) == {*manifest["peak_memory_gb"], "file"}
        assert all(anchor.stat().st_mtime_ns == time for anchor, time in anchors.items())
        [undisturbed] = generate(call("prompt=a heron", "lossless=true", f"out={tmp_path / 'other'}"))
        assert np.array_equal(read_video(path), read_video(undisturbed))

    def test_leaves_no_half_written_file_behind(self, call: Any) -> None:
        """Partial files of a killed call are removed when a call makes the prompt again."""
        request = call("prompt=a heron")
        video, anchor = request.video(request.prompts[0]), request.anchor_file(request.prompts[0])
        halves = [video.with_name(f".{video.name}.9.part"), anchor.with_name(f".{anchor.name}.9")]
        for half in halves:
            half.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(b"half")
        generate(request)
        assert not any(half.exists() for half in halves)

    def test_that_was_done_is_done_at_once(self, call: Any) -> None:
        [path] = generate(call("prompt=a heron"))
        time = path.stat().st_mtime_ns
        assert generate(call("prompt=a heron"), stop_at("")) == [path]
        assert path.stat().st_mtime_ns == time


class TestAFirstStageOfFewSteps:
    def test_is_sampled_by_its_own_solver_and_grid_and_not_by_wans(self, call: Any) -> None:
        few = call("prompt=a heron", "anchor.objective=shortcut", "anchor.guidance=off").anchor
        assert (type(few.solver).__name__, few.sampling.grid, few.feeds_strides()) == ("Euler", "uniform", True)
        wans = call("prompt=a heron").anchor
        assert (type(wans.solver).__name__, wans.sampling.grid, wans.feeds_strides()) == ("UniPC", "wan", False)


class TestTheNameOfAVideo:
    @pytest.mark.parametrize(
        "word",
        [
            *("text.negative_prompt=blurry", "anchor.sampling.num_steps=3", "sampling.num_steps=3"),
            *("injector=alpha_zero", "trainer.storage=fp8", "anchor.trainer.storage=fp8"),
            *("codec.tile=512", "codec.overlap=64"),
        ],
    )
    def test_changes_with_what_is_made(self, call: Any, word: str) -> None:
        assert call("prompt=a heron").prompts[0].name != call("prompt=a heron", word).prompts[0].name

    @pytest.mark.slow
    def test_stays_for_another_rate_or_quality_and_the_video_is_made_again(self, call: Any) -> None:
        first = call("prompt=a heron")
        [path] = generate(first)
        content = path.read_bytes()
        again = call("prompt=a heron", "quality=40")
        assert not again.is_done(again.prompts[0])
        labels: list[str] = []
        assert generate(again, lambda what, share, within: labels.append(what)) == [path]
        assert "stage I: anchors, taken from file" in labels
        assert path.read_bytes() != content
        assert json.loads(again.manifest(again.prompts[0]).read_text())["quality"] == 40


class TestTwoCalls:
    @pytest.mark.slow
    def test_do_not_make_the_same_video(self, call: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """Of two calls, such as one for each GPU, the second skips the prompts that the first one makes."""
        (tmp_path / "p.txt").write_text("a fox\na heron\n")
        one, both = call("prompt=a fox", "lossless=true"), call(f"prompts={tmp_path / 'p.txt'}", "lossless=true")
        paths: list[Path] = []

        def meanwhile(what: str, share: float, within: float) -> None:
            if what.startswith("stage II") and not paths:
                paths.extend(generate(both))

        [fox] = generate(one, meanwhile)
        assert [path.name.split("_")[0] for path in paths] == ["a-heron"]
        assert "a-fox" in capsys.readouterr().err
        assert fox.exists()


class TestACheckpointThatDoesNotFit:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("a.safetensors", "not a complete .safetensors"),
            ("a.txt", "is not read"),
            ("a.pt", "would have to run code"),
        ],
    )
    def test_or_that_cannot_be_read_is_told_before_anything_is_made(
        self, call: Any, tmp_path: Path, name: str, message: str
    ) -> None:
        (tmp_path / name).write_bytes(b"x" * 100)
        with pytest.raises(ValueError, match=message):
            call("prompt=a", f"hires={tmp_path / name}")

    def test_is_told_by_its_shapes_alone(self, call: Any, pipeline: tuple[Path, Any]) -> None:
        with pytest.raises(ValueError, match=r"diffusers layout.*injector"):
            call("prompt=a", f"hires={pipeline[0] / 'transformer'}")

    def test_to_finite_numbers_is_not_kept(self, call: Any, tmp_path: Path) -> None:
        similar = call("prompt=a heron").hires
        net = load_network(Network(similar.backbone, similar.injector, "sdpa", False, 7), "random", None, "cpu")
        torch.nn.init.constant_(net.dit.proj_out.bias, float("nan"))
        save_file(net.state_dict(), tmp_path / "a.safetensors")
        request = call("prompt=a heron", f"hires={tmp_path / 'a.safetensors'}")
        with pytest.raises(ValueError, match=r"latents/a-heron.*the latent of 'a heron' is not finite"):
            generate(request)
        assert not list((request.out / "latents").iterdir())


class TestATrainingOfOurs:
    def test_is_found_by_signature_and_brings_its_own_configuration(
        self, call: Any, pipeline: tuple[Path, Any], tmp_path: Path
    ) -> None:
        """Its injector, and that it had no strides as input, come from its configuration."""
        similar = call("prompt=a heron", "injector=alpha_zero", "objective=flow").hires
        folder = training_folder(similar, tmp_path)
        write_config(similar, folder)
        net = load_network(Network(similar.backbone, similar.injector, "sdpa", False, 7), "random", None, "cpu")
        save_file(net.state_dict(), folder / "ema.safetensors")
        write_mark(folder / "done.json", {"signature": similar.training_signature}, [folder / "ema.safetensors"])
        words = [f"hires={similar.training_signature}", f"outputs={tmp_path}", "prompt=a heron"]
        request = call(*words)
        assert request.hires.config.choices["injector"] == "alpha_zero"
        assert not request.hires.feeds_strides()
        [path] = generate(request)
        assert read_video(path).shape == (5, 64, 96, 3)
        by_folder = call(f"hires={folder}", "prompt=a heron")
        assert not by_folder.hires.feeds_strides()
        with pytest.raises(ValueError, match=r"not found.*injector\.gate"):
            call(*words, "injector=gated")

    def test_brings_its_attention_unless_told_otherwise_and_stage_one_has_its_own(
        self, call: Any, tmp_path: Path
    ) -> None:
        sparse = ("attention=topk", "attention.density=0.5", "attention.tile=[1,1,2]")
        similar = call("prompt=a", *sparse).hires
        (folder := tmp_path / "training").mkdir()
        write_config(similar, folder)
        save_file(load_network(network_of(similar), "random", None, "cpu").state_dict(), folder / "ema.safetensors")
        request = call("prompt=a", f"hires={folder}")
        assert request.hires.attention == options.TopBlocks(0.5, (1, 1, 2))
        assert request.anchor.attention is None
        dense = call("prompt=a", f"hires={folder}", "attention=dense")
        assert (dense.hires.attention, dense.anchor.attention) == (None, None)
        assert dense.prompts[0].name != request.prompts[0].name
        [one], [other] = generate(request), generate(dense)
        assert not np.array_equal(read_video(one), read_video(other))
        both = call("prompt=a", f"hires={folder}", *(f"anchor.{word}" for word in sparse))
        assert both.anchor.attention == both.hires.attention

    def test_keeps_each_stages_own_schedule(self, call: Any, tmp_path: Path) -> None:
        """The training of stage II does not change stage I."""
        sources = {}
        for stage in ("anchor", "hires"):
            folder = tmp_path / stage
            similar = call("prompt=a", "schedule.shift=6", "anchor.schedule.shift=3")
            run = similar.anchor if stage == "anchor" else similar.hires
            folder.mkdir()
            write_config(run, folder)
            net = load_network(Network(run.backbone, run.injector, "sdpa", False, 7), "random", None, "cpu")
            save_file(net.state_dict(), folder / "ema.safetensors")
            sources[stage] = f"{stage}={folder}"
        request = call("prompt=a", *sources.values())
        assert (request.anchor.schedule.shift, request.hires.schedule.shift) == (3.0, 6.0)


class TestCachedAnchors:
    @pytest.mark.slow
    def test_are_taken_from_an_earlier_call(self, call: Any, tmp_path: Path) -> None:
        first = call("prompt=a heron")
        generate(first)
        rerun = call("prompt=a heron", "sampling.num_steps=3", f"out={tmp_path / 'more'}", f"anchors_from={first.out}")
        labels: list[str] = []
        generate(rerun, lambda what, share, within: labels.append(what))
        assert "stage I: anchors, taken from file" in labels
        assert "stage I: anchors" not in labels
        one, other = (load_file(request.anchor_file(request.prompts[0]))["latent"] for request in (first, rerun))
        assert torch.equal(one, other)

    def test_that_are_not_there_are_told_by_prompt(self, call: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"anchors_from=.*no anchor of 'a heron' with seed 0"):
            call("prompt=a heron", f"anchors_from={tmp_path}")

    @pytest.mark.slow
    def test_of_another_size_or_more_than_one_are_refused(self, call: Any) -> None:
        first = call("prompt=a heron")
        generate(first)
        with pytest.raises(ValueError, match=r"is \(1, 4, 2, 2, 4\), stage II expects \(1, 4, 3, 2, 4\)"):
            call("prompt=a heron", "frames=9", f"anchors_from={first.out}")
        generate(call("prompt=a heron", "anchor.sampling.num_steps=3"))
        with pytest.raises(ValueError, match=r"2 anchors \(a-heron_.*\) of 'a heron'"):
            call("prompt=a heron", f"anchors_from={first.out}")

    @pytest.mark.slow
    def test_are_a_video_of_their_own(self, call: Any, tmp_path: Path) -> None:
        """With other anchors, the same prompt in the same folder is another video; its manifest names the anchor."""
        generate(call("prompt=a heron"))
        other = call("prompt=a heron", "anchor.sampling.num_steps=3", f"out={tmp_path / 'other'}")
        generate(other)
        rerun = call("prompt=a heron", f"anchors_from={other.out}")
        generate(rerun)
        manifest = json.loads(rerun.manifest(rerun.prompts[0]).read_text())
        assert manifest["anchor_from"] == str(other.anchor_file(other.prompts[0]))
        one, same = (load_file(m.anchor_file(m.prompts[0]))["latent"] for m in (rerun, other))
        assert torch.equal(one, same)


WRONG = [
    ((), r'give either prompt="…" or prompts=FILE'),
    (("prompt=a", "prompts=b.txt"), r"give either prompt="),
    (("prompt= ",), r"prompt 1 of 1 is empty"),
    (("prompts=nowhere.txt",), r"prompts=nowhere\.txt: no such file"),
    (("prompt=a", "frames=6"), r"scale\.frames=6: .* use 5 or 9"),
    (("prompt=a", "scale.height=72"), r"scale\.height=72: not a multiple of codec\.factor=16; use 64 or 80"),
    (("prompt=a", "scale.height=80"), r"scale\.height=80: its 5 latent positions .* use 64 or 96"),
    (("prompt=a", "anchor.scale.anchor_width=48"), r"scale\.anchor_width=48: its 3 latent positions"),
    (("prompt=a", "codec.decoder=tiny"), r"codec\.decoder=tiny: set codec\.decoder_file"),
    (("prompt=a", "codec.decoder=tiny", "codec.decoder_file=/no"), r"codec\.decoder_file=/no: no such file; taew2_2"),
    (("prompt=a", "codec.tile=large"), r"codec\.tile='large': expected a whole number or one of auto"),
    (("prompt=a", "quality=60"), r"quality=60: a whole number from 0 to 51"),
    (("prompt=a", "fps=fast"), r"fps=fast: a number from 1 to 240"),
    (("prompt=a", "lossless=yes"), r"lossless=yes: true or false"),
    (("prompt=a", "lossless=true", "quality=3"), r"quality=3: is for H\.264, lossless=true writes FFV1"),
    (("prompt=a", "text_device=tpu"), r"text_device=tpu: one of auto, cpu, gpu"),
    (("prompt=a", "weights=/nowhere"), r"weights=/nowhere: no such folder; `make weights"),
    (("prompt=a", "hires=base"), r"hires=base: Wan's own weights take no anchor"),
    (("prompt=a", "hires=/nowhere.safetensors"), r"hires=/nowhere\.safetensors: no such file"),
    (("prompt=a", "hires=0123abcd"), r"hires=0123abcd: .* holds no finished training"),
    (("prompt=a", "injector=none"), r"injector=none: stage II needs an anchor"),
    (("prompt=a", "trainer.weights=x"), r"trainer\.weights=x: use weights=DIR instead"),
    (("prompt=a", "seed=-1"), r"seed=-1: expected a whole number from 0 to 4294967295"),
    (("prompt=a", "text_device=gpu"), r"text_device=gpu: torch sees no CUDA device"),
    (("prompt=a", "trainer.attention=sage"), r"trainer\.attention=sage: not available on this machine.*sdpa"),
    (("prompt=a", "trainer.attention=cudnn"), r"trainer\.attention=cudnn: not available on this machine.*sdpa"),
    (("prompt=a", "trainer=gpu"), r"trainer=gpu: torch sees no CUDA device"),
    (("prompt=a", "trainer.offload=groups"), r"trainer\.offload='groups': .* did you mean group"),
    (("prompt=a", "sampling.num_stepz=3"), r"sampling\.num_stepz=3: .* did you mean sampling\.num_steps"),
    (("prompt=a", "anchor.sampling.timesteps=[900,500]"), r"anchor\.sampling\.grid=wan"),
    (("prompt=a", "anchor.sampling.num_stepz=3"), r"anchor\.sampling\.num_stepz=3: .* did you mean"),
    (("prompt=a", "anchor.sampling.num_steps=0"), r"anchor\.sampling\.num_steps=0: needs at least 1"),
    (("prompt=a", "scale.anchor_height=24"), r"^scale\.anchor_height=24: not a multiple"),
    (("prompt=a", "stage=anchor"), r"^stage=anchor: a video is made by both stages"),
    (("prompt=a", "anchor.stage=hires"), r"anchor\.stage=hires: a video is made by both stages"),
    (("prompt=a", "text=none"), r"^text=none: a prompt needs an encoder"),
    (("prompt=a", "codec=space_to_depth"), r"^codec=space_to_depth: .* wan_vae"),
    (("prompt=a", "codec=lapped_cosine"), r"^codec=lapped_cosine: .* wan_vae"),
    (("prompt=a", "scale=small"), r"^scale=small: has no prompts .* scale=2k makes videos"),
    (("prompt=a", "anchors=flawed"), r"^anchors=flawed: stage I makes the anchors"),
    (("prompt=a", "guidance=baked"), r"^guidance=baked: .* target\.guidance=finest"),
    (("prompt=a", "hires="), r"hires=: is empty; give it a value"),
    (("prompt=a", "out=/dev/null"), r"out=/dev/null: cannot be written"),
    (("prompt=a", "weights=/dev/null"), r"weights=/dev/null: is a file"),
]


class TestAWrongCall:
    @pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) or "nothing" for words, _ in WRONG])
    def test_is_told_the_key_the_value_and_what_would_do(self, call: Any, words: tuple[str, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call(*words)

    def test_without_a_second_stage_is_told_where_to_get_one(self, pipeline: tuple[Path, Any]) -> None:
        with pytest.raises(ValueError, match=r"hires=…: stage II needs trained weights.*weights=random"):
            request_of(
                [word for word in SIZE if word != "hires=random"] + [f"weights={pipeline[0]}", "prompt=a", "frames=5"]
            )

    def test_with_truncated_weights_is_told_the_file(
        self, call: Any, pipeline: tuple[Path, Any], tmp_path: Path
    ) -> None:
        folder = tmp_path / "weights"
        shutil.copytree(pipeline[0], folder)
        vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
        vae.write_bytes(vae.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"vae/diffusion_pytorch_model\.safetensors"):
            call("prompt=a", f"weights={folder}")

    def test_with_a_prompt_that_is_too_long_is_told_before_a_network_loads(self, call: Any) -> None:
        with pytest.raises(ValueError, match=r"prompt 1 of 1 has 601 tokens, the encoder takes 512"):
            call(f"prompt={'a' * 600}")

    def test_of_prompts_in_a_file_reads_what_editors_write(self, call: Any, tmp_path: Path) -> None:
        (tmp_path / "p.txt").write_bytes("\ufeffa heron\r\n\r\nun héron\u2028deux\r\n".encode())
        assert [p.text for p in call(f"prompts={tmp_path / 'p.txt'}").prompts] == ["a heron", "un héron\u2028deux"]
        (tmp_path / "p.txt").write_bytes("un héron".encode("latin-1"))
        with pytest.raises(ValueError, match=r"p\.txt: is not UTF-8"):
            call(f"prompts={tmp_path / 'p.txt'}")

    def test_with_a_full_disk_leaves_nothing(self, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        request = call("prompt=a heron")
        monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(ValueError, match=r"out=.*needs 4\.9 kB for 1 video, 0\.0 kB are free"):
            generate(request)
        assert not request.out.exists()

    @pytest.mark.parametrize("bytes_", [12_000, 30_000], ids=["text", "video"])
    def test_whose_disk_fills_up_midway_says_so_and_leaves_nothing_half(
        self, call: Any, capsys: pytest.CaptureFixture[str], bytes_: int
    ) -> None:
        """A limit on the file size imitates a full disk: at the text embedding, then at the video."""
        request = call("prompt=a heron", "lossless=true")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, limits[1]))
        try:
            assert main(to_words(request.options)) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert re.search(
            rf"error: out={request.out}: .*File too large.*run the same command again", capsys.readouterr().err
        )
        assert not list(request.out.glob("a-heron*"))
        assert not [path for path in request.out.rglob(".*") if path.is_file()]
        [path] = generate(call("prompt=a heron", "lossless=true"))
        assert read_video(path).shape == (5, 64, 96, 3)

    def test_of_prompts_names_the_line(self, call: Any, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
        with pytest.raises(ValueError, match=r"p\.jsonl: line 2 is not"):
            call(f"prompts={tmp_path / 'p.jsonl'}")
        (tmp_path / "p.txt").write_text("a\na\n")
        with pytest.raises(ValueError, match=r"'a' with seed 0 occurs twice"):
            call(f"prompts={tmp_path / 'p.txt'}")

    def test_ends_with_status_2_and_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["scale=8k", "prompt=a", "weights=random"]) == 2
        assert capsys.readouterr().err.startswith("error: scale=8k: scale is one of 2k, 4k, proxy, small, tiny")


def test_vbenchs_prompts_are_not_too_many_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4720 + OTHER_FILES:
        pytest.skip("this machine does not allow that many")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        allow_open_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1024
        allow_open_files(4720)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 4720
        if hard != resource.RLIM_INFINITY:
            with pytest.raises(ValueError, match="give fewer at once"):
                allow_open_files(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("overrides", "expected"), [((), (50, "wan", "unipc")), (("objective=shortcut",), (4, "uniform", "euler"))]
)
def test_a_first_stage_that_learned_few_steps_takes_them(overrides: tuple[str, ...], expected: tuple[int, str, str]):
    from pw.generate.stage_runs import stage_runs

    _, anchor = stage_runs(["scale=2k"], overrides, None, None)
    assert (anchor.sampling.num_steps, anchor.sampling.grid, anchor.config.choices["solver"]) == expected
