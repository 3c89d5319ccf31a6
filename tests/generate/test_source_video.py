"""pw.generate with `video=`: a video of one's own in the place of stage I, in windows if it is long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from pw.generate.estimate import describe
from pw.generate.output import crossfaded
from pw.generate.pipeline import announce, generate
from pw.generate.request import GenerateOptions, GenerationRequest, make_request
from pw.generate.source_video import centre_crop
from pw.generate.video_anchors import anchor_video, windows_of
from pw.generate.windows import JointWindows, blend, share_noise
from pw.io.arguments import parse
from pw.io.audio import audio_codec
from pw.io.video import Frames, frames_at, probe, read_video, write_video
from pw.nn.networks import load_network
from pw.stages import network_of

RATE = 16_000  # Hz
CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"
WAN = (
    *("scale=tiny", "scale.height=64", "scale.width=96", "scale.anchor_height=32", "scale.anchor_width=64"),
    *("scale.anchor_upsample=latent", "sampling.num_steps=2", "hires=random", "lossless=true"),
)


class Stopped(Exception):
    """Ends a call early."""


def grey(count: int, height: int = 48, width: int = 72) -> Frames:
    """Frames of one grey each, brighter from one to the next by 4 of 255, with a dark left half."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (20 + 4 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[:, :, : width // 2] //= 2
    return frames


def with_sound(path: Path, frames: Frames, codec: str, seconds: float) -> Path:
    """A Matroska file at 8 frames a second with a tone of `seconds`."""
    with av.open(str(path), "w", format="matroska") as container:
        video: Any = container.add_stream("ffv1", rate=8)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "bgr0"
        audio: Any = container.add_stream(codec, rate=RATE)
        audio.layout = "mono"
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        tone = (3000 * np.sin(np.arange(int(RATE * seconds)) / 5)).astype(np.int16)
        sound = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        sound.sample_rate = RATE
        for part in av.AudioResampler(audio.format, "mono", 8000, audio.codec_context.frame_size or 1024).resample(
            sound
        ):
            container.mux(audio.encode(part))
        container.mux(audio.encode())
    return path


@pytest.fixture
def call(pipeline: tuple[Path, Any], tmp_path: Path):
    """`call(video, "prompt=a heron")` is a checked call with Wan's codec."""

    def request(video: Path, *words: str) -> GenerationRequest:
        given = [f"weights={pipeline[0]}", f"out={tmp_path / 'out'}", f"video={video}", "prompt=a heron"]
        replaced = {word.partition("=")[0] for word in words}
        kept = [word for word in (*WAN, *given) if word.partition("=")[0] not in replaced]
        return make_request(parse(GenerateOptions, [*kept, *words]))

    return request


@pytest.fixture
def own(tmp_path: Path):
    """`own(video)` is a checked call at the tiny scale as it is trained, with random weights."""

    def request(video: Path, *words: str) -> GenerationRequest:
        words = ("scale=tiny", f"video={video}", f"out={tmp_path / 'own'}", "lossless=true", *words)
        return make_request(parse(GenerateOptions, words))

    return request


