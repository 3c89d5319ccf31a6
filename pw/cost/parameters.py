"""Sizes of latents and numbers of parameters, counted from shapes; equal to the modules' own (tests/cost)."""

from __future__ import annotations

import math

from pw.nn import options
from pw.run.build import Run

Codec = options.WanVAE | options.SpaceToDepth
Injector = options.Injector | options.Add | None

SINUSOID = 256  # channels of a sinusoidal embedding  (pw.nn.adapters)

# Wan2.2's VAE, diffusers' AutoencoderKLWan at the published configuration, counted on the meta device.
VAE_ENCODER_PARAMETERS = 149_637_088
VAE_DECODER_PARAMETERS = 555_051_580

# UMT5-XXL's encoder  (google/umt5-xxl, config.json)
UMT5_LAYERS = 24
UMT5_WIDTH = 4096
UMT5_FFN = 10240
UMT5_HEADS = 64
UMT5_BUCKETS = 32
UMT5_VOCABULARY = 256384


def tokens(latent: tuple[int, int, int, int], patch_size: tuple[int, int, int]) -> int:
    """L = F h w / patch volume."""
    return math.prod(length // patch for length, patch in zip(latent[1:], patch_size, strict=True))


def stage_latent(run: Run) -> tuple[int, int, int, int]:
    """(C, F, h, w) of the latent that the run's stage generates: the anchor's, or that of the clip at full size."""
    codec, (height, width) = run.codec, run.scale.anchor_size if run.stage == "anchor" else run.scale.size
    return codec.channels, codec.latent_frames(run.scale.frames), height // codec.factor, width // codec.factor


def block_parameters(backbone: options.Wan) -> int:
    """Parameters of one transformer block: two attentions of 4 (D^2 + D) + 2 D, norm2, FFN, modulation table."""
    d, f = backbone.width, backbone.ffn_dim
    return 2 * (4 * (d * d + d) + 2 * d) + 2 * d + (2 * d * f + f + d) + 6 * d


def transformer_parameters(backbone: options.Wan) -> int:
    """Parameters of the stock `WanTransformer3DModel`: 4,999,787,712 for Wan2.2-TI2V-5B."""
    d, patch = backbone.width, backbone.in_channels * math.prod(backbone.patch_size)
    embeddings = (
        (patch * d + d)
        + (backbone.freq_dim * d + d + d * d + d)  # time_embedder
        + (6 * d * d + 6 * d)  # time_proj
        + (backbone.text_dim * d + d + d * d + d)  # text_embedder
    )
    return embeddings + backbone.num_layers * block_parameters(backbone) + (d * patch + patch) + 2 * d


def kept_parameters(backbone: options.Wan) -> int:
    """Parameters of the transformer that stay fp32 in a bf16 model: time embedder, modulation tables, norm2."""
    d = backbone.width
    return (backbone.freq_dim * d + d + d * d + d) + backbone.num_layers * (6 * d + 2 * d) + 2 * d


def stride_embedding_parameters(backbone: options.Wan) -> int:
    """Parameters of the stride embedding: Linear(256, D), Linear(D, D)."""
    d = backbone.width
    return SINUSOID * d + d + d * d + d


def gate_parameters(injector: options.Injector, backbone: options.Wan) -> int:
    """Parameters of the injector's gate."""
    d = backbone.width
    return {
        "scalar": SINUSOID * d + d + d + 1,
        "channelwise": 2 * (SINUSOID * d + d + d * d + d),
        "fixed": 0,
    }[injector.gate]


def injector_parameters(injector: Injector, backbone: options.Wan) -> int:
    """Parameters of the injector: 1x1x1 and 3x3x3 convolution, their norms, the gate, a Linear(D, D) per block."""
    if not isinstance(injector, options.Injector):
        return 0
    d, hidden = backbone.width, injector.hidden_channels(backbone)
    refine = (backbone.in_channels * hidden + hidden) + 2 * hidden + (27 * hidden * d + d) + 2 * d
    return refine + gate_parameters(injector, backbone) + len(injector.blocks) * (d * d + d)


def parameters(backbone: options.Wan, injector: Injector) -> int:
    """Parameters of `pw.nn.backbone.Backbone`: transformer, stride embedding and injector."""
    adapters = stride_embedding_parameters(backbone) + injector_parameters(injector, backbone)
    return transformer_parameters(backbone) + adapters


def text_encoder_parameters() -> int:
    """Parameters of UMT5-XXL's encoder: 5.68e9, a fifth of them the vocabulary's embedding."""
    attention = 4 * UMT5_WIDTH**2 + UMT5_HEADS * UMT5_BUCKETS  # each layer has its own position bias
    layer = attention + 3 * UMT5_WIDTH * UMT5_FFN + 2 * UMT5_WIDTH
    return UMT5_VOCABULARY * UMT5_WIDTH + UMT5_LAYERS * layer + UMT5_WIDTH
