"""LPIPS and mHD-LPIPS against the reference implementation, with one random AlexNet for both."""

from __future__ import annotations

import socket
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lpips as reference_package
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.measure import metric_weights as weights
from benchmarks.measure.metric_weights import MissingWeights
from benchmarks.metrics import lookup, lpips
from benchmarks.metrics.implementation import FrameView, scorer_of
from pw.io.video import Frames, VideoInfo


@pytest.fixture(scope="module")
def reference() -> Any:
    """LPIPS 0.1 of its authors: their weights on a random trunk."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with warnings.catch_warnings(action="ignore"):  # it calls torchvision as one did in 2021
            network = reference_package.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def alexnet(reference: Any) -> dict[str, Tensor]:
    """The same trunk under torchvision's names, with something of the classifier that nobody needs."""
    trunk = {f"features.{name.partition('.')[2]}": value for name, value in reference.net.state_dict().items()}
    return {**trunk, "classifier.6.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def alex(alexnet: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> lpips.Lpips:
    """Ours, loaded where no network is to be had and no other weights lie about."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        write_weights(patch, folder, alexnet)
        patch.setenv("TORCH_HOME", str(folder))
        patch.setattr(socket, "socket", no_network)
        return lpips.load("alex", "cpu")


def write_weights(patch: pytest.MonkeyPatch, folder: Path, content: object) -> Path:
    """Weights of our own making in the place of the real ones, whose checksum they cannot have."""
    path = folder / weights.WEIGHTS["alexnet"].file
    torch.save(content, path)
    patch.setattr(weights, "find", lambda name: folder / weights.WEIGHTS[name].file)
    return path


def no_network(*args: object, **kwargs: object) -> None:
    raise AssertionError("a connection is opened")


def clip(height: int, width: int, frames: int = 1, seed: int = 0) -> Frames:
    """Coarse blotches with grain: something for every layer to see."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (frames, height // 8 + 1, width // 8 + 1, 3))
    enlarged = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)[:, :height, :width]
    return np.clip(enlarged + draw.normal(0, 12, enlarged.shape), 0, 255).astype(np.uint8)


