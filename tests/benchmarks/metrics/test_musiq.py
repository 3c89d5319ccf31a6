"""benchmarks.metrics.musiq: the same number as pyiqa's own forward, in a fraction of its memory, and no network."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measure.metric_weights import WEIGHTS, MissingWeights
from benchmarks.metrics import lookup, musiq
from benchmarks.metrics.implementation import FrameView
from pw.io.video import Frames, VideoInfo

ROOT = Path(__file__).parents[3]
SETTINGS = lookup("musiq").settings
needs_pyiqa = pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="`make iqa` installs pyiqa")


def frame(height: int, width: int, seed: int = 0) -> Frames:
    """Something with edges and noise."""
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 5)[..., None] + np.array([0, 40, 90])
    noise = np.random.default_rng(seed).integers(0, 64, (height, width, 3))
    return ((ramp + noise) % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> Any:
    """MUSIQ with random weights, its positions and scales made large enough to count."""
    import torch

    torch.manual_seed(0)
    network = musiq.build("cpu")
    with torch.no_grad():
        network.transformer_encoder.posembed_input.position_emb.mul_(50)
        network.transformer_encoder.cls.normal_()
    return network


@needs_pyiqa
class TestScore:
    # a wide one, one with odd sides (patches are padded on both), one higher than wide, one smaller than a patch
    @pytest.mark.parametrize(("height", "width"), [(96, 288), (179, 131), (300, 90), (20, 30)])
    def test_is_what_pyiqa_computes(self, network: Any, height: int, width: int) -> None:
        import torch

        image = frame(height, width)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            expected = float(network(pixels))
        assert musiq.score(network, image) == pytest.approx(expected, abs=1e-5)

    def test_depends_on_where_things_are_and_on_detail(self, network: Any) -> None:
        image = frame(160, 256)
        turned, flat = np.ascontiguousarray(image[::-1]), np.full_like(image, 127)
        assert abs(musiq.score(network, image) - musiq.score(network, turned)) > 1e-4
        assert abs(musiq.score(network, image) - musiq.score(network, flat)) > 1e-4

    def test_needs_no_more_memory_than_it_says_and_no_network(self) -> None:
        script = (
            "import resource, socket, sys\n"
            "def refuse(*args, **kwargs): sys.exit(f'asked for {args}')\n"
            "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
            "import numpy as np, torch\n"
            "from benchmarks.metrics import musiq\n"
            "torch.set_num_threads(1)\n"
            "network = musiq.build('cpu')\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
            "musiq.score(network, np.zeros((64, 64, 3), np.uint8)); before = peak()\n"
            "musiq.score(network, np.zeros((720, 1280, 3), np.uint8))\n"
            "print(peak() - before, musiq.working_memory(720, 1280), musiq.working_memory(2160, 3840))\n"
        )
        process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        growth, bound, bound_at_4k = map(int, process.stdout.split())
        assert growth <= bound
        assert bound_at_4k < 0.4e9


@needs_pyiqa
class TestScorer:
    @pytest.fixture
    def weights(self, tmp_path: Path, network: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A file in pyiqa's layout, where the scorer looks for it; its digest is not the published one."""
        import torch

        path = tmp_path / WEIGHTS["musiq_koniq"].file
        torch.save(network.state_dict(), path)
        monkeypatch.setattr(musiq, "find", lambda name: path)
        return path

    def test_is_the_mean_over_frames_spread_evenly(self, weights: Path, network: Any) -> None:
        video = musiq.scorer(["musiq"], {"frames": 2}, "cpu").begin(VideoInfo(8, 48, 64, 24.0, "ffv1"))
        assert [index for index in range(8) if video.wants(index)] == [2, 6]
        scores = [video.frame(FrameView(index, frame(48, 64, seed=index))) for index in (2, 6)]
        assert scores == [musiq.score(network, frame(48, 64, seed=index)) for index in (2, 6)]
        assert video.result(scores) == {"musiq": pytest.approx(sum(scores) / 2)}
        assert video.memory == musiq.working_memory(48, 64)

    def test_refuses_weights_of_another_network(self, weights: Path) -> None:
        import torch

        torch.save({"head.weight": torch.zeros(10, 384)}, weights)
        with pytest.raises(ValueError, match=r"musiq_koniq_ckpt.*: not MUSIQ's weights for KonIQ"):
            musiq.scorer(["musiq"], SETTINGS, "cpu")


class TestWithout:
    def test_pyiqa_it_says_what_installs_it_and_its_licence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingWeights, match=r"`make iqa` installs it \(PolyForm Noncommercial licence\)"):
            musiq.scorer(["musiq"], SETTINGS, "cpu")

    @pytest.mark.parametrize("frames", [0, -1, 2.5, "all"])
    def test_a_sensible_number_of_frames_it_says_so(self, frames: Any) -> None:
        with pytest.raises(ValueError, match=r"musiq: frames=.*: expected a whole number of frames"):
            musiq.scorer(["musiq"], {"frames": frames}, "cpu")

    @needs_pyiqa
    def test_weights_it_says_what_fetches_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_METRICS", str(tmp_path))
        with pytest.raises(MissingWeights, match="only=musiq_koniq"):
            musiq.scorer(["musiq"], SETTINGS, "cpu")
