"""MUSIQ (Ke et al., ICCV 2021) with KonIQ weights at full resolution, mean over evenly spread frames.

The network and the positions of the patches are pyiqa's. pyiqa runs all patches of a frame through the stem at once and
stores the full attention matrix: 4.7 GB at 4K. Here the stem takes one row of patches at a time, and attention is
PyTorch's fused kernel. pyiqa's padding tokens of the small scales are omitted: they are masked there, so the score is
the same.

pyiqa is an extra (`make iqa`), and only this module imports it. It downloads nothing: the network is built without
weights, which then come from `benchmarks.measure.metric_weights`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure.metric_weights import MissingWeights, find
from benchmarks.metrics.implementation import FrameView, Scorer, spread

if TYPE_CHECKING:
    import torch

    from pw.io.video import Frames, VideoInfo

PATCH = 32  # px
LONG_SIDES = (224, 384)  # px, of the two smaller scales; the third is the frame itself


def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> Scorer:
    """The family's scorer. Raises: MissingWeights without pyiqa or the weights; ValueError for an invalid setting."""
    frames = settings["frames"]
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"musiq: frames={frames!r}: expected a whole number of frames, 1 or more")
    _need_pyiqa()
    weights = find("musiq_koniq")
    network = build(device)
    load(network, weights)
    return _Musiq(network, frames)


@dataclass(frozen=True)
class _Musiq:
    network: Any
    frames: int

    def begin(self, info: VideoInfo) -> _Video:
        indices = frozenset(spread(self.frames, info.frames))
        return _Video(self.network, indices, working_memory(info.height, info.width))


@dataclass
class _Video:
    network: Any
    indices: frozenset[int]
    memory: int

    def wants(self, index: int) -> bool:
        return index in self.indices

    def frame(self, view: FrameView) -> float:
        return score(self.network, view.image)

    def result(self, frames: Sequence[float]) -> dict[str, float]:
        return {"musiq": math.fsum(frames) / len(frames)}


def working_memory(height: int, width: int) -> int:
    """The most bytes that one forward pass allocates.

    One channel as float or a row of patches in the stem (64 channels at half, 256 at quarter resolution, several at a
    time), then the transformer's 384 channels and 1152 hidden ones. An upper bound: 0.21 GB at 2K and 0.33 GB at 4K,
    where 0.19 and 0.23 GB were measured.
    """
    rows, columns = math.ceil(height / PATCH), math.ceil(width / PATCH)
    plane, stem = 4 * height * width, columns * 5 * 65536
    tokens = rows * columns + sum((side // PATCH) ** 2 for side in LONG_SIDES) + 1
    return (96 << 20) + max(plane, stem) + tokens * 4 * (6 * 384 + 3 * 1152)


def build(device: str) -> Any:
    """pyiqa's MUSIQ with random weights, in eval mode. Raises MissingWeights without pyiqa."""
    _need_pyiqa()
    try:
        from pyiqa.archs.musiq_arch import MUSIQ  # ty: ignore[import-not-found]
    except ImportError as error:
        raise MissingWeights(f"pyiqa is installed incompletely ({error}): `make iqa` repairs it") from error
    return MUSIQ(pretrained=False).eval().requires_grad_(False).to(device)


def _need_pyiqa() -> None:
    if importlib.util.find_spec("pyiqa") is None:
        raise MissingWeights("pyiqa is not installed: `make iqa` installs it (PolyForm Noncommercial licence)")


def load(network: Any, path: Path) -> None:
    """Load pyiqa's weights into the network. Raises ValueError if the file has the weights of another network."""
    import torch

    values = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict({name.removeprefix("module."): value for name, value in values.items()}, strict=True)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path}: not MUSIQ's weights for KonIQ: {str(error).splitlines()[0]}") from error


def score(network: Any, image: Frames) -> float:
    """MUSIQ of one frame, uint8 `[H, W, 3]` RGB: about 0 to 100, higher is better."""
    import torch

    with torch.inference_mode():
        device = next(network.parameters()).device
        picture = torch.from_numpy(image).to(device).permute(2, 0, 1)
        tokens = torch.cat([_tokens(network, scale, number) for number, scale in enumerate(_scales(picture))])
        encoder = network.transformer_encoder
        state = torch.cat([encoder.cls[0], tokens]).unsqueeze(0)
        del tokens
        for block in encoder.transformer.values():
            state = state + _attention(block.attention, block.norm1(state))
            state = state + block.mlp(block.norm2(state))
        return float(network.head(encoder.encoder_norm(state[:, 0])))


def _scales(picture: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the frame at its two smaller scales, float `[3, h, w]` in [-1, 1], then the frame itself, uint8."""
    import torch
    from pyiqa.data.multiscale_trans_util import resize_preserve_aspect_ratio  # ty: ignore[import-not-found]

    height, width = picture.shape[1:]
    for side in LONG_SIDES:
        planes = [resize_preserve_aspect_ratio(_signed(plane)[None, None], height, width, side)[0] for plane in picture]
        yield torch.cat(planes, 1)[0]
    yield picture


def _signed(picture: torch.Tensor) -> torch.Tensor:
    """uint8 -> [-1, 1] with pyiqa's rounding; float is unchanged."""
    return picture if picture.is_floating_point() else (picture.float().div_(255) - 0.5).mul_(2)


def _tokens(network: Any, picture: torch.Tensor, scale: int) -> torch.Tensor:
    """Embed the patches of one scale with their positions, one row at a time: `[patches, 384]`."""
    import torch
    from pyiqa.data.multiscale_trans_util import get_hashed_spatial_pos_emb_index  # ty: ignore[import-not-found]
    from torch.nn import functional as F

    _, height, width = picture.shape
    rows, columns = math.ceil(height / PATCH), math.ceil(width / PATCH)
    top_padding, left_padding = (rows * PATCH - height) // 2, (columns * PATCH - width) // 2
    embeddings = []
    for row in range(rows):
        first = row * PATCH - top_padding
        top, bottom = max(0, first), min(height, first + PATCH)
        band = _signed(picture[:, top:bottom])
        sides = (left_padding, columns * PATCH - width - left_padding, top - first, first + PATCH - bottom)
        patches = F.pad(band, sides).reshape(3, PATCH, columns, PATCH).permute(2, 0, 1, 3)
        stem = network.block1(network.root_pool(network.gn_root(network.conv_root(patches))))
        embeddings.append(network.embedding(stem.permute(0, 2, 3, 1).flatten(1)))
    encoder, grid = network.transformer_encoder, network.data_preprocess_opts["hse_grid_size"]
    positions = get_hashed_spatial_pos_emb_index(grid, rows, columns)[0].long()
    tokens = torch.cat(embeddings)
    tokens += encoder.posembed_input.position_emb[0, positions.to(tokens.device)]
    return tokens.add_(encoder.scaleembed_input.scale_emb[scale])


def _attention(attention: Any, tokens: torch.Tensor) -> torch.Tensor:
    """pyiqa's MultiHeadAttention without a mask, by PyTorch's fused kernel."""
    from torch.nn import functional as F

    def heads(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    query, key, value = (heads(layer(tokens)) for layer in (attention.query, attention.key, attention.value))
    result = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    return attention.out(result.transpose(1, 2).flatten(2))
