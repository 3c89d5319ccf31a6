"""What one process makes of a request, how far it is, and what each part took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pw.cost.generation_cost import generation_cost
from pw.generate.request import GenerationRequest, Prompt
from pw.parallel.team import Team

# progress(label, share, within): what is being done, the share of all work that is done, and of this part
PartProgress = Callable[[str, float, float], None]


class Meter:
    """The share of the work that is done, by FLOPs; seconds and peak memory of each part of each prompt.

    Parts are text, anchor (stage I), hires (stage II) and decode.
    """

    def __init__(self, request: GenerationRequest, count: int, progress: PartProgress | None) -> None:
        self.request, self.progress = request, progress
        self.flops = dict.fromkeys(("text", "anchor", "hires", "decode"), 0.0)
        for phase in generation_cost(request.hires, request.anchor).phases:
            part = {"text": "text", "stage I": "anchor", "decode": "decode"}.get(phase.name, "hires")
            self.flops[part] += phase.flops.total
        self.wanted = dict.fromkeys(self.flops, float(count))  # prompts of each part
        self.done = dict.fromkeys(self.flops, 0.0)

    def skip(self, part: str, label: str) -> None:
        """One prompt's part is there already."""
        self.wanted[part] -= 1
        self.add(part, 0.0, label)

    def add(self, part: str, share: float, label: str) -> None:
        """`share` of one prompt's part is done."""
        self.done[part] += share
        if self.progress is not None:
            total = sum(self.wanted[p] * self.flops[p] for p in self.flops)
            behind = sum(self.done[p] * self.flops[p] for p in self.flops)
            within = self.done[part] / self.wanted[part] if self.wanted[part] else 1.0
            self.progress(label, min(1.0, behind / total) if total else 1.0, min(1.0, within))

    def ticks(self, part: str, count: int, label: str) -> Callable[[], None]:
        """A function to call after each of `count` equal shares of one prompt's part; waits for the GPU's kernels."""

        def tick() -> None:
            if self.request.device == "cuda":
                import torch

                torch.cuda.synchronize()
            self.add(part, 1 / count, label)

        return tick

    def record(self, part: str, prompt: Prompt, began: float) -> None:
        """Note a part's seconds since `began` (time.perf_counter) and its peak memory."""
        seconds = round(time.perf_counter() - began, 3)
        self.request.seconds.setdefault(prompt.name, {})[part] = seconds
        self.request.peaks.setdefault(prompt.name, {})[part] = peak_gb(self.request.device)

    def recorded(self, part: str, prompt: Prompt) -> dict[str, str]:
        """What `record` noted, as metadata of a latent's file."""
        seconds, peaks = self.request.seconds[prompt.name], self.request.peaks[prompt.name]
        return {"seconds": str(seconds[part]), "peak_gb": str(peaks[part])}

    def record_from(self, part: str, prompt: Prompt, metadata: Mapping[str, str]) -> None:
        """Note what an earlier call recorded in the metadata of a latent's file."""
        for kept, key in ((self.request.seconds, "seconds"), (self.request.peaks, "peak_gb")):
            if key in metadata:
                kept.setdefault(prompt.name, {})[part] = float(metadata[key])


@dataclass
class Task:
    """What one process makes of a request.

    prompts  those that it makes, alone or with others
    team     all processes of the request
    writes   whether it is the one that writes, of those that make a video together
    """

    request: GenerationRequest
    prompts: list[Prompt]
    meter: Meter
    team: Team
    writes: bool


def peak_gb(device: str) -> float:
    """Peak memory in GB: of the GPU since `release_memory`, of the whole process on a CPU."""
    if device == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    import resource

    unit = 1024 if sys.platform == "linux" else 1
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def release_memory(device: str) -> None:
    """Give freed memory back before the next part loads, and measure its peak from here."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
