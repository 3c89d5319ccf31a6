"""What DOVER sees of a video: three clips of fragments, and 32 small frames. Seeded, frame by frame.

    technical  3 clips x 32 frames, every second one; 7x7 fragments of 32 px, one drawn in each cell of a 7x7 grid and
               at the same place in all frames of a clip, put together to 224x224
    aesthetic  32 frames, one from each of 32 parts of the video, squeezed to 224x224

Draw number `seed` is what the released code draws after `numpy.random.seed(seed)` and `torch.manual_seed(seed)`. Kept
as released: a clip that reaches the end goes on from the start; of fewer than 32 frames the aesthetic view takes only
the first; and a frame with a side below 224 px is enlarged, but its fragments are cut where they would be without.

Source: VQAssessment/DOVER at f1ddc96, dover.yml and dover/datasets/dover_datasets.py (facts only).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pw.io.video import Frames

CLIPS, LENGTH, INTERVAL = 3, 32, 2
GRID, FRAGMENT = 7, 32
SIZE = GRID * FRAGMENT
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

Corners = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class FragmentClip:
    """Frame numbers, and where the 7x7 fragments have their upper left corners, in px."""

    frames: tuple[int, ...]
    tops: Corners
    lefts: Corners


@dataclass(frozen=True)
class Draw:
    """Both views of one seed."""

    technical: tuple[FragmentClip, ...]
    aesthetic: tuple[int, ...]


def draw(seed: int, frames: int, height: int, width: int) -> Draw:
    """The views that a seed gives of a video of this size. Only more than 127 frames leave the times to chance."""
    times = np.random.RandomState(seed)
    technical = _frame_numbers(times, frames, CLIPS, LENGTH)
    aesthetic = _frame_numbers(times, frames, LENGTH, 1)
    places = torch.Generator().manual_seed(seed)
    tops = _corners(places, height, axis=0)
    lefts = _corners(places, width, axis=1)
    clips = zip(technical, tops, lefts, strict=True)
    return Draw(
        tuple(FragmentClip(tuple(numbers), top, left) for numbers, top, left in clips),
        tuple(number for part in aesthetic for number in part),
    )


def _frame_numbers(times: np.random.RandomState, frames: int, parts: int, length: int) -> list[list[int]]:
    """`length` frame numbers at the interval from each of `parts` equal parts of a video, `[parts][length]`."""
    part = frames // parts
    room = part - length * INTERVAL
    starts = np.arange(parts) * part
    if room > 0:
        starts = starts + times.randint(0, room, size=parts)
    return ((starts[:, None] + np.arange(length) * INTERVAL) % frames).tolist()


def _corners(places: torch.Generator, side: int, axis: int) -> list[Corners]:
    """Corners along the height (axis 0) or width (axis 1) for each clip, `[clips][7][7]`."""
    cell = side // GRID
    cells = torch.tensor([min(cell * i, side - FRAGMENT) for i in range(GRID)])
    corners = cells.view(-1, 1, 1) if axis == 0 else cells.view(1, -1, 1)
    corners = corners.expand(GRID, GRID, CLIPS)
    if cell > FRAGMENT:
        corners = corners + torch.randint(cell - FRAGMENT, (GRID, GRID, CLIPS), generator=places)
    return [tuple(map(tuple, clip)) for clip in corners.permute(2, 0, 1).tolist()]


def enlarged(image: Frames) -> Frames:
    """A frame with a side below 224 px, enlarged until it has none; bilinear, fractions cut off; others as they are."""
    ratio = min(image.shape[0] / SIZE, image.shape[1] / SIZE)
    if ratio >= 1:
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[:, None]
    planes = F.interpolate(planes / 255.0, scale_factor=1 / ratio, mode="bilinear")
    return (planes * 255.0).to(torch.uint8)[:, 0].permute(1, 2, 0).numpy()


def fragments(image: Frames, clip: FragmentClip) -> Frames:
    """A clip's fragments of one frame (see `enlarged`), put together: uint8 `[224, 224, 3]`."""
    mosaic = np.empty((GRID, FRAGMENT, GRID, FRAGMENT, 3), np.uint8)
    for i in range(GRID):
        for j in range(GRID):
            top, left = clip.tops[i][j], clip.lefts[i][j]
            mosaic[i, :, j] = image[top : top + FRAGMENT, left : left + FRAGMENT]
    return mosaic.reshape(SIZE, SIZE, 3)


def squeezed(image: Frames, antialias: bool) -> Frames:
    """The whole frame at 224x224, bilinear and rounded: uint8 `[224, 224, 3]`.

    antialias: torchvision's default for tensors since 0.17. DOVER was released under 0.14, which took two pixels of
    each side whatever the size.
    """
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, size=(SIZE, SIZE), mode="bilinear", antialias=antialias)
    return planes.round_().to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def normalised(images: list[Frames]) -> Tensor:
    """uint8 frames `[224, 224, 3]` -> the networks' `[1, 3, F, 224, 224]`."""
    video = torch.from_numpy(np.stack(images)).float()
    return ((video - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(3, 0, 1, 2)[None].contiguous()