def signed(image: Frames) -> Tensor:
    """As the reference wants it: [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


def info_of(video: Frames) -> VideoInfo:
    return VideoInfo(len(video), *video.shape[1:3], 24.0, "ffv1")


class TestLpips:
    @pytest.mark.parametrize("size", [(64, 64), (67, 131), (31, 40)])
    def test_gives_the_digits_of_the_reference(self, alex: lpips.Lpips, reference: Any, size: tuple[int, int]) -> None:
        video, real = clip(*size, frames=2), clip(*size, frames=2, seed=1)
        scorer = lpips.LpipsScorer(alex).begin(info_of(video))
        frames = [scorer.frame(FrameView(n, image, real=real[n])) for n, image in enumerate(video)]
        expected = [float(reference(signed(a), signed(b))) for a, b in zip(video, real, strict=True)]
        assert frames == pytest.approx(expected, rel=1e-5)
        assert scorer.result(frames)["lpips"] == pytest.approx(np.mean(expected), rel=1e-5)

    def test_gives_the_digits_of_torchmetrics_in_frames_of_several_bands(self, alex: lpips.Lpips) -> None:
        a, b = ((signed(clip(520, 616, seed=n)[0]) + 1) / 2 for n in (0, 1))
        assert 64 * a[0, 0].numel() / 16 > lpips.BAND  # 64 channels, a quarter as high and wide
        assert alex.distance(alex.features(a), b) == pytest.approx(float(alex.network(a, b, normalize=True)))

    def test_shows_the_network_pictures_in_its_own_range(self, alex: lpips.Lpips, reference: Any) -> None:
        a, b = ((signed(clip(64, 64, seed=n)[0]) + 1) / 2 for n in (0, 1))
        value = alex.distance(alex.features(a), b)
        assert value == pytest.approx(float(reference(a, b, normalize=True)), rel=1e-5)
        assert value != pytest.approx(float(reference(a, b)), rel=0.05)

    def test_of_equal_frames_is_zero(self, alex: lpips.Lpips) -> None:
        image = clip(48, 48)[0]
        assert lpips.LpipsScorer(alex).begin(info_of(image[None])).frame(FrameView(0, image, real=image)) == 0

    def test_refuses_a_real_video_of_another_size_naming_both(self, alex: lpips.Lpips) -> None:
        scorer = lpips.LpipsScorer(alex).begin(info_of(clip(64, 80)))
        with pytest.raises(ValueError, match="this one is 80x64, the real one 48x64"):
            scorer.frame(FrameView(0, clip(64, 80)[0], real=clip(64, 48)[0]))

    @pytest.mark.parametrize("size", [(30, 200), (200, 30)])
    def test_refuses_frames_that_the_network_is_too_deep_for(self, alex: lpips.Lpips, size: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match="lpips needs frames of 31 px and more, not"):
            lpips.LpipsScorer(alex).begin(info_of(clip(*size)))


class TestItsWeights:
    def test_that_are_not_there_are_named_with_the_command_that_fetches_them(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PW_METRICS", str(tmp_path))
        with pytest.raises(MissingWeights, match=r"alexnet.*make weights"):
            lpips.scorer(["lpips"], lookup("lpips").settings, "cpu")

    @pytest.mark.parametrize("damage", ["missing", "reshaped", "another object"])
    def test_that_are_no_alexnet_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alexnet: dict[str, Tensor], damage: str
    ) -> None:
        wrong: Any = dict(alexnet)
        if damage == "missing":
            del wrong["features.6.bias"]
        elif damage == "reshaped":
            wrong["features.6.bias"] = wrong["features.6.bias"][:10]
        else:
            wrong = [1, 2]
        path = write_weights(monkeypatch, tmp_path, wrong)
        with pytest.raises(ValueError, match=rf"{path.name} is not torchvision's AlexNet: features\.\d"):
            lpips.load("alex", "cpu")

    def test_that_are_cut_off_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alexnet: dict[str, Tensor]
    ) -> None:
        path = write_weights(monkeypatch, tmp_path, alexnet)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read"):
            lpips.load("alex", "cpu")

    def test_of_another_network_are_refused(self) -> None:
        with pytest.raises(ValueError, match="net='vgg': only 'alex'"):
            lpips.scorer(["lpips"], {"net": "vgg"}, "cpu")

    def test_are_loaded_without_touching_the_random_numbers_of_others(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alexnet: dict[str, Tensor]
    ) -> None:
        write_weights(monkeypatch, tmp_path, alexnet)
        rng_state = torch.get_rng_state()
        first, second = (network_of(name) for name in ("lpips", "mhd_lpips"))
        assert torch.equal(rng_state, torch.get_rng_state())
        for alex in (first, second):
            assert torch.equal(alex.network.net.slice3[1].weight, alexnet["features.6.weight"])


def network_of(metric: str) -> lpips.Lpips:
    """The network of a family's scorer with the registry's settings."""
    return scorer_of([metric]).lpips


class TestMhdLpips:
    def test_is_eq_9_10_in_the_reference_network(self, alex: lpips.Lpips, reference: Any) -> None:
        video = clip(75, 101, frames=2)
        expected = [[self.plain(reference, image, k) for k in (3, 4, 5)] for image in video]
        for reduction, value in (("mean", np.mean(expected)), ("sum", np.sum(expected) / 2)):
            assert self.score(alex, video, reduction) == pytest.approx(value, rel=1e-5)

    def test_looks_at_the_frame_itself_only_once(self, alex: lpips.Lpips) -> None:
        passes = []
        hook = alex.network.net.register_forward_hook(lambda *_: passes.append("whole"))
        first = alex.network.net.slice1.register_forward_hook(lambda *_: passes.append("first layer"))
        self.score(alex, clip(40, 40))
        hook.remove()
        first.remove()
        assert passes == ["first layer"] * 4

    def test_is_the_same_from_several_threads(self, alex: lpips.Lpips) -> None:
        video = clip(64, 64, frames=4)
        scorer = lpips.MhdLpips(alex, lpips.Scales((3, 4, 5), "mean")).begin(info_of(video))
        with ThreadPoolExecutor(4) as pool:
            distances = list(pool.map(scorer.frame, (FrameView(n, image) for n, image in enumerate(video))))
        assert scorer.result(distances)["mhd_lpips"] == pytest.approx(self.score(alex, video), rel=1e-6)

    def test_refuses_frames_that_the_network_is_too_deep_for(self, alex: lpips.Lpips) -> None:
        with pytest.raises(ValueError, match="mhd_lpips needs frames of 31 px and more, not 24x24"):
            self.score(alex, clip(24, 24))

    @staticmethod
    def plain(reference: Any, image: Frames, k: int) -> float:
        frame = signed(image)
        height, width = frame.shape[-2:]
        small = interpolate((frame + 1) / 2, (max(1, height // 2**k), max(1, width // 2**k)), mode="bilinear")
        return float(reference(frame, 2 * interpolate(small, (height, width), mode="bilinear") - 1))

    @staticmethod
    def score(alex: lpips.Lpips, video: Frames, reduction: str = "mean") -> float:
        scorer = lpips.MhdLpips(alex, lpips.Scales((3, 4, 5), reduction)).begin(info_of(video))
        return scorer.result([scorer.frame(FrameView(n, image)) for n, image in enumerate(video)])["mhd_lpips"]