class TestAVideo:
    def test_is_the_anchor_of_a_video_as_long_and_as_fast(self, call: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "mine.mkv", grey(7), 12.5)
        request = call(tmp_path / "mine.mkv", "frames=9")
        [path] = generate(request)
        assert read_video(path).shape == (7, 64, 96, 3)
        assert probe(path).fps == 12.5
        manifest = json.loads(path.with_suffix(".mkv.json").read_text())
        assert manifest["anchor"] is None  # there is no stage I
        assert (manifest["frames"], manifest["fps"], manifest["video"]["window_frames"]) == (7, 12.5, 9)
        assert manifest["video"]["changes"] == ["its last frame is repeated 2 times, and they are cut off again"]
        assert set(manifest["seconds"]) == {"text", "anchor", "hires", "decode", "file"}
        latent = load_file(request.anchor_file(request.prompts[0]))["latent"]
        assert latent.shape == (1, 4, 3, 2, 4)

    def test_needs_neither_weights_nor_prompt_at_the_tiny_scale(self, own: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "My clip.mkv", grey(8), 8)
        [path] = generate(own(tmp_path / "My clip.mkv"))
        assert path.name.startswith("my-clip_")
        assert read_video(path).shape == (8, 24, 24, 3)

    def test_is_encoded_as_the_training_of_its_weights_made_anchors(self, own: Any, tmp_path: Path) -> None:
        """Clean anchors are the area mean of the clip; as trained they are blurred: a softer edge in the middle."""
        write_video(tmp_path / "a.mkv", grey(3, 24, 24), 8)
        clean, trained = own(tmp_path / "a.mkv", "degradation=none"), own(tmp_path / "a.mkv")
        assert clean.prompts[0].name != trained.prompts[0].name
        [frames] = windows_of(clean.source)
        anchor = anchor_video(clean, 0, frames)
        # 20 / 2 = 10 and 20 of 255 in the first frame: 10 / 127.5 - 1 and 20 / 127.5 - 1
        assert anchor.shape == (1, 3, 3, 12, 12)
        assert anchor[0, 0, 0, 0].tolist() == pytest.approx([10 / 127.5 - 1] * 6 + [20 / 127.5 - 1] * 6, abs=2e-2)
        steps = [anchor_video(request, 0, frames)[0, 0, 0, 5].diff().max() for request in (clean, trained)]
        assert steps[1] < 0.7 * steps[0]

    def test_at_another_rate_lasts_as_long(self, call: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mkv", grey(8), 8)
        request = call(tmp_path / "a.mkv", "fps=4", "frames=5")
        assert (request.frames, request.fps) == (4, 4)
        assert "4 frames at 4/s" in request.source.line(request.hires)

    def test_of_another_shape_is_cut_in_its_middle_and_says_so(self, call: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mkv", grey(5, 40, 90), 8)
        request = call(tmp_path / "a.mkv", "frames=5")
        # 96 : 64 of 40 rows are 60 columns, from (90 - 60) / 2 on; 30 of 90 are a third
        assert request.source.crop == (slice(0, 40), slice(15, 75))
        line = request.source.line(request.hires)
        assert "left and right are cut, 33.3% of the picture; it is smaller than its anchor and enlarged" in line

    def test_is_part_of_the_name_as_its_rate_is(self, call: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mkv", grey(5), 8)
        write_video(tmp_path / "b.mkv", 255 - grey(5), 8)
        names = {
            call(tmp_path / file, *words).prompts[0].name
            for file, words in (("a.mkv", ()), ("b.mkv", ()), ("a.mkv", ("fps=16",)))
        }
        assert len(names) == 3

    def test_says_what_happens_before_work_begins(
        self, call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_video(tmp_path / "a.mkv", grey(20), 8)
        request = call(tmp_path / "a.mkv", "frames=9")
        announce(request)
        said = capsys.readouterr().err
        assert "video=a.mkv: 20 frames of 72 x 48 at 8/s become an anchor of 64 x 32, degradation=default" in said
        # 20 frames are 1 + 5 latent frames (21 frames); of windows of 3 with 1 in common it takes 3
        assert "3 windows of 9 frames share 1 or more" in said
        assert "encode " in describe(request, 1)


class TestALongVideo:
    def test_is_made_in_windows_as_short_as_their_number_allows(self, call: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mkv", grey(20), 8)
        source = call(tmp_path / "a.mkv", "frames=9").source
        assert [source.first_frame(n) for n in range(3)] == [0, 4, 12]
        assert [source.shared_frames(n) for n in range(3)] == [0, 5, 1]
        pictures = [[int(frame[0, -1, 0]) for frame in window] for window in windows_of(source)]
        first = 20 + 4 * np.arange(9)
        assert pictures == [[*first], [*(first + 16)], [*(first + 48)[:8], 20 + 4 * 19]]  # the last one again

    def test_has_all_its_frames_and_agrees_where_windows_meet(self, call: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mkv", grey(20), 8)
        request = call(tmp_path / "a.mkv", "frames=9")
        shares: list[float] = []
        [path] = generate(request, lambda what, share, part: shares.append(share))
        assert read_video(path).shape == (20, 64, 96, 3)
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)
        assert not list((request.out / "latents").iterdir())
        assert len(list((request.out / "anchors").iterdir())) == 3
        manifest = json.loads(path.with_suffix(".mkv.json").read_text())
        assert manifest["video"]["windows"] == [0, 4, 12]

    @pytest.mark.parametrize("words", [(), ("sampling.init=anchor", "sampling.timesteps=[800,600]")])
    def test_has_one_latent_where_windows_meet_whatever_they_begin_from(
        self, call: Any, tmp_path: Path, words: Any
    ) -> None:
        """Each window's anchor is encoded by itself; a state from it, noised, would differ in what two share."""
        write_video(tmp_path / "a.mkv", grey(13), 8)
        request = call(tmp_path / "a.mkv", "frames=9", *words)

        def stop(what: str, share: float, part: float) -> None:
            if what == "loading the VAE":
                raise Stopped

        with pytest.raises(Stopped):
            generate(request, stop)
        windows = request.windows(request.prompts[0])
        assert [request.source.shared_latents(n) for n in range(len(windows))] == [0, 2]
        before, after = (load_file(request.latent_file(window))["latent"] for window in windows)
        assert torch.equal(before[:, :, -1], after[:, :, 1])

    @pytest.mark.parametrize("at", [2, 5])
    def test_that_was_stopped_goes_on_at_the_next_evaluation(self, call: Any, tmp_path: Path, at: int) -> None:
        write_video(tmp_path / "a.mkv", grey(20), 8)
        request, count = call(tmp_path / "a.mkv", "frames=9"), 0

        def stop(what: str, share: float, part: float) -> None:
            nonlocal count
            count += what.startswith("stage II")
            if count == at + 2:  # after the line of its loading
                raise Stopped

        with pytest.raises(Stopped):
            generate(request, stop)
        kept = {path: path.stat().st_mtime_ns for path in (request.out / "latents").glob("*.v*")}
        assert len(kept) >= at
        seen: list[Path] = []

        def watch(what: str, share: float, part: float) -> None:
            seen.extend(path for path, time in kept.items() if path.exists() and path.stat().st_mtime_ns != time)

        [path] = generate(call(tmp_path / "a.mkv", "frames=9"), watch)
        assert not seen  # no evaluation was made again
        [other] = generate(call(tmp_path / "a.mkv", "frames=9", f"out={tmp_path / 'other'}"))
        assert np.array_equal(read_video(path), read_video(other))

    def test_takes_one_windows_time_as_often_as_it_has_windows(self, own: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mkv", grey(3), 8)
        write_video(tmp_path / "b.mkv", grey(5), 8)
        one, two = own(tmp_path / "a.mkv"), own(tmp_path / "b.mkv")
        assert [len(request.source.windows) for request in (one, two)] == [1, 2]
        seconds = [float(describe(r, 1).partition("stage II ")[2].split()[0]) for r in (one, two)]
        assert seconds[1] == pytest.approx(2 * seconds[0], rel=0.2)


class TestWindowsTogether:
    def test_of_one_clip_in_all_are_that_clip(self, own: Any, tmp_path: Path) -> None:
        """Two windows of the same frames share all: their mean is what each has, so is the velocity of one."""
        write_video(tmp_path / "a.mkv", grey(3), 8)
        run = own(tmp_path / "a.mkv").hires
        net = load_network(network_of(run), "random", None, "cpu")
        torch.nn.init.normal_(net.dit.proj_out.weight)
        rng = torch.Generator().manual_seed(0)
        state, anchor = torch.randn(2, 1, 48, 3, 6, 6, generator=rng)
        time, text = torch.full((1,), 600.0), torch.zeros(1, run.backbone.text_tokens, run.backbone.text_dim)
        joint = JointWindows(net, "cpu", [0, 3], True, lambda: None, None, True)
        with torch.no_grad():
            alone = net(state, time, time, text, anchor, sigma_timestep=time)
            pair = [value.repeat(2, *[1] * (value.ndim - 1)) for value in (state, time, time, anchor)]
            both = joint(*pair[:3], text, pair[3], sigma_timestep=pair[1])
        assert torch.allclose(both, alone.expand(2, -1, -1, -1, -1), atol=1e-6)

    def test_evaluates_one_window_at_a_time_and_both_branches_of_guidance(self) -> None:
        sizes = []

        def net(state: torch.Tensor, timestep: Any, stride: Any, text: torch.Tensor, anchor: Any, **_: Any):
            sizes.append(len(state))
            return state + text.mean()

        joint: Any = JointWindows(net, "cpu", [0, 1], True, lambda: None, None, True)  # ty: ignore
        state = torch.arange(8.0).view(4, 1, 2, 1, 1)  # two branches of two windows of two frames
        time, text = torch.zeros(4), torch.tensor([0.0, 100.0]).view(2, 1, 1)
        velocity = joint(state, time, time, text, state, sigma_timestep=time)
        assert sizes == [1, 1, 1, 1]
        # frames 0 1 | 2 3 share 1 and 2: (1 + 2) / 2 in both; likewise 104 105 | 106 107
        assert velocity.flatten().tolist() == [0, 1.5, 1.5, 3, 104, 105.5, 105.5, 107]

    def test_share_noise_and_weigh_linearly(self) -> None:
        noise = share_noise([torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)], [0, 3])
        assert noise[1].flatten().tolist() == [0, 0, 0, 1]
        latents = torch.stack([torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), 8.0)])
        blend(latents, [0, 3], is_whole=True)
        assert latents.flatten().tolist() == [0, 2, 4, 6, 2, 4, 6, 8]  # weights 1/4, 2/4, 3/4 of the second
        latents = torch.stack([torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), 8.0)])
        blend(latents, [0, 3], is_whole=False)  # its first latent frame encodes one frame, there four
        assert latents.flatten().tolist() == [0, 0, 4, 6, 8, 4, 6, 8]

    def test_fade_into_each_other_in_pixels(self) -> None:
        clips = [np.full((4, 1, 1, 3), value, np.uint8) for value in (0, 90)]
        frames = [int(frame[0, 0, 0]) for frame in crossfaded(clips, [0, 2])]
        assert frames == [0, 0, 30, 60, 90, 90]


class TestSound:
    @pytest.mark.parametrize("codec", ["aac", "libmp3lame"])
    def test_is_copied_to_the_end_of_the_video(self, own: Any, tmp_path: Path, codec: str) -> None:
        video = with_sound(tmp_path / "a.mkv", grey(8), codec, 3.0)
        request = own(video, "lossless=false")
        [path] = generate(request)
        packets = sound_of(video)
        copied = sound_of(path)
        assert audio_codec(path) == audio_codec(video)
        assert copied == [data for data in packets if data in copied]  # the same, not encoded again
        with av.open(str(path)) as container:
            [sound] = container.streams.audio
            assert 0.7 < float(sound.duration * sound.time_base) <= 1.0  # 8 frames at 8 a second

    def test_that_players_do_not_read_in_an_mp4_is_left_out_and_said(self, own: Any, tmp_path: Path) -> None:
        video = with_sound(tmp_path / "a.mkv", grey(8), "pcm_s16le", 1.0)
        request = own(video, "lossless=false")
        assert "its sound (pcm_s16le) is left out" in request.source.line(request.hires)
        [path] = generate(request)
        assert audio_codec(path) == ""
        [kept] = generate(own(video, f"out={tmp_path / 'lossless'}"))
        assert audio_codec(kept) == "pcm_s16le"


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


class TestTheTimeOfFrames:
    def test_is_the_nearest_and_the_last_one_is_repeated(self, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mkv", grey(5), 8)

        def shown(fps: float, count: int) -> list[int]:
            return [(int(frame[0, -1, 0]) - 20) // 4 for frame in frames_at(tmp_path / "a.mkv", fps, count)]

        assert shown(8, 7) == [0, 1, 2, 3, 4, 4, 4]
        assert shown(4, 3) == [0, 2, 4]
        assert shown(16, 9) == [0, 0, 1, 1, 2, 2, 3, 3, 4]  # midway: the earlier

    @pytest.mark.parametrize(
        ("size", "shape", "crop"),
        [
            ((1080, 1920), (1440, 2560), (slice(0, 1080), slice(0, 1920))),
            ((1920, 1080), (1440, 2560), (slice(656, 1264), slice(0, 1080))),  # 1080 * 9 / 16 = 607.5
            ((2, 3), (24, 24), (slice(0, 2), slice(0, 2))),
        ],
    )
    def test_and_its_crop_is_the_largest_in_the_middle(self, size: Any, shape: Any, crop: Any) -> None:
        assert centre_crop(size, shape) == crop


WRONG = [
    (("video=/nowhere.mp4",), r"video=/nowhere\.mp4: no such file"),
    (("video=TEXT",), r"video=.*text\.mp4: damaged, truncated or not a video"),
    (("anchors_from=.",), r"anchors_from=\.: with video= there is no stage I"),
    (("anchor=random",), r"anchor=random: with video= there is no stage I"),
    (("anchor.sampling.num_steps=3",), r"anchor\.sampling\.num_steps=3: with video= there is no stage I"),
    (("frames=1",), r"frames=1: is a window of the video, and needs two latent frames, 5"),
    (("frames=6",), r"scale\.frames=6: .* use 5 or 9"),
    (("anchors=clean",), r"anchors=clean: .* degradation="),
]


class TestAWrongCall:
    @pytest.mark.parametrize(("words", "message"), WRONG, ids=[words[0] for words, _ in WRONG])
    def test_is_told_before_anything_loads(self, call: Any, tmp_path: Path, words: Any, message: str) -> None:
        write_video(tmp_path / "a.mkv", grey(5), 8)
        (tmp_path / "text.mp4").write_text("no video" * 100)
        words = [word.replace("TEXT", str(tmp_path / "text.mp4")) for word in words]
        with pytest.raises(ValueError, match=message):
            call(tmp_path / "a.mkv", *words)

    def test_of_a_video_that_is_too_long_for_the_memory_is_told_how_much_fits(
        self, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At tiny a window has 48 x 3 x 6 x 6 numbers of latent, 5 times, and as many of anchor: 124,416 bytes."""
        write_video(tmp_path / "a.mkv", grey(21), 8)
        source = own(tmp_path / "a.mkv").source
        assert (len(source.windows), source.first_frame(3) + source.window_frames) == (10, 9)
        memory = psutil.virtual_memory()
        monkeypatch.setattr("psutil.virtual_memory", lambda: memory._replace(available=4 * 124_416 + 1))
        words = (
            r"a\.mkv: the latents of its 10 windows need 1\.2 MB of CPU memory, 497\.7 kB are free; cut it to 1\.1 s"
        )
        with pytest.raises(ValueError, match=words):
            own(tmp_path / "a.mkv")

    def test_of_a_network_without_text_with_a_prompt_is_told(self, own: Any, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mkv", grey(5), 8)
        with pytest.raises(ValueError, match=r"prompt=…: the networks of scale=tiny and small take no text"):
            own(tmp_path / "a.mkv", "prompt=a heron")


@pytest.mark.skipif(not CLIPS.is_dir(), reason="../shared/data/clips is not here")
def test_a_real_clip_keeps_its_length_rate_and_sound(own: Any) -> None:
    [path] = generate(own(CLIPS / "bigbuckbunny.mp4", "fps=5", "lossless=false"))
    info = probe(path)
    assert (info.frames, info.fps, audio_codec(path)) == (26, 5, "aac")  # of 132 frames at 25 a second
