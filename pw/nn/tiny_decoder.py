"""A small decoder of Wan2.2's latents, in the published layout of TAEHV (github.com/madebyollin/taehv, `taew2_2`).

Three stages of 2D convolutions at 1/16, 1/8 and 1/4 of the size, each three memory blocks, an upsampling and a 1x1
convolution that makes one or two frames of one; a memory block also sees its input of the frame before. The first three
frames are dropped: latent frame n becomes the frames 4n - 3 to 4n. Latents are taken as the network makes them,
normalised; there is no mean or standard deviation.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

PREFIX = "decoder."  # a file may hold the encoder, too
STAGES, BLOCKS = 3, 3
FRAMES = 4  # of a latent frame
PATCH = 2  # px a side that the last convolution makes of a position


class MemoryBlock(nn.Module):
    """[T, C, h, w] of consecutive frames -> the same; `before` is its input one frame earlier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (2 * width, width, width, width)
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, frames: Tensor, before: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([frames, before], dim=1)) + frames)


class Grow(nn.Module):
    """[T, C, h, w] -> [T count, C, h, w]."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * count, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        return self.conv(frames).reshape(-1, *frames.shape[1:])


class SoftClamp(nn.Module):
    def forward(self, latent: Tensor) -> Tensor:
        return 3 * torch.tanh(latent / 3)


class TinyDecoder(nn.Module):
    """One video, latent frame by latent frame: [1, C, h, w] -> [4, 3, 16 h, 16 w] in [-1, 1]. `forget` begins another.

    channels  of a latent
    widths    channels of the stages and of the last convolution; Wan2.2's: 256, 128, 64, 64
    growth    frames that each stage makes of one; 1, 2, 2
    """

    def __init__(self, channels: int, widths: tuple[int, ...], growth: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = [SoftClamp(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for width, after, count in zip(widths, widths[1:], growth, strict=False):
            layers += [*(MemoryBlock(width) for _ in range(BLOCKS)), nn.Upsample(scale_factor=2), Grow(width, count)]
            layers.append(nn.Conv2d(width, after, 3, padding=1, bias=False))
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * PATCH**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)
        self.memory: dict[int, Tensor] = {}

    def forget(self) -> None:
        self.memory = {}

    def forward(self, latent: Tensor) -> Tensor:
        frames = latent
        for index, layer in enumerate(self.decoder):
            if not isinstance(layer, MemoryBlock):
                frames = layer(frames)
                continue
            last = self.memory.get(index, torch.zeros_like(frames[:1]))
            self.memory[index] = frames[-1:]
            frames = layer(frames, torch.cat([last, frames[:-1]]))
        return F.pixel_shuffle(frames, PATCH).clamp(0, 1) * 2 - 1

    def decode(self, latent: Tensor) -> Tensor:
        """Latents [B, C, F, h, w] -> videos [B, 3, 4 F - 3, 16 h, 16 w] in [-1, 1]."""
        videos = []
        for video in latent:
            self.forget()
            frames = torch.cat([self(frame[None]) for frame in video.unbind(1)])
            videos.append(frames[FRAMES - 1 :].transpose(0, 1))
        self.forget()
        return torch.stack(videos)


def shapes_in(path: Path) -> dict[str, list[int]]:
    """Name -> shape of the decoder's tensors in a file. Raises ValueError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118 (not a dict)
            return {name: file.get_slice(name).get_shape() for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"codec.decoder_file={path}: cannot be read as .safetensors ({error})") from error


def sizes_of(path: Path, channels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(widths, growth) of the decoder in a file, by its shapes. Raises ValueError if it is none for `channels`."""
    last, shapes = 2 + STAGES * (BLOCKS + 3) + 2, shapes_in(path)
    grows = [shapes.get(f"{PREFIX}{2 + stage * (BLOCKS + 3) + BLOCKS + 2}.conv.weight") for stage in range(STAGES)]
    first, end = (shapes.get(f"{PREFIX}{index}.weight", [0, 0]) for index in (1, last))
    if None in grows or first[1] != channels or end[0] != 3 * PATCH**2:
        found = f"it has {len(shapes)} tensors of a decoder"
        if first[1] and first[1] != channels:
            found = f"its latents have {first[1]} channels, these {channels}"
        raise ValueError(
            f"codec.decoder_file={path}: is not a TAEHV decoder of Wan2.2's layout, as taew2_2.safetensors is; {found}"
        )
    widths = (*(shape[1] for shape in grows if shape), end[1])
    growth = tuple(shape[0] // shape[1] for shape in grows if shape)
    if growth[0] * growth[1] * growth[2] != FRAMES:
        raise ValueError(f"codec.decoder_file={path}: makes other than {FRAMES} frames of a latent one {growth}")
    return widths, growth


def load_tiny(path: Path, channels: int, device: str, dtype: torch.dtype) -> TinyDecoder:
    """The decoder in a file. Raises ValueError if a tensor is missing or of another shape."""
    with torch.device("meta"):
        net = TinyDecoder(channels, *sizes_of(path, channels))
    with safe_open(path, "pt", device=device) as file:
        state = {name: file.get_tensor(name).to(dtype) for name in shapes_in(path)}
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"codec.decoder_file={path}: {' '.join(str(error).split())}") from error
    return net.eval().requires_grad_(False)
