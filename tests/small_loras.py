"""Random LoRA files in the forms that others publish, for the transformer of tests/small_pipeline.py or another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from pw.nn import options
from pw.nn.backbone import wan_transformer

WAN = options.Wan((1, 2, 2), 2, 16, 4, 48, 3, 16, 8, 256, 64)
ORIGINAL = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
ORIGINAL |= {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}


def write_lora(
    path: Path, kind: Literal["diffusers", "original", "kohya"], seed: int = 0, rank: int = 2, choice: options.Wan = WAN
) -> Path:
    """A LoRA of every linear layer: diffusers' names; the original Wan's (lora_A); these with alpha 1.5 (lora_down)."""
    generator, state = torch.Generator().manual_seed(seed), {}
    words = ("lora_down", "lora_up") if kind == "kohya" else ("lora_A", "lora_B")
    for block in range(choice.num_layers):
        for name, (out, into) in layers(choice).items():
            known = kind == "diffusers"
            module = (
                f"transformer.blocks.{block}.{name}" if known else f"diffusion_model.blocks.{block}.{_original(name)}"
            )
            state[f"{module}.{words[0]}.weight"] = 0.4 * torch.randn((rank, into), generator=generator)
            state[f"{module}.{words[1]}.weight"] = 0.4 * torch.randn((out, rank), generator=generator)
            if kind == "kohya":
                state[f"{module}.alpha"] = torch.tensor(1.5)
    save_file(state, path)
    return path


def layers(choice: options.Wan) -> dict[str, tuple[int, ...]]:
    """Linear layer of a block, with diffusers' name -> (out, in)."""
    with torch.device("meta"):
        state = wan_transformer(choice).blocks[0].state_dict()
    names = [f"{attention}.{name}" for attention in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")]
    return {name: tuple(state[f"{name}.weight"].shape) for name in (*names, "ffn.net.0.proj", "ffn.net.2")}


def _original(name: str) -> str:
    attention, _, rest = name.partition(".")
    return ORIGINAL.get(name) or f"{ORIGINAL[attention]}.{ORIGINAL[rest]}"
