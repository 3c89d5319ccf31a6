"""DOVER: technical and aesthetic quality of a video (Wu et al., ICCV 2023), in three scales.

raw         the branches' outputs, mean over clips, positions and draws
script      `evaluate_a_set_of_videos.py` of VQAssessment/DOVER at f1ddc96, line 23, which the paper's 14.31 / 99.58
            come from: 100 sigmoid(z), with the two branches' statistics swapped, so that the technical score is
            nearly always below 20 and the aesthetic one near 100
calibrated  the same with each branch's own statistics: on LIVE-VQC (the repository's val-livevqc.pkl) the technical
            branch has mean -0.0827 and deviation 0.0377, the aesthetic one 0.1105 and 0.0736

overall     100 sigmoid(0.6104 z_technical + 0.3896 z_aesthetic), in the script's and in the calibrated scale

All maps rise with the raw output, so the order of systems under one branch does not depend on the scale.

The two branches see these views of a video:

technical   3 clips x 32 frames, every second one; 7x7 fragments of 32 px, one drawn in each cell of a 7x7 grid and at
            the same place in all frames of a clip, put together to 224x224
aesthetic   32 frames, one from each of 32 parts of the video, squeezed to 224x224

Draw number `seed` equals the draw of the released code after `numpy.random.seed(seed)` and `torch.manual_seed(seed)`.
As in the released code, a clip that reaches the end of the video continues at its start; the aesthetic view of fewer
than 32 frames takes only the first frame; and a frame with a side below 224 px is enlarged, but the positions of its
fragments are those of the frame before enlarging.

Source of the views: VQAssessment/DOVER at f1ddc96, dover.yml and dover/datasets/dover_datasets.py (facts only).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import metric_weights as weights
from benchmarks.metrics.dover_network import Dover, load
from pw.io.video import Frames

if TYPE_CHECKING:
    from benchmarks.metrics.implementation import FrameView
    from pw.io.video import VideoInfo

_LOW, _HIGH = (-0.08285, 0.03774), (0.1107, 0.07355)  # mean and deviation, as the script has them
SCRIPT = {"technical": _HIGH, "aesthetic": _LOW}
CALIBRATED = {"technical": _LOW, "aesthetic": _HIGH}
FUSION = {"technical": 0.6104, "aesthetic": 0.3896}


def scores(raw: Mapping[str, float]) -> dict[str, float]:
    """Metric -> value from the outputs of one branch or both; the overall scores need both."""
    result = {f"dover_{branch}_raw": value for branch, value in raw.items()}
    for suffix, statistics in (("", SCRIPT), ("_calibrated", CALIBRATED)):
        z = {branch: (value - statistics[branch][0]) / statistics[branch][1] for branch, value in raw.items()}
        if len(z) == len(FUSION):
            z["overall"] = sum(weight * z[branch] for branch, weight in FUSION.items())
        result |= {f"dover_{branch}{suffix}": 50 + 50 * math.tanh(value / 2) for branch, value in z.items()}
    return result


def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> DoverScorer:
    """settings: `seeds`, the number of draws to average; `resize_antialias`, see `resize_whole`.

    Raises: MissingWeights, also for weights that are not DOVER's; ValueError for invalid settings.
    """
    seeds, antialias = settings["seeds"], settings["resize_antialias"]
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ValueError(f"seeds={seeds!r}: DOVER needs a whole number of draws, 1 or more")
    if not isinstance(antialias, bool):
        raise ValueError(f"resize_antialias={antialias!r}: DOVER needs true or false")
    path = weights.find("dover")
    try:
        network = load(path)
    except ValueError as error:  # the file is the user's, with no digest to know it by: the other metrics go on
        hint = 'remove it, and `make weights what=metrics args="only=dover"` fetches it again'
        raise weights.MissingWeights(f"{error}; {hint}") from error
    return DoverScorer(tuple(names), network.to(device), seeds, antialias)


@dataclass(frozen=True)
class DoverScorer:
    """DOVER on one device. It runs only the branches that the requested metrics need."""

    names: tuple[str, ...]
    network: Dover
    seeds: int
    antialias: bool

    def begin(self, info: VideoInfo) -> DoverVideo:
        """Draw the views of a video. Raises ValueError if a side is below 32 px, the size of a fragment."""
        if min(info.height, info.width) < FRAGMENT:
            raise ValueError(
                f"DOVER cuts fragments of {FRAGMENT} px, the video has {info.width}x{info.height}: use a larger one"
            )
        return DoverVideo(self, info)

    def needs(self, branch: str) -> bool:
        return any(branch in name or "overall" in name for name in self.names)


@dataclass(frozen=True)
class FrameInputs:
    """The networks' inputs from one frame, uint8 `[224, 224, 3]`: fragments by clip number, and the whole frame."""

    index: int
    fragments: Mapping[int, Frames]
    whole: Frames | None


