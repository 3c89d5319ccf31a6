"""Devices and their rates: what every estimate of time, of a plan, a dry run or a progress line, divides FLOPs by."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pw.cost.counts import Flops
from pw.io.arguments import ConfigError
from pw.io.files import read_json, write_json
from pw.io.host import gpu_name
from pw.io.paths import OUTPUTS
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
# Convolutions of the VAE against that. Assumed: published decodes of Wan2.2's VAE come to 365 TFLOP/s where it is 400.
CODEC_SHARE = 0.91
# Of a CPU thread: updates of the tiny scale on the development machine, 0.058 s for flow and 0.092 s for consistency.
CPU_TFLOPS = 0.037
FILE_RATE = 25.5  # Mpx/s of x264 (preset veryfast) on one core of that machine: 39 s for 121 frames of 4K
RATES = OUTPUTS / "rates.json"  # card -> {kind of work: rate}, by `pw bench what=generate`
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


@dataclass(frozen=True)
class Rates:
    """What a device reaches: TFLOP/s by kind of work, and Mpx/s of the H.264 that the CPU writes.

    measured  the kinds that `pw bench what=generate` measured on `card`; others are assumed
    """

    linear: float
    attention: float
    text: float
    decode: float
    encode: float
    file: float = FILE_RATE
    measured: frozenset[str] = frozenset()
    card: str = ""

    def seconds(self, flops: Flops) -> float:
        """Time of one device."""
        return sum(count / getattr(self, KINDS[kind]) for kind, count in vars(flops).items()) / 1e12

    def file_seconds(self, pixels: float) -> float:
        return pixels / self.file / 1e6

    def source(self, flops: Flops) -> str:
        """`measured`, `assumed`, or both, of the kinds that these FLOPs are of."""
        kinds = {KINDS[kind] for kind, count in vars(flops).items() if count}
        words = ("measured" if kinds & self.measured else "", "assumed" if kinds - self.measured else "")
        return ", ".join(filter(None, words))

    def __str__(self) -> str:
        """The rates in words: `400 TFLOP/s (VAE 364), assumed`."""
        values = {name: getattr(self, name) for name in ("linear", "attention", "decode")}
        names = {"linear": "", "attention": "attention ", "decode": "VAE "}
        others = [f"{names[k]}{v:.3g}" for k, v in values.items() if f"{v:.3g}" != f"{self.linear:.3g}"]
        note = f" ({', '.join(others)})" if others else ""
        missing = {*TYPES} - self.measured
        source = "assumed" if len(missing) == len(TYPES) else f"measured on {self.card}"
        if missing and self.measured:
            source += f"; {', '.join(name for name in TYPES if name in missing)} assumed"
        return f"{self.linear:.3g} TFLOP/s{note}, {source}"


TYPES = ("linear", "attention", "text", "decode", "encode", "file")
KINDS = {  # kind of FLOPs -> the rate of such work
    **{"linear": "linear", "self_attention": "attention", "cross_attention": "attention", "embeddings": "linear"},
    **{
        "injector": "linear",
        "choice_of_blocks": "attention",
        "decode": "decode",
        "encode": "encode",
        "text_encoder": "text",
    },
}


def uniform_rates(tflops: float, codec_share: float = 1.0) -> Rates:
    codec = tflops * codec_share
    return Rates(linear=tflops, attention=tflops, text=tflops, decode=codec, encode=codec)


def rates_of_gpus(gpus: Gpus) -> Rates:
    """Measured rates of a card of this name, the others assumed. Raises ConfigError for a damaged file."""
    names = [name for name in _measurements() if gpus.card in CARDS and is_card(name, gpus.card)]
    return with_measured(uniform_rates(gpus.tflops, CODEC_SHARE), names[-1] if names else "")


def rates_of(run: Run) -> Rates:
    """Rates of one device of a run on this machine. Raises ConfigError for a damaged file of rates."""
    if run.trainer.accelerator == "gpu":
        return with_measured(uniform_rates(DEFAULT_TFLOPS, CODEC_SHARE), gpu_name())
    return uniform_rates(CPU_TFLOPS * run.trainer.threads)


def with_measured(assumed: Rates, card: str) -> Rates:
    """The rates, with what was measured on a card of exactly this name."""
    values = _measurements().get(card, {})
    return replace(assumed, **values, measured=frozenset(values), card=card)


def record_rates(card: str, rates: Mapping[str, float]) -> None:
    """Keep measured rates of a card, beside what was measured before."""
    write_json(RATES, {**_measurements(), card: {**_measurements().get(card, {}), **rates}})


def _measurements() -> dict[str, dict[str, float]]:
    if not RATES.exists():
        return {}
    content = read_json(RATES) or {"": None}
    rows = content.values()
    if not all(isinstance(row, dict) and row.keys() <= {*TYPES} and all(map(_is_rate, row.values())) for row in rows):
        raise ConfigError(f"{RATES}: is not what `pw bench what=generate` writes; remove it, and measure again")
    return content


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def is_card(name: str, card: str) -> bool:
    """Whether a device that CUDA calls `name` is a card of `CARDS`: "NVIDIA A100-SXM4-80GB" is A100."""
    letters = name.upper().replace(" ", "")
    return card.split("-", maxsplit=1)[0] in letters and (f"{CARDS[card].gb}GB" in letters or "GB" not in letters)


def rate_text(run: Run) -> str:
    """`rates_of` in words, with the devices of the run."""
    trainer, processes = run.trainer, run.trainer.processes
    on_gpu, more = trainer.accelerator == "gpu", "s" * (processes > 1)
    device = f"GPU{more}" if on_gpu else f"CPU process{'es' * bool(more)}"
    each = str(rates_of(run)) if on_gpu else f"{rates_of(run).linear:.3g} TFLOP/s each (measured at scale=tiny)"
    return f"on {processes} {device} at {each}"
