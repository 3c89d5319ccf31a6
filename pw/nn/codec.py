"""Video <-> latent: Wan2.2's VAE in tiles, and at `scale=tiny` a lossless rearrangement with as many channels, 48."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pw.nn import options
from pw.nn.tiny_decoder import TinyDecoder, load_tiny

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


class SpaceToDepthCodec:
    """[B, 3, F, H, W] <-> [B, 3 f^2, F, H/f, W/f], exactly invertible, without weights."""

    def __init__(self, choice: options.SpaceToDepth) -> None:
        self.factor = choice.factor
        self.channels = choice.channels

    def encode(self, video: Tensor) -> Tensor:
        """Raises ValueError when H or W is not a multiple of the factor."""
        if video.shape[-2] % self.factor or video.shape[-1] % self.factor:
            raise ValueError(f"codec.factor={self.factor} does not divide {video.shape[-2]} x {video.shape[-1]} pixels")
        return _per_frame(video, lambda frames: F.pixel_unshuffle(frames, self.factor))

    def decode(self, latent: Tensor) -> Tensor:
        """Values may leave [-1, 1] and are clamped where they become pixels."""
        return _per_frame(latent, lambda frames: F.pixel_shuffle(frames, self.factor))


def _per_frame(video: Tensor, function) -> Tensor:
    frames = function(video.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)


# Wan2.2-TI2V-5B's: 704.7 M parameters.
WAN_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}


class WanCodec:
    """[B, 3, F, H, W] <-> [B, 48, (F - 1) / 4 + 1, H / 16, W / 16] by Wan2.2's VAE, normalised per channel.

    The latent is the mode of the posterior (deterministic). Large pictures are split into tiles of all frames, which
    are blended where they overlap. Attention is within a tile, so the result differs a little from that of one piece.

    compile  compile the decoder of the VAE, for each size of a tile
    Raises ValueError when the VAE, or the file of the small decoder, does not match the configuration.
    """

    def __init__(self, choice: options.WanVAE, vae: AutoencoderKLWan, *, compile: bool = False) -> None:
        config: Any = vae.config
        for name, actual in (
            ("channels", config.z_dim),
            ("factor", config.scale_factor_spatial),
            ("frames_factor", config.scale_factor_temporal),
        ):
            if actual != getattr(choice, name):
                raise ValueError(f"codec.{name}={getattr(choice, name)}: the VAE of these weights has {actual}")
        self.choice, self.vae = choice, vae.eval().requires_grad_(False)
        self.factor, self.channels = choice.factor, choice.channels
        self.mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        self.tiny: TinyDecoder | None = None
        if choice.decoder_file is not None:
            self.tiny = load_tiny(Path(choice.decoder_file), choice.channels, str(vae.device), vae.dtype)
        elif compile:
            vae.decoder.compile(dynamic=False)
        if vae.device.type == "cuda":
            channels_last(vae)

    @property
    def decoder(self) -> nn.Module:
        """The module that is called once for each tile and latent frame."""
        return self.vae.decoder if self.tiny is None else self.tiny

    @classmethod
    def load(cls, choice: options.WanVAE, weights: Path, device: str, *, compile: bool = False) -> WanCodec:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        dtype = torch.bfloat16 if choice.precision == "bf16" else torch.float32
        vae: Any = AutoencoderKLWan.from_pretrained(weights, subfolder="vae", torch_dtype=dtype, local_files_only=True)
        return cls(choice, vae.to(device), compile=compile)

    @classmethod
    def random(cls, choice: options.WanVAE, device: str, *, compile: bool = False) -> WanCodec:
        """Wan2.2's VAE at full size with random weights: to measure time and memory."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        with torch.device(device):
            vae = AutoencoderKLWan(**WAN_VAE, latents_mean=[0.0] * choice.channels, latents_std=[1.0] * choice.channels)
        if choice.precision == "bf16":
            for parameter in vae.parameters():  # diffusers' `to` warns about modules that it does not have
                parameter.data = parameter.data.to(torch.bfloat16)
        return cls(choice, vae, compile=compile)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video in [-1, 1] -> latent, float32, on the video's device. Raises ValueError on sizes that do not fit."""
        _, _, frames, height, width = video.shape
        self.choice.latent_frames(frames)
        if height % self.factor or width % self.factor:
            raise ValueError(f"codec.factor={self.factor} does not divide {height} x {width} pixels")
        unit = self.factor

        def piece(rows: slice, columns: slice) -> Tensor:
            part = video[..., _scale_span(rows, unit), _scale_span(columns, unit)].to(self.vae.device, self.vae.dtype)
            return self.vae.encode(part).latent_dist.mode().float().to(video.device)

        tile, overlap = self.choice.side // unit, self.choice.overlap // unit
        bands = blend_tiles(piece, (height // unit, width // unit), tile, overlap, 1)
        latent = torch.cat([band for _, band in bands], dim=-2)
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> video [B, 3, F, H, W] in [-1, 1], float32, on the latent's device."""
        return torch.cat([band for _, band in self.bands(latent)], dim=-2)

    @torch.no_grad()
    def bands(self, latent: Tensor, processes: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Decode in horizontal bands, top to bottom: (first row, [B, 3, F, rows, W] in [-1, 1]).

        Bands are on the latent's device, 3.6 GB each at 4K. If several processes of consecutive ranks call this with
        the same latent, they decode its tiles together and the first of them receives the bands.
        """
        unit = self.factor
        scaled = latent.float()
        if self.tiny is None:
            scaled = scaled * self.std.to(latent) + self.mean.to(latent)

        def piece(rows: slice, columns: slice) -> Tensor:
            part = scaled[..., rows, columns].to(self.vae.device, self.vae.dtype)
            video = self.vae.decode(part, return_dict=False)[0] if self.tiny is None else self.tiny.decode(part)
            return video.to(latent.device).float()

        height, width = latent.shape[-2:]
        size, overlap = self.choice.side // unit, self.choice.overlap // unit
        if processes > 1:
            rows, columns = (options.spans(length, size, overlap) for length in (height, width))
            pieces = distributed_pieces(piece, list(itertools.product(rows, columns)), unit, processes)
            if dist.get_rank() % processes:
                deque(pieces, maxlen=0)
                return
            yield from blend_tiles(lambda rows, columns: next(pieces), (height, width), size, overlap, unit)
            return
        yield from blend_tiles(piece, (height, width), size, overlap, unit)


def random_codec(choice: options.WanVAE, device: str, sizes: Mapping[str, int]) -> WanCodec:
    """A VAE of Wan2.2's layout with random weights in fp32; `sizes` replace some of `WAN_VAE`'s."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    mean, std = [0.0] * choice.channels, [1.0] * choice.channels
    arguments = {**WAN_VAE, **sizes, "z_dim": choice.channels}
    with torch.device(device):
        return WanCodec(choice, AutoencoderKLWan(**arguments, latents_mean=mean, latents_std=std))


def channels_last(module: nn.Module) -> None:
    """Store the weights of 3D convolutions channel by channel last, as tensor cores read them; their values stay."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last_3d)


def _scale_span(span: slice, factor: int) -> slice:
    return slice(span.start * factor, span.stop * factor)


def window(span: slice, length: int, overlap: int) -> Tensor:
    """Weight of each position of a tile: 1, falling as a cosine over `overlap` towards its inner edges, never 0."""
    size = span.stop - span.start
    weight = torch.ones(size)
    ramp = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(min(overlap, size)) + 0.5) / max(1, overlap))
    if span.start:
        weight[: len(ramp)] *= ramp
    if span.stop < length:
        weight[size - len(ramp) :] *= ramp.flip(0)
    return weight


def blend_tiles(
    piece: Callable[[slice, slice], Tensor], size: tuple[int, int], tile: int, overlap: int, scale: int
) -> Iterator[tuple[int, Tensor]]:
    """piece(rows, columns) of a grid of `size` -> its parts, `scale` times larger, blended: (first row, rows) in order.

    A row is yielded as soon as no further tile overlaps it, so only one band of tiles is in memory.
    """
    height, width = size
    rows, columns = (options.spans(length, tile, overlap) for length in size)
    if len(rows) == len(columns) == 1:
        yield 0, piece(rows[0], columns[0])
        return
    total = weights = None
    first_row = 0
    for index, row in enumerate(rows):
        down = window(_scale_span(row, scale), height * scale, overlap * scale)
        for column in columns:
            tile_values = piece(row, column)
            across = window(_scale_span(column, scale), width * scale, overlap * scale)
            weight = (down[:, None] * across).to(tile_values)
            if total is None or weights is None:
                total = tile_values.new_zeros(*tile_values.shape[:-2], (row.stop - row.start) * scale, width * scale)
                weights = tile_values.new_zeros(total.shape[-2:])
            region = (slice(row.start * scale - first_row, row.stop * scale - first_row), _scale_span(column, scale))
            total[..., *region].addcmul_(tile_values, weight)
            weights[region] += weight
        end = (rows[index + 1].start if index + 1 < len(rows) else height) * scale
        assert total is not None
        assert weights is not None
        yield first_row, total[..., : end - first_row, :] / weights[: end - first_row]
        if end < height * scale:
            shared_rows = row.stop * scale - end  # rows that the next band overlaps
            next_height = (rows[index + 1].stop - rows[index + 1].start) * scale
            next_total = total.new_zeros(*total.shape[:-2], next_height, total.shape[-1])
            next_total[..., :shared_rows, :] = total[..., end - first_row :, :]
            next_weights = weights.new_zeros(next_total.shape[-2:])
            next_weights[:shared_rows] = weights[end - first_row :]
            total, weights, first_row = next_total, next_weights, end


def distributed_pieces(
    piece: Callable[[slice, slice], Tensor], tiles: Sequence[tuple[slice, slice]], scale: int, processes: int
) -> Iterator[Tensor]:
    """piece(rows, columns) of each tile, in order; `processes` consecutive ranks compute one tile each at a time.

    The first of these ranks yields all pieces, the others none. A piece is `scale` times as large as its tile.
    """
    rank = dist.get_rank()
    member = rank % processes
    for start in range(0, len(tiles), processes):
        batch = tiles[start : start + processes]
        local = piece(*batch[member]) if member < len(batch) else None
        if member:
            if local is not None:
                dist.send(local.contiguous(), rank - member)
            continue
        assert local is not None
        yield local
        for offset, (rows, columns) in enumerate(batch[1:], start=1):
            size = ((span.stop - span.start) * scale for span in (rows, columns))
            received = local.new_empty(*local.shape[:-2], *size)
            dist.recv(received, rank + offset)
            yield received