class DoverVideo:
    """Holds 150 KB per view and frame, whatever the video's size."""

    def __init__(self, scorer: DoverScorer, info: VideoInfo) -> None:
        draws = [draw(seed, info.frames, info.height, info.width) for seed in range(scorer.seeds)]
        technical = (clip for d in draws for clip in d.technical if scorer.needs("technical"))
        # Equal draws (a short video has one choice of frames, a small one one choice of fragments) are run once.
        self.clips: Counter[FragmentClip] = Counter(technical)
        self.whole_frames: Counter[tuple[int, ...]] = Counter(d.aesthetic for d in draws if scorer.needs("aesthetic"))
        self.scorer = scorer
        self._clip_frame_numbers = {number for clip in self.clips for number in clip.frames}
        self._whole_frame_numbers = {number for numbers in self.whole_frames for number in numbers}
        # float32 of the frame, once reduced in width; twice of an enlarged one
        scale = SIZE / min(SIZE, info.height, info.width)
        enlarging_bytes = 27 * round(scale * info.height) * round(scale * info.width) if scale > 1 else 0
        resizing_bytes = 12 * info.height * (info.width + SIZE)
        self.memory = max(enlarging_bytes, resizing_bytes) + (len(self.clips) + 5) * 3 * SIZE * SIZE

    def wants(self, index: int) -> bool:
        return index in self._clip_frame_numbers or index in self._whole_frame_numbers

    def frame(self, view: FrameView) -> FrameInputs:
        crops: dict[int, Frames] = {}
        if view.index in self._clip_frame_numbers:
            image = enlarge(view.image)
            crops = {n: fragments(image, clip) for n, clip in enumerate(self.clips) if view.index in clip.frames}
        whole = resize_whole(view.image, self.scorer.antialias) if view.index in self._whole_frame_numbers else None
        return FrameInputs(view.index, crops, whole)

    def result(self, frames: Sequence[FrameInputs]) -> Mapping[str, float]:
        """Run the networks on one clip at a time. Raises ValueError if frames are missing."""
        by_index = {inputs.index: inputs for inputs in frames}
        gaps = (self._clip_frame_numbers | self._whole_frame_numbers) - by_index.keys()
        if gaps:
            raise ValueError(f"{len(gaps)} frames that DOVER needs are missing, the first is number {min(gaps)}")
        network, raw = self.scorer.network, {}
        if self.clips:
            views = ([by_index[i].fragments[n] for i in clip.frames] for n, clip in enumerate(self.clips))
            raw["technical"] = self._mean(network.technical, views, self.clips.values())
        if self.whole_frames:
            views = ([by_index[i].whole for i in numbers] for numbers in self.whole_frames)
            raw["aesthetic"] = self._mean(network.aesthetic, views, self.whole_frames.values())
        values = scores(raw)
        return {name: values[name] for name in self.scorer.names}

    @torch.inference_mode()
    def _mean(self, branch: Any, views: Any, counts: Any) -> float:
        device = next(self.scorer.network.parameters()).device
        values = [branch(normalise(view).to(device)).item() for view in views]
        return sum(n * value for n, value in zip(counts, values, strict=True)) / sum(counts)


# ---- the views

CLIPS, LENGTH, INTERVAL = 3, 32, 2
GRID, FRAGMENT = 7, 32
SIZE = GRID * FRAGMENT
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

