"""What a risk of `pw gpu-check` is given, a device with its shapes, and what it gives back: figures with bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pw.io.lazy import torch
from pw.run.build import Run, build

# A clip of 2 x 4 x 6 tokens and a network of two blocks, of the classes of `scale=proxy`.
ON_CPU = (
    *("trainer=cpu", "scale.frames=5", "scale.height=128", "scale.width=192", "scale.anchor_height=32"),
    *("scale.anchor_width=64", "scale.norm_groups=4", "codec.channels=4", "backbone.in_channels=4"),
    *("backbone.num_attention_heads=2", "backbone.attention_head_dim=16", "backbone.ffn_dim=128"),
    *("backbone.text_dim=16", "backbone.rope_max_seq_len=64"),
)
SPARSE_ON_CPU = ("attention.tile=[1,1,1]",)
VAE_ON_CPU = {"base_dim": 8, "decoder_base_dim": 8}  # of Wan's VAE, which has 160 and 256


class Skipped(Exception):
    """A risk that this machine cannot have checked; the message says why."""


@dataclass(frozen=True)
class Figure:
    """A measured value, and what it must lie between for the risk to pass."""

    value: float
    most: float = math.inf
    least: float = -math.inf

    @property
    def is_met(self) -> bool:
        return self.least <= self.value <= self.most

    @property
    def bound(self) -> str:
        """In words; empty without a bound."""
        low = [f"at least {self.least:.4g}"] if self.least > -math.inf else []
        return ", ".join([*low, *([f"at most {self.most:.4g}"] if self.most < math.inf else [])])


@dataclass(frozen=True)
class Machine:
    """The device of a check.

    seconds  that a risk may take
    folder   of files to keep; scratch: of others
    """

    device: Literal["cuda", "cpu"]
    seconds: float
    folder: Path
    scratch: Path

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    def run(self, scale: str, *words: str) -> Run:
        """The run of a scale with a network of two blocks; on a CPU all scales are one tiny shape."""
        shape = (f"scale={scale}", "trainer=gpu") if self.is_gpu else ("scale=proxy", *ON_CPU)
        words = (*shape, "backbone.num_layers=2", *words)
        return build([*{word.partition("=")[0]: word for word in words}.values()])  # the last word of each key

    def needs_gpu(self, what: str) -> None:
        """Raises Skipped on a CPU."""
        if not self.is_gpu:
            raise Skipped(f"{what} is of a GPU")

    def needs_memory(self, planned: float) -> None:
        """Raises Skipped where the device has less memory free than the plan wants, bytes."""
        if self.is_gpu and planned > (free := torch.cuda.mem_get_info()[0]):
            raise Skipped(f"by the plan it needs {planned / 1e9:.3g} GB, {free / 1e9:.3g} GB are free on the card")


def relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the difference, by that of `exact`; computed in fp32 on the device of `result`."""
    result, exact = result.float(), exact.to(result.device).float()
    return float((result - exact).norm() / exact.norm())
