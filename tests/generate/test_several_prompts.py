"""Several prompts: networks that stay on the device, and files written beside its work, make the same videos."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from pw.cost.generation_cost import generation_cost, stages_of, with_tile
from pw.generate.models import FileWriter, Models, fit_together
from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, GenerationRequest, make_request
from pw.io.arguments import parse
from pw.io.video import read_video, write_video
from pw.run.build import build

SIZE = (
    *("scale=tiny", "scale.height=64", "scale.width=96", "scale.anchor_height=32", "scale.anchor_width=64"),
    *("scale.anchor_upsample=latent", "anchor.sampling.num_steps=2", "sampling.num_steps=2", "hires=random"),
    *("frames=5", "lossless=true"),
)
STAGES = ["loading stage I: anchors", "loading stage II: detail", "loading the VAE"]


class Stopped(Exception):
    """Ends a call early."""


@pytest.fixture
def call(pipeline: tuple[Path, Any], tmp_path: Path):
    """`call("one")` is a checked call for three videos, written below the folder `one`."""
    (tmp_path / "p.txt").write_text("a fox\na heron\na toad\n")

    def request(out: str, *words: str) -> GenerationRequest:
        words = (*SIZE, f"weights={pipeline[0]}", f"prompts={tmp_path / 'p.txt'}", f"out={tmp_path / out}", *words)
        return make_request(parse(GenerateOptions, words))

    return request


def little_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9, total=10**9))


class TestSeveralPrompts:
    def test_are_the_same_videos_whatever_stays_on_the_device(self, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        together, apart = call("together"), call("apart")
        orders: list[list[str]] = [[], []]
        shares: list[float] = []

        def note(what: str, share: float, within: float) -> None:
            orders[0].append(what)
            shares.append(share)
            assert 0 <= within <= 1

        generate(together, note)
        with monkeypatch.context() as patch:
            little_memory(patch)
            assert not fit_together(apart)
            generate(apart, lambda what, share, within: orders[1].append(what))
        for order in orders:
            assert [what for what in order if what.startswith("loading")] == STAGES  # each once
        assert orders[0].index("decoding") < len(orders[0]) - 1 - orders[0][::-1].index("stage I: anchors")
        assert orders[1].index("decoding") > len(orders[1]) - 1 - orders[1][::-1].index("stage I: anchors")
        assert shares == sorted(shares)
        for one, other in zip(together.prompts, apart.prompts, strict=True):
            assert np.array_equal(read_video(together.video(one)), read_video(apart.video(other)))
            note_of = json.loads(together.manifest(one).read_text())
            assert set(note_of["seconds"]) == {"text", "anchor", "hires", "decode", "file"}
        assert not list((together.out / "latents").iterdir())

    @pytest.mark.parametrize("at", [4, 11])
    def test_that_were_stopped_go_on(self, call: Any, at: int) -> None:
        """In the second prompt's stages while the first one's file may be written, and in its decode."""
        request, count = call("stopped"), 0

        def stop(what: str, share: float, within: float) -> None:
            nonlocal count
            count += share > 1 / 3
            if count == at:
                raise Stopped

        with pytest.raises(Stopped):
            generate(request, stop)
        assert threading.active_count() == 1 or not [t for t in threading.enumerate() if t.name.startswith("file")]
        assert not list(request.out.glob(".a-*"))  # nothing half written
        done = {p.name: request.video(p).stat().st_mtime_ns for p in request.prompts if request.is_done(p)}
        generate(call("stopped"))
        undisturbed = call("undisturbed")
        generate(undisturbed)
        for prompt in request.prompts:
            assert np.array_equal(read_video(request.video(prompt)), read_video(undisturbed.video(prompt)))
            assert done.get(prompt.name, 0) in (0, request.video(prompt).stat().st_mtime_ns)


class TestTheWriter:
    def test_works_beside_its_caller_one_job_at_a_time(self) -> None:
        began, may_end, done = threading.Event(), threading.Event(), []
        with FileWriter() as writer:

            def slow() -> None:
                began.set()
                assert may_end.wait(10)
                done.append("slow")

            writer.submit(slow)
            assert began.wait(10)
            assert not done  # the caller goes on
            may_end.set()
            writer.submit(lambda: done.append("next"))
            writer.finish()
        assert done == ["slow", "next"]

    @pytest.mark.parametrize("then", ["submit", "finish"])
    def test_raises_the_error_of_a_job_at_the_next_one_or_at_the_end(self, then: str) -> None:
        def fail() -> None:
            raise OSError("disk full")

        with FileWriter() as writer:
            writer.submit(fail)
            with pytest.raises(OSError, match="disk full"):
                writer.finish() if then == "finish" else writer.submit(lambda: None)

    def test_abandons_a_file_when_its_caller_fails(self, tmp_path: Path) -> None:
        frames, began = np.zeros((500, 64, 64, 3), np.uint8), threading.Event()
        path, errors = tmp_path / "a.mkv", []

        def write_and_fail() -> None:
            with FileWriter() as writer:

                def write() -> None:
                    began.set()
                    try:
                        write_video(path, frames, is_abandoned=writer.is_abandoned)
                    except InterruptedError as error:
                        errors.append(error)

                writer.submit(write)
                assert began.wait(10)
                raise Stopped

        with pytest.raises(Stopped):
            write_and_fail()
        assert len(errors) == 1
        assert not list(tmp_path.iterdir())


class TestModels:
    @pytest.mark.parametrize("keep", [True, False])
    def test_are_loaded_again_only_where_they_do_not_stay(self, keep: bool) -> None:
        models, loaded = Models(keep), []
        for _ in range(2):
            models.get("a", lambda: loaded.append("a"))
            models.get("a", lambda: loaded.append("a"))
            models.release()
        assert loaded == ["a"] * (1 if keep else 2)

    def test_of_4k_together_take_the_sum_of_their_weights_and_the_largest_rest(self) -> None:
        cost = generation_cost(*with_tile(stages_of(build(["scale=4k", "trainer=gpu"])), 80e9))
        text, anchor, hires, decode = cost.phases
        weights = [next(p.bytes for p in phase.parts if p.name == "weights") for phase in cost.phases]
        rest = max(hires.bytes - weights[2], decode.bytes - weights[3], anchor.bytes - weights[1])
        assert cost.together().bytes == pytest.approx(sum(weights[1:]) + rest)
        rest = max(rest, text.bytes - weights[0])
        assert cost.together(with_text=True).bytes == pytest.approx(sum(weights) + rest)
        assert cost.together().fits(80e9)
        assert not cost.together().fits(48e9)
