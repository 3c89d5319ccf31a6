"""NIQE against published values, against a plain form of it, and against pyiqa where that is installed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import correlate
from scipy.special import gamma

from benchmarks.measure.metric_weights import MissingWeights
from benchmarks.metrics import lookup, niqe
from benchmarks.metrics.implementation import FrameView
from benchmarks.speed.metric_speed import texture
from pw.io.video import VideoInfo

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "niqe").is_dir(), reason="no ../shared/data")
PRISTINE = niqe.Pristine(np.linspace(0.5, 2, 36), np.diag(np.linspace(0.1, 1, 36)))


@pytest.fixture(scope="session")
def pristine() -> niqe.Pristine:
    return niqe.read_pristine(DATA / "niqe" / "niqe_pris_params.npz")


def picture(name: str) -> np.ndarray:
    return np.asarray(Image.open(DATA / name).convert("RGB"))


def plain_features(plane: np.ndarray) -> np.ndarray:
    """The definition, block by block, in float64."""
    offsets = np.arange(-3, 4)
    window = np.exp(-np.add.outer(offsets**2, offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    plane = plane[: len(plane) // 96 * 96, : plane.shape[1] // 96 * 96].astype(float)
    scales = []
    for side in (96, 48):
        mean = correlate(plane, window, mode="nearest")
        deviation = np.sqrt(np.abs(correlate(plane**2, window, mode="nearest") - mean**2))
        values = np.where(np.abs(plane - mean) < 1e-9, 0, plane - mean) / (deviation + 1)
        rows, columns = (range(0, size, side) for size in plane.shape)
        scales.append([plain_block(values[y : y + side, x : x + side]) for y in rows for x in columns])
        plane = plain_halve(plain_halve(plane).T).T
    return np.concatenate(scales, axis=1)


def plain_block(values: np.ndarray) -> list[float]:
    shape, left, right = plain_aggd(values)
    result = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = plain_aggd(values * np.roll(values, shift, (0, 1)))
        result += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return result


def plain_aggd(values: np.ndarray) -> tuple[float, float, float]:
    shapes = np.arange(0.2, 10.001, 0.001)
    ratios = gamma(2 / shapes) ** 2 / gamma(1 / shapes) / gamma(3 / shapes)
    left, right = (np.sqrt((side**2).mean()) for side in (values[values < 0], values[values > 0]))
    skew = left / right
    ratio = np.abs(values).mean() ** 2 / (values**2).mean() * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = shapes[np.abs(ratios - ratio).argmin()]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def plain_halve(plane: np.ndarray) -> np.ndarray:
    """Rows of MATLAB's imresize at 0.5, each from all rows with weights of the stretched cubic."""
    at = 2 * np.arange(len(plane) // 2) + 0.5
    distance = np.abs(np.arange(-8, len(plane) + 8) - at[:, None]) / 2
    near, out = 1.5 * distance**3 - 2.5 * distance**2 + 1, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance <= 2, out, 0))
    return weights / weights.sum(axis=1, keepdims=True) @ np.pad(plane, ((8, 8), (0, 0)), mode="symmetric")


