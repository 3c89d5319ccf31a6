"""GPUs to plan for: how they are named, and how a run can be divided among them."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from pw.cost.generation_cost import stages_of
from pw.cost.parameters import stage_latent, tokens
from pw.io.arguments import ConfigError
from pw.parallel.team import Share
from pw.run.build import Run

# card -> (GB, dense bf16 peak TFLOP/s; the vendor's data sheets). A GB is taken as 10^9 bytes, a little less than what
# the cards have.
CARDS: dict[str, tuple[int, float]] = {
    "A100-40": (40, 312),
    "A100": (80, 312),
    "H100": (80, 989),
    "H200": (141, 989),
    "B200": (180, 2250),
    "L40S": (48, 362),
    "RTX4090": (24, 165),
    "RTX5090": (32, 209),
}
# Share of that peak achieved. Assumed: the paper's latencies are 341 TFLOP/s on a Hopper card with
# FlashAttention-2's kernels; 400 with torch's own. Older and smaller cards come nearer to their peaks.
SHARE, SHARE_AMPERE_ADA = 0.4, 0.55
UNNAMED = 400.0  # TFLOP/s of a card of which only the memory is known
DEVICES = 8  # of a machine


@dataclass(frozen=True)
class Gpus:
    """Devices to plan for: their number, and the bytes, TFLOP/s and name of each."""

    count: int
    memory: float
    tflops: float
    card: str

    def __str__(self) -> str:
        return f"{self.count}x{self.card}"


def parse_gpus(text: str) -> Gpus:
    """`8x80GB`, `1xH100`, `H200` -> Gpus. Raises ConfigError with the known cards."""
    match = re.fullmatch(r"(?:(\d+)x)?(.+)", text.strip(), re.IGNORECASE)
    count, card = (int(match[1] or 1), match[2]) if match else (1, text)
    if count < 1:
        raise ConfigError(f"gpus={text}: needs at least one GPU, e.g. gpus=1x{card}")
    size = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|GiB|G)", card, re.IGNORECASE)
    if size:
        memory = float(size[1]) * (1 << 30 if size[2].lower() == "gib" else 1e9)
        if not memory:
            raise ConfigError(f"gpus={text}: a GPU without memory; e.g. gpus=1x80GB")
        return Gpus(count, memory, UNNAMED, card)
    names = {name.lower(): name for name in CARDS}
    names |= {f"{name}-{gb}".lower(): name for name, (gb, _) in CARDS.items()}
    name = names.get(card.lower().removesuffix("gb"))
    if name is None:
        near = difflib.get_close_matches(card.lower(), names, 1)
        hint = f"did you mean {names[near[0]]}? " if near else ""
        raise ConfigError(f"gpus={text}: {hint}known are {', '.join(CARDS)}, and memory as in gpus=1x80GB")
    gb, peak = CARDS[name]
    share = SHARE if name[:2] in ("H1", "H2", "B2") else SHARE_AMPERE_ADA
    return Gpus(count, gb * 1e9, round(peak * share, -1), name)


def contexts(run: Run, count: int) -> list[int]:
    """Numbers of devices, more than the run's own, that could share the tokens of a clip in either stage."""
    both = (stage for stage in stages_of(run) if stage is not None)
    lengths = (tokens(stage_latent(stage), stage.backbone.patch_size) for stage in both)
    divided = (count // nodes_of(count), *lengths, run.backbone.num_attention_heads)
    return [n for n in range(run.trainer.context + 1, divided[0] + 1) if not any(whole % n for whole in divided)]


def nodes_of(count: int) -> int:
    """Machines of at most eight devices, equally many in each, that have `count` devices."""
    return next(n for n in range(math.ceil(count / DEVICES), count + 1) if count % n == 0)


def sharding(run: Run, count: int, context: int | None = None) -> str:
    """The overrides that split a training over `count` devices, at most eight to a machine."""
    nodes, context = nodes_of(count), context or run.trainer.context
    words = f"trainer=fsdp trainer.devices={count // nodes}" + (f" trainer.nodes={nodes}" if nodes > 1 else "")
    words += f" trainer.context={context}" if context > 1 else ""
    try:
        Share.of(run.train, 0, count // context)
    except ConfigError:  # an update has fewer clips than there are devices
        words += f" train.accumulate={count // context}, which makes updates larger"
    return words
