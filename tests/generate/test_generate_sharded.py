"""pw.generate with networks split over processes: the same videos, from any unfinished state."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_processes import train_together

from benchmarks.systems import CARDS
from benchmarks.systems.jobs import costs
from benchmarks.systems.system_command import main
from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, GenerationRequest, make_request
from pw.io.arguments import parse
from pw.io.video import read_video

SIZES = (
    *("scale.height=64", "scale.width=96", "scale.anchor_height=32", "scale.anchor_width=64"),
    *("scale.anchor_upsample=latent", "anchor.sampling.num_steps=2", "hires=random"),
)
SMALL = ("scale=tiny", *SIZES, "sampling.num_steps=2", "frames=5", "lossless=true")
SPLIT = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.threads=1")
TWO = (*SPLIT, "trainer.devices=2")
ALL = {"text", "anchor", "hires", "decode", "file"}


@pytest.fixture
def words(pipeline: tuple[Path, Any], tmp_path: Path):
    """`words("out", …)`: the arguments of a call for three videos."""
    (tmp_path / "p.txt").write_text("a fox\na heron\na toad\n")

    def words_for(out: str, *more: str) -> list[str]:
        return [*SMALL, f"weights={pipeline[0]}", f"prompts={tmp_path / 'p.txt'}", f"out={tmp_path / out}", *more]

    return words_for


def request_of(words: list[str]) -> GenerationRequest:
    """The checked request of a command's words."""
    return make_request(parse(GenerateOptions, words))


@dataclass(frozen=True)
class Call:
    """The work of one of several processes."""

    words: list[str]

    def carried_out(self, rank: int) -> str:
        """Make the videos; returns the prompts of this process."""
        request = request_of(self.words)
        generate(request)
        return ", ".join(prompt.text for prompt in request.prompts if prompt.name in request.seconds)


def manifests(request: GenerationRequest) -> list[dict[str, Any]]:
    return [json.loads(request.manifest(prompt).read_text()) for prompt in request.prompts]


def videos(request: GenerationRequest) -> list[Any]:
    return [read_video(request.video(prompt)) for prompt in request.prompts]


@pytest.mark.slow
def test_two_processes_make_the_videos_of_one(words: Any) -> None:
    """Bit for bit, also if a process has nothing to make, or stages have different prompts to make."""
    reuse = ("guidance=reuse", "sampling.init=anchor", "sampling.timesteps=[800,600]")
    one, two, rest = (request_of(words(out, "trainer=cpu", *reuse)) for out in ("one", "two", "rest"))
    generate(one)
    # of the rest, the fox has its anchor, the heron is done, and of the toad there is nothing
    shutil.copytree(one.out, rest.out)
    fox, heron, toad = rest.prompts
    for path in (rest.manifest(fox), rest.manifest(toad), rest.video(toad), rest.anchor_file(toad)):
        path.unlink()
    time = rest.video(heron).stat().st_mtime_ns
    first, second = train_together(2, Call(words("two", *TWO, *reuse)), Call(words("rest", *TWO, *reuse)))
    assert (first, second) == (["a fox, a toad", "a toad"], ["a heron", "a fox"])
    for request in (two, rest):
        assert all(np.array_equal(*pair) for pair in zip(videos(one), videos(request), strict=True))
        assert all(set(manifest["seconds"]) == ALL for manifest in manifests(request))
    assert rest.video(heron).stat().st_mtime_ns == time
    assert [manifest["processes"] for manifest in manifests(one) + manifests(rest)] == [1, 1, 1, 2, 1, 2]


@pytest.mark.slow
def test_two_processes_make_each_video_together(words: Any) -> None:
    """The second process reads the files of the first; a stopped call is continued."""
    tiles = ("codec.tile=32", "codec.overlap=16", "sampling.sizes=[0.5,1]")  # 3 x 5 tiles
    one, both, rest = (request_of(words(out, "trainer=cpu", *tiles)) for out in ("one", "both", "rest"))
    generate(one)
    shutil.copytree(one.out, rest.out)
    for path in (rest.manifest(rest.prompts[1]), rest.video(rest.prompts[1])):
        path.unlink()
    together = (*TWO, "trainer.context=2", *tiles)
    for result in train_together(2, Call(words("both", *together)), Call(words("rest", *together))):
        assert result == ["a fox, a heron, a toad", "a heron"]
    for result in (both, rest):  # in other orders of summation
        for expected, actual in zip(videos(one), videos(result), strict=True):
            assert np.abs(expected.astype(int) - actual).max() <= 1
    assert [(manifest["processes"], manifest["context"]) for manifest in manifests(both)] == [(2, 2)] * 3
    assert all(set(manifest["seconds"]) == ALL for manifest in manifests(both))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("trainer=ddp", "trainer.accelerator=cpu"), r"trainer=ddp: .*trainer=fsdp splits .* with trainer=gpu"),
        ((*TWO, "anchor.trainer.devices=1"), r"anchor\.trainer\.devices=1: stage II has 2"),
        (
            (*TWO, "trainer.context=2", "anchor.trainer.context=1"),
            r"anchor\.trainer\.context=1: there is no key trainer.context",
        ),
        ((*TWO, "trainer.nodes=2"), r"trainer\.nodes=2: .* on several machines|trainer\.nodes=2: .* of one machine"),
        (("trainer=fsdp",), r"trainer=fsdp: torch sees no CUDA device here; set trainer\.accelerator=cpu"),
    ],
)
def test_what_cannot_be_is_refused(words: Any, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_of(words("out", *more))


def test_torchrun_is_refused(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for key, value in ranks.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match="starts its processes by itself"):
        request_of(words("out", *TWO))
    request_of(words("out", "trainer=cpu"))  # a call for each GPU may be started by whatever starts them


@pytest.mark.slow
def test_benchmarks_systems_split_pixelwizard(
    pipeline: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Starts real processes, from another folder; the table says that they shared a model."""
    text = (CARDS / "pixelwizard_2k.yaml").read_text()
    for old, new in (
        ("width: 2560, height: 1440, frames: 121", "width: 96, height: 64, frames: 5"),
        *(("steps: 4", "steps: 2"), ('scale: "2k"', 'scale: "tiny"'), ("name: pixelwizard_2k", "name: small")),
    ):
        text = text.replace(old, new)
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(text)
    Path("prompts.txt").write_text("a heron\n")
    Path("weights").symlink_to(pipeline[0])
    words = ["name=small.yaml", "prompts=prompts.txt", "out=out", "weights=weights", "seeds=3", *SIZES]
    assert main([*words, *SPLIT, "gpus=2"]) == 0
    cost = costs(Path("out"))
    assert (cost.n, cost.devices) == (3, ("2 × CPU, one model over all",))
    assert not list(Path("out/generate/logs").iterdir())
    assert capfd.readouterr().err.count("100 %  stage II: detail") == 1  # one process shows what is done
    record = json.loads(Path("out/jobs/a heron-2.json").read_text())
    assert record["processes"] == record["manifest"]["processes"] == 2
    assert main([*words, "trainer.accelerator=cpu", "trainer.threads=1"]) == 0  # they are the same videos