@needs_data
class TestPublishedValues:
    def test_of_matlab_are_met_on_its_luma(self, pristine: niqe.Pristine) -> None:
        """MATLAB R2021a on baboon.png: 5.72957338 (BasicSR's documentation); MATLAB's luma is the Y of YCbCr."""
        rgb = picture("niqe/baboon.png")
        studio = np.rint(16 + rgb @ np.array([65.481, 128.553, 24.966]) / 255)
        assert niqe.niqe(studio, pristine) == pytest.approx(5.72957338, abs=2e-5)

    def test_of_matlab_are_met_on_the_luma_of_yiq(self, pristine: niqe.Pristine) -> None:
        assert niqe.niqe(niqe.luma(picture("niqe/baboon.png")), pristine) == pytest.approx(5.7296, abs=0.002)

    @pytest.mark.parametrize(("name", "published"), [("dist/I03.bmp", 15.6538), ("dist/I04.bmp", 3.6549)])
    def test_of_pyiqa_are_met(self, pristine: niqe.Pristine, name: str, published: float) -> None:
        """IQA-PyTorch, ResultsCalibra/calibration_summary.csv, row niqe(ours): the distorted pictures."""
        assert niqe.niqe(niqe.luma(picture(f"calibration/{name}")), pristine) == pytest.approx(published, abs=0.01)

    def test_of_the_folder_of_weights_reach_a_video(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_METRICS", str(DATA / "niqe"))
        image = picture("niqe/baboon.png")
        video = niqe.scorer(["niqe"], lookup("niqe").settings, "cpu").begin(VideoInfo(2, 480, 492, 24.0, "png"))
        values = [video.frame(FrameView(0, image)), video.frame(FrameView(1, np.zeros_like(image)))]
        assert video.result(values) == {"niqe": pytest.approx(5.7296, abs=0.002)}


class TestAgainstThePlainForm:
    @pytest.mark.parametrize("size", [(96, 96), (200, 300), (300, 610)])
    def test_features_are_the_same(self, size: tuple[int, int]) -> None:
        plane = niqe.luma(texture(*size))
        expected = plain_features(plane)
        assert niqe.features(plane) == pytest.approx(expected, rel=1e-4, abs=1.1e-3)  # a shape's grid is 0.001
        assert np.abs(niqe.features(plane) - expected).mean() < 1e-5

    def test_the_value_is_the_same(self) -> None:
        plane = niqe.luma(texture(300, 400))
        result = plain_features(plane)
        distance = PRISTINE.mean - result.mean(axis=0)
        inverse = np.linalg.pinv((PRISTINE.covariance + np.cov(result, rowvar=False)) / 2)
        assert niqe.niqe(plane, PRISTINE) == pytest.approx(np.sqrt(distance @ inverse @ distance), abs=1e-4)

    @given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
    @settings(max_examples=25)
    def test_halving_is_the_same_at_any_size(self, rows: int, columns: int, seed: int) -> None:
        plane = np.random.default_rng(seed).integers(0, 256, (2 * rows + 4, 2 * columns + 4)).astype(np.uint8)
        assert niqe.halve(plane) == pytest.approx(plain_halve(plain_halve(plane.astype(float)).T).T)

    def test_pyiqa_gives_the_same(self, tmp_path: Path) -> None:
        pyiqa = pytest.importorskip("pyiqa")
        import torch
        from scipy.io import savemat

        savemat(tmp_path / "p.mat", {"mu_prisparam": PRISTINE.mean[None], "cov_prisparam": PRISTINE.covariance})
        reference = pyiqa.create_metric("niqe", pretrained_model_path=str(tmp_path / "p.mat"), device="cpu")
        image = texture(480, 640)
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        assert niqe.niqe(niqe.luma(image), PRISTINE) == pytest.approx(float(reference(tensor)), abs=1e-3)


class TestAnAsymmetricGaussian:
    @pytest.mark.parametrize(("shape", "left", "right"), [(2.0, 1.0, 1.0), (0.8, 0.5, 1.5), (4.0, 2.0, 1.0)])
    def test_is_found_from_what_is_drawn_from_it(self, shape: float, left: float, right: float) -> None:
        rng = np.random.default_rng(0)
        size = rng.gamma(1 / shape, size=(4, 400, 400)) ** (1 / shape)  # |x / scale|^shape is gamma distributed
        values = np.where(rng.random(size.shape) < left / (left + right), -left, right) * size
        result = np.array(niqe.aggd(values.astype(np.float32)))
        expected = np.array([shape, left, right])
        assert result == pytest.approx(np.repeat(expected[:, None], 4, axis=1), rel=0.03)

    @given(st.floats(1e-3, 2.0))
    def test_has_the_shape_whose_ratio_is_nearest(self, ratio: float) -> None:
        result = np.searchsorted(niqe.NEAREST, ratio)
        assert np.abs(niqe.RATIOS - ratio)[result] == pytest.approx(np.abs(niqe.RATIOS - ratio).min(), abs=1e-15)


class TestFlatParts:
    @pytest.mark.parametrize("level", [0, 1, 100, 130, 255])
    def test_are_exactly_zero(self, level: int) -> None:
        assert not niqe.mscn(np.full((54, 102), float(level))).any()
        half = niqe.halve(np.full((192, 192), level, np.uint8))
        assert not niqe.mscn(np.pad(half, niqe.HALO, mode="edge")).any()

    def test_of_a_block_count_to_neither_side(self) -> None:
        """Scales are of the pixels that vary: zeros beside them change the shape, not the scales' moments."""
        values = np.random.default_rng(0).normal(size=(1, 96, 96)).astype(np.float32)
        zeros = np.concatenate((values, np.zeros_like(values)), axis=1)
        moments = []
        for result in (niqe.aggd(values), niqe.aggd(zeros)):
            shape, left, right = (float(part[0]) for part in result)
            unit = np.sqrt(gamma(3 / shape) / gamma(1 / shape))
            moments.append((left * unit, right * unit))
        assert moments[1] == pytest.approx(moments[0], rel=1e-5)

    def test_that_fill_a_block_are_left_out(self) -> None:
        """The block's shapes are the table's first and stay in their means, as in the reference."""
        plane = niqe.luma(texture(192, 288))
        plane[:, :99] = 90  # 3 px more, which the window reaches
        result = niqe.features(plane)
        flat = np.isnan(result).any(axis=1)
        assert flat.tolist() == [True, False, False] * 2
        shapes = [0, 2, 6, 10, 14]
        assert result[flat][:, shapes] == pytest.approx(0.2)
        assert np.isfinite(niqe.niqe(plane, PRISTINE))

    @pytest.mark.parametrize("level", [0, 130, 255])
    def test_alone_have_no_value(self, level: int) -> None:
        assert niqe.niqe(np.full((192, 192), level, np.uint8), PRISTINE) is None

    def test_never_reach_a_mean(self) -> None:
        video = niqe.NiqeScorer(PRISTINE, 1).begin(VideoInfo(3, 192, 192, 24.0, "ffv1"))
        image = texture(192, 192)
        values = [video.frame(FrameView(i, frame)) for i, frame in enumerate((image, np.zeros_like(image), image))]
        assert values[1] is None
        assert video.result(values) == {"niqe": pytest.approx(values[0])}
        with pytest.raises(ValueError, match="none of 1 frames has a block with texture"):
            video.result([values[1]])


class TestAVideo:
    def test_is_looked_at_every_so_many_frames(self) -> None:
        video = niqe.NiqeScorer(PRISTINE, 3).begin(VideoInfo(8, 96, 96, 24.0, "ffv1"))
        assert [i for i in range(8) if video.wants(i)] == [0, 3, 6]

    @pytest.mark.parametrize(("height", "width"), [(95, 400), (400, 95), (1, 1)])
    def test_smaller_than_a_block_is_refused(self, height: int, width: int) -> None:
        with pytest.raises(ValueError, match=f"{width}x{height} px is too small, expected at least 96x96"):
            niqe.NiqeScorer(PRISTINE, 1).begin(VideoInfo(8, height, width, 24.0, "ffv1"))
        with pytest.raises(ValueError, match="at least 96x96"):
            niqe.features(np.zeros((height, width)))

    def test_of_one_block_has_a_value(self) -> None:
        assert niqe.niqe(niqe.luma(texture(96, 96)), PRISTINE) is not None

    def test_is_measured_on_whole_blocks(self) -> None:
        plane = niqe.luma(texture(230, 300))
        assert niqe.niqe(plane, PRISTINE) == niqe.niqe(plane[:192, :288], PRISTINE)

    @pytest.mark.parametrize("size", [(96, 6000), (720, 1280), (3000, 100)])
    def test_needs_no_more_memory_than_it_says(self, size: tuple[int, int]) -> None:
        video = niqe.NiqeScorer(PRISTINE, 1).begin(VideoInfo(1, *size, 24.0, "ffv1"))
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        tracemalloc.start()
        video.frame(FrameView(0, image))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= video.memory < 3 * peak + (8 << 20)

    def test_is_worse_when_noisy_or_blurred(self) -> None:
        """With the pristine statistics being those of the texture itself."""
        clean = niqe.luma(texture(384, 480)).astype(float)
        result = niqe.features(clean)
        pristine = niqe.Pristine(result.mean(axis=0), np.cov(result, rowvar=False) + 1e-4 * np.eye(36))
        noisy = np.clip(clean + np.random.default_rng(1).normal(0, 20, clean.shape), 0, 255)
        blurred = correlate(clean, np.full((5, 5), 1 / 25))
        values = [niqe.niqe(plane, pristine) for plane in (clean, noisy, blurred)]
        assert values[0] == pytest.approx(0, abs=1e-6)
        assert min(values[1:]) > 1


class TestWhatIsAsked:
    @pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
    def test_must_be_a_whole_number_of_frames(self, every: object) -> None:
        with pytest.raises(ValueError, match=r"niqe: every=.*: expected a whole number of at least 1"):
            niqe.scorer(["niqe"], {"every": every}, "cpu")

    def test_needs_the_statistics(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_METRICS", str(tmp_path))
        with pytest.raises(MissingWeights, match="make weights what=metrics"):
            niqe.scorer(["niqe"], {"every": 1}, "cpu")

    def test_refuses_a_file_of_something_else(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "other.npz", mean=np.zeros(36))
        with pytest.raises(ValueError, match="lacks cov_pris_param, mu_pris_param"):
            niqe.read_pristine(tmp_path / "other.npz")

    def test_luma_is_rounded_to_whole_levels(self) -> None:
        """By hand: 0.299 * 10 + 0.587 * 20 + 0.114 * 30 = 18.15; 0.299 * 255 = 76.2."""
        image = np.array([[[10, 20, 30], [255, 0, 0], [255, 255, 255], [0, 0, 0]]], np.uint8)
        assert niqe.luma(image).tolist() == [[18, 76, 255, 0]]
