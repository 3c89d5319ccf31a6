"""FLOPs and bytes of encoding and decoding a clip, tile by tile; tests/cost compares them with the real modules."""

from __future__ import annotations

from typing import Literal

from pw.cost.counts import BYTES, Part
from pw.nn import options

Codec = options.WanVAE | options.SpaceToDepth | options.LappedCosine
Direction = Literal["encode", "decode"]

# Wan2.2's VAE, diffusers' AutoencoderKLWan at the published configuration, counted on the meta device.
VAE_ENCODER_PARAMETERS = 149_637_088
VAE_DECODER_PARAMETERS = 555_051_580
# FLOPs per px of the first frame and of each later frame, convolutions only; channels of its one attention layer.
VAE_DECODE = (22.776466e6, 18.3941485e6, 1024)
VAE_ENCODE = (4.643752e6, 3.4907780e6, 640)

# Working set of Wan2.2's VAE in bytes per px in bf16, for several frames and for one. It convolves four frames at a
# time, so more frames need no more memory. Fake tensors: decoding 39.8 and 88.9 GB at 2K and 4K, encoding 31.7 at 4K.
VAE_DECODE_BYTES = (10_796, 2_900)
VAE_ENCODE_BYTES = (3_850, 970)

# The small decoder of `pw.nn.tiny_decoder` at Wan2.2's sizes, per px of a latent frame: FLOPs; bytes in bf16.
TINY_DECODE, TINY_DECODE_BYTES, TINY_PARAMETERS = 351_584, 338, 9_923_532


def codec_flops(codec: Codec, frames: int, height: int, width: int, direction: Direction) -> float:
    """FLOPs of encoding or decoding one clip, tile by tile; tiles overlap, so smaller tiles cost more.

    Convolutions cost the same per px in each frame after the first; attention costs 4 (h w)^2 channels a latent frame.
    Without tiles, decoding takes 8.25 and 18.5 PFLOP at 2K and 4K, encoding 1.58 and 3.57. The small decoder takes a
    two-hundredth of that, codecs without weights next to nothing.
    """
    if not isinstance(codec, options.WanVAE):
        return 0
    first, next_frames, channels = VAE_DECODE if direction == "decode" else VAE_ENCODE
    tiles = codec.tiles(height, width)
    positions = [(row.stop - row.start) * (column.stop - column.start) for row in tiles[0] for column in tiles[1]]
    pixels = sum(positions) * codec.factor**2
    if direction == "decode" and codec.decoder == "tiny":
        return pixels * TINY_DECODE * codec.latent_frames(frames)
    attention = 4 * sum(count**2 for count in positions) * channels * codec.latent_frames(frames)
    return pixels * (first + next_frames * (frames - 1)) + attention


def codec_bytes(codec: Codec, frames: int, height: int, width: int, direction: Direction) -> tuple[Part, ...]:
    """Weights, the working set of a tile, and pixels. The others only need the pixels, twice."""
    if not isinstance(codec, options.WanVAE):
        return (Part("pixels", 2 * 12 * frames * height * width, "counted"),)
    b = BYTES[codec.precision]
    tiles = codec.tiles(height, width)
    rows, columns = (codec.factor * max(span.stop - span.start for span in spans) for spans in tiles)
    many_frames, one_frame = VAE_DECODE_BYTES if direction == "decode" else VAE_ENCODE_BYTES
    parameters = VAE_ENCODER_PARAMETERS + VAE_DECODER_PARAMETERS
    if direction == "decode" and codec.decoder == "tiny":
        many_frames = one_frame = TINY_DECODE_BYTES
        parameters += TINY_PARAMETERS
    per_pixel = (one_frame if frames == 1 else many_frames) * b / 2
    pixels = 2 * 3 * b * rows * columns  # a tile, and its patches
    if direction == "encode":
        pixels += 12 * height * width  # the clip in fp32
    elif max(map(len, tiles)) > 1:
        pixels += 2 * 12 * rows * width + 12 * rows * columns  # two rows of tiles for blending and a tile, fp32
    return (
        Part("weights", b * parameters, "counted"),
        Part("working set", rows * columns * per_pixel, "fake tensors"),
        Part("pixels", frames * pixels, "counted"),
    )
