"""Devices and their rates: what every estimate of time, of a plan, a dry run or a progress line, divides FLOPs by."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from pw.io.arguments import ConfigError
from pw.run.build import Run


@dataclass(frozen=True)
class GpuCard:
    """A GPU: GB in its name, GiB that it gives to programs, dense bf16 peak in TFLOP/s (data sheets).

    gib  `total capacity` in torch's messages, the smallest seen: an H100 of "80 GB" has 81559 MiB by nvidia-smi, of
         which the driver keeps 0.5 GiB
    """

    gb: int
    gib: float
    peak: float

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.gib * (1 << 30)


CARDS = {
    "A100-40": GpuCard(40, 39.4, 312),
    "A100": GpuCard(80, 79.1, 312),
    "H100": GpuCard(80, 79.1, 989),
    "H200": GpuCard(141, 139.7, 989),
    "B200": GpuCard(180, 178.3, 2250),
    "L40S": GpuCard(48, 44.4, 362),
    "RTX4090": GpuCard(24, 23.5, 165),
    "RTX5090": GpuCard(32, 31.3, 209),
}
# Share of that peak in practice. Assumed: the paper's latencies are 341 TFLOP/s on a Hopper card with
# FlashAttention-2's kernels; 400 with torch's kernels. Older and smaller cards reach a larger share.
SHARE, SHARE_AMPERE_ADA = 0.4, 0.55
DEFAULT_TFLOPS = 400.0  # of a card with only its memory known
# Of a CPU thread: updates of the tiny scale on the development machine, 0.058 s for flow and 0.092 s for consistency.
CPU_TFLOPS = 0.037
MOST_GPUS, MOST_GB = 100_000, 10_000  # more is a slip of the keyboard


@dataclass(frozen=True)
class Gpus:
    """GPUs to plan for: their number, and the bytes, TFLOP/s and name of each."""

    count: int
    memory: float
    tflops: float
    card: str

    def __str__(self) -> str:
        return f"{self.count}x{self.card}"


def parse_gpus(text: str) -> Gpus:
    """`8x80GB`, `1xH100`, `H200` -> Gpus; GB are 10^9 bytes, GiB 2^30, a card has what it gives to programs.

    Raises ConfigError with the known cards.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(.+)", text.strip(), re.IGNORECASE | re.ASCII)
    digits, card = (match[1] or "1", match[2]) if match else ("1", text)
    if len(digits) > 20 or not 1 <= (count := int(digits)) <= MOST_GPUS:
        raise ConfigError(f"gpus={text}: needs at least one GPU and at most {MOST_GPUS:,}, e.g. gpus=1x{card}")
    size = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|GiB|G)", card, re.IGNORECASE | re.ASCII)
    if size:
        gigabytes = float(size[1])
        if not 0 < gigabytes <= MOST_GB:
            raise ConfigError(f"gpus={text}: a GPU has more than 0 and at most {MOST_GB:,} GB; e.g. gpus=1x80GB")
        return Gpus(count, gigabytes * (1 << 30 if size[2].lower() == "gib" else 1e9), DEFAULT_TFLOPS, card)
    names = {name: name for name in CARDS} | {f"{name}-{card.gb}": name for name, card in CARDS.items()}
    name = names.get(card.upper().removesuffix("GB"))
    if name is None:
        matches = difflib.get_close_matches(card.upper(), names, 1)
        hint = f"did you mean {names[matches[0]]}? " if matches else ""
        raise ConfigError(f"gpus={text}: {hint}known are {', '.join(CARDS)}, and memory as in gpus=1x80GB")
    share = SHARE if name[:2] in ("H1", "H2", "B2") else SHARE_AMPERE_ADA
    return Gpus(count, CARDS[name].memory, round(CARDS[name].peak * share, -1), name)


def tflops_of(run: Run) -> float:
    """TFLOP/s assumed of one device of a run, whose card is not known."""
    return DEFAULT_TFLOPS if run.trainer.accelerator == "gpu" else CPU_TFLOPS * run.trainer.threads


def rate_text(run: Run) -> str:
    """`tflops_of` in words, with the devices of the run."""
    trainer, processes = run.trainer, run.trainer.processes
    on_gpu, more = trainer.accelerator == "gpu", "s" * (processes > 1)
    device = f"GPU{more}" if on_gpu else f"CPU process{'es' * bool(more)}"
    source = "assumed" if on_gpu else "measured at scale=tiny"
    return f"on {processes} {device} at {tflops_of(run):.3g} TFLOP/s each ({source})"