Corners = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class FragmentClip:
    """Frame numbers, and the upper left corners of the 7x7 fragments in px."""

    frames: tuple[int, ...]
    tops: Corners
    lefts: Corners


@dataclass(frozen=True)
class Draw:
    technical: tuple[FragmentClip, ...]
    aesthetic: tuple[int, ...]


def draw(seed: int, frames: int, height: int, width: int) -> Draw:
    """The views of a video of this size for a seed. The frame numbers are random only above 127 frames."""
    time_rng = np.random.RandomState(seed)
    technical = _frame_numbers(time_rng, frames, CLIPS, LENGTH)
    aesthetic = _frame_numbers(time_rng, frames, LENGTH, 1)
    place_rng = torch.Generator().manual_seed(seed)
    tops = _corners(place_rng, height, axis=0)
    lefts = _corners(place_rng, width, axis=1)
    clips = zip(technical, tops, lefts, strict=True)
    return Draw(
        tuple(FragmentClip(tuple(numbers), top, left) for numbers, top, left in clips),
        tuple(number for part in aesthetic for number in part),
    )


def _frame_numbers(time_rng: np.random.RandomState, frames: int, parts: int, length: int) -> list[list[int]]:
    """`length` frame numbers, INTERVAL apart, from each of `parts` equal parts of a video: `[parts][length]`."""
    part = frames // parts
    slack = part - length * INTERVAL
    starts = np.arange(parts) * part
    if slack > 0:
        starts = starts + time_rng.randint(0, slack, size=parts)
    return ((starts[:, None] + np.arange(length) * INTERVAL) % frames).tolist()


def _corners(place_rng: torch.Generator, side: int, axis: int) -> list[Corners]:
    """Corners along the height (axis 0) or width (axis 1) for each clip, `[clips][7][7]`."""
    cell = side // GRID
    cells = torch.tensor([min(cell * i, side - FRAGMENT) for i in range(GRID)])
    corners = cells.view(-1, 1, 1) if axis == 0 else cells.view(1, -1, 1)
    corners = corners.expand(GRID, GRID, CLIPS)
    if cell > FRAGMENT:
        corners = corners + torch.randint(cell - FRAGMENT, (GRID, GRID, CLIPS), generator=place_rng)
    return [tuple(map(tuple, clip)) for clip in corners.permute(2, 0, 1).tolist()]


def enlarge(image: Frames) -> Frames:
    """Enlarge a frame until both sides have 224 px (bilinear, truncated to integers); larger frames are unchanged."""
    ratio = min(image.shape[0] / SIZE, image.shape[1] / SIZE)
    if ratio >= 1:
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[:, None]
    planes = F.interpolate(planes / 255.0, scale_factor=1 / ratio, mode="bilinear")
    return (planes * 255.0).to(torch.uint8)[:, 0].permute(1, 2, 0).numpy()


def fragments(image: Frames, clip: FragmentClip) -> Frames:
    """Cut a clip's fragments from an enlarged frame and join them: uint8 `[224, 224, 3]`."""
    mosaic = np.empty((GRID, FRAGMENT, GRID, FRAGMENT, 3), np.uint8)
    for i in range(GRID):
        for j in range(GRID):
            top, left = clip.tops[i][j], clip.lefts[i][j]
            mosaic[i, :, j] = image[top : top + FRAGMENT, left : left + FRAGMENT]
    return mosaic.reshape(SIZE, SIZE, 3)


def resize_whole(image: Frames, antialias: bool) -> Frames:
    """Resize the whole frame to 224x224, bilinear and rounded: uint8 `[224, 224, 3]`.

    antialias: torchvision's default since 0.17. DOVER was released with 0.14, which has none.
    """
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, size=(SIZE, SIZE), mode="bilinear", antialias=antialias)
    return planes.round_().to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def normalise(images: list[Frames]) -> Tensor:
    """uint8 frames `[224, 224, 3]` -> the networks' input `[1, 3, F, 224, 224]`."""
    video = torch.from_numpy(np.stack(images)).float()
    return ((video - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(3, 0, 1, 2)[None].contiguous()
