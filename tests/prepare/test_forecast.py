"""What `pw data` says before it begins, and that each printed command prepares what the next one needs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from pw.io.arguments import ConfigError, parse
from pw.io.video import write_video
from pw.prepare import encode
from pw.prepare.encoding import LatentsOptions, estimate, plan_encoding
from pw.prepare.forecast import ScaleNeeds, VideoSize, forecast
from pw.prepare.ingest import DataOptions, main
from pw.prepare.source_videos import ClipSettings
from pw.prepare.ultravideo import expected


def options(*words: str) -> DataOptions:
    return parse(DataOptions, words)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video that serves the proxy scale: 70 frames at 30 frames/s are 56 at 24; and one that is too small."""
    folder = tmp_path_factory.mktemp("videos")
    ramp = np.linspace(0, 200, 864, dtype=np.uint8)[None, :, None].repeat(480, 0).repeat(3, 2)
    write_video(folder / "large.mp4", np.stack([np.roll(ramp, 4 * n, 1) for n in range(70)]), 30, lossless=False)
    write_video(
        folder / "small.mp4", np.stack([np.roll(ramp[:240, :320], n, 1) for n in range(70)]), 30, lossless=False
    )
    return folder


class TestAScale:
    @pytest.mark.parametrize(
        ("scale", "frames", "short_side", "fps"),
        # 16:9 clips of 1440 px cover 2560 x 1440; those of 2160 px 3840 x 2144; 832 px are 468 px high; 64 px crops are
        # half of 128 px
        [
            *(("2k", 121, 1440, 24), ("4k", 121, 2160, 24), ("proxy", 49, 468, 24)),
            *(("small", 9, 128, 0), ("tiny", 5, 80, 0)),
        ],
    )
    def test_sets_frames_size_and_rate(self, scale: str, frames: int, short_side: int, fps: float) -> None:
        settings = options("path=x", f"scale={scale}").settings
        assert settings == ClipSettings(frames=frames, short_side=short_side, fps=fps)

    def test_leaves_what_is_given_and_enough(self) -> None:
        settings = options("path=x", "scale=proxy", "frames=97", "fps=12").settings
        assert settings == ClipSettings(frames=97, short_side=468, fps=12)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("scale=2k", "frames=5"), r"frames=5: scale=2k needs 121 or more; leave frames= out"),
            (("scale=2k", "short_side=720"), r"short_side=720: scale=2k needs 1440 or more"),
            (("scale=3k",), r"scale is one of 2k, 4k, proxy, small, tiny"),
        ],
    )
    def test_is_not_made_smaller(self, words: tuple[str, ...], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            _ = options("path=x", *words).settings


class TestTheSequence:
    @pytest.mark.slow
    def test_of_the_printed_commands_ends_in_latents(
        self, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The defaults of `pw data`; `pw latents`, which names the right call; that call; and the one it names."""
        monkeypatch.chdir(tmp_path)
        assert main([f"path={videos}"]) == 0
        assert encode.main(["urls=data/shards", "scale=proxy"]) == 2
        error = capsys.readouterr().err
        assert "needs clips of 49 frames, 448 x 832 px" in error
        assert "the largest has 5 frames of 80 x 144" in error
        [command] = re.findall(r"`pw data path=DIR (.*?)`", error)
        assert command == "scale=proxy"
        assert main([f"path={videos}", *shlex.split(command)]) == 0
        output = capsys.readouterr().out
        assert "2 videos, 1 large enough for scale=proxy" in output
        [following] = re.findall(r"next: pw latents (.*)", output)
        assert following == "urls=data/shards-proxy scale=proxy"
        assert encode.main([*shlex.split(following), "splits=train,val", "dry_run=true"]) == 0
        output = capsys.readouterr().out
        assert "1 clips in" in output
        assert re.search(r"time     about .* on 1 GPU at 400 TFLOP/s \(VAE 364\), assumed", output)
        assert "frames/s of their videos" not in output
        assert encode.main(["scale=proxy", "dry_run=true"]) == 0  # the folder is also the default

    def test_for_a_size_of_ones_own_names_it(self, videos: Path, tmp_path: Path) -> None:
        out = tmp_path / "shards"
        assert main([f"path={videos}", f"out={out}"]) == 0
        words = [f"urls={out}", "scale=proxy", "scale.frames=17", "scale.height=96", "scale.width=160"]
        with pytest.raises(ConfigError) as error:
            plan_encoding(parse(LatentsOptions, words))
        [command] = re.findall(r"`pw data path=DIR (.*?)`", str(error.value))
        assert command == f"frames=17 short_side=96 fps=24 out={out}-larger"
        assert main([f"path={videos}", *shlex.split(command)]) == 0
        encoding = plan_encoding(parse(LatentsOptions, [f"urls={out}-larger", *words[1:]]))
        assert any(shard.ids for shard in encoding.shards)

    def test_notes_shards_that_play_too_fast(self, videos: Path, tmp_path: Path) -> None:
        assert main([f"path={videos}", f"out={tmp_path}", "frames=17", "short_side=96"]) == 0
        words = [f"urls={tmp_path}", "scale=proxy", "scale.frames=17", "scale.height=96", "scale.width=160"]
        assert "keep all frames/s of their videos; Wan's have 24" in estimate(
            plan_encoding(parse(LatentsOptions, words))
        )

    def test_is_refused_before_anything_is_written(
        self, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([f"path={videos}", f"out={tmp_path / 'out'}", "scale=2k"]) == 2
        error = capsys.readouterr().err
        assert "scale=2k: 121 frames of 1440 x 2560 px at 24 frames/s, and none of 2 videos is as large" in error
        assert "at most 480 x 864 px, 2.3 s; none is enlarged" in error
        assert error.endswith("scale=proxy takes 1 of them\n")
        assert not (tmp_path / "out").exists()


class TestAForecast:
    def test_counts_clips_bytes_and_pixels(self) -> None:
        """121 frames at 24 of 30 frames/s: 300 frames are 240, of which one clip fits, and two every 60 frames."""
        settings = ClipSettings(frames=121, short_side=1440, fps=24)
        source = VideoSize(300, 2160, 3840, 30)
        made = forecast([source, source], settings, ScaleNeeds.of_scale("2k"))
        assert (made.videos, made.clips, made.serving) == (2, 2, 2)
        assert made.shard_bytes == 2 * 121 * 1440 * 2560 * 3
        assert made.disk_bytes == 2 * made.shard_bytes
        assert made.pixels == 2 * 300 * 2160 * 3840
        assert forecast([source], ClipSettings(frames=121, short_side=1440, fps=24, stride=60)).clips == 2
        short = forecast([VideoSize(100, 2160, 3840, 30)], settings, ScaleNeeds.of_scale("2k"))
        assert (short.clips, short.serving, short.shard_bytes) == (0, 0, 0)

    def test_is_the_same_without_a_run_that_writes(
        self, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [f"path={videos}", f"out={tmp_path / 'out'}"]
        assert main([*words, "dry_run=true"]) == 0
        said = capsys.readouterr().out
        assert "2 videos\n  clips  at most 28 of 5 frames, 80 px on the short side" in said  # 14 of 70 frames each
        assert not (tmp_path / "out").exists()
        assert main(words) == 0
        assert capsys.readouterr().out.startswith(said.partition("  free")[0])

    def test_of_ultravideo_says_what_a_terabyte_becomes(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A 2K clip of 121 frames has 1.34 GB, and exists twice while it works."""
        everything = expected(options("name=ultravideo", "scale=2k"))
        assert everything.videos == everything.clips == 42_000
        assert everything.disk_bytes == pytest.approx(42_000 * (33e6 + 2 * 1.338e9), rel=1e-3)
        assert main(["name=ultravideo", "scale=2k", "dry_run=true"]) == 2
        output = capsys.readouterr()
        assert "disk   113.8 TB" in output.out
        assert re.search(
            r"out=data/ultravideo: needs 119\.5 TB, .* are free there; give an out= on another", output.err
        )

    def test_of_ultravideo_refuses_a_copy_that_is_too_small(self) -> None:
        with pytest.raises(ConfigError, match=r"size=960: has 540 x 960 px; scale=2k: 121 frames.*use size=native"):
            expected(options("name=ultravideo", "scale=2k", "size=960"))
        assert expected(options("name=ultravideo", "scale=proxy", "size=960", "taste=3")).clips == 9
