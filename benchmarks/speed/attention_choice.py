"""How a network is computed fastest on this machine: every attention kernel timed, and compiled blocks."""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pw.run.build import Run

if TYPE_CHECKING:
    import torch

    from pw.nn.backbone import Backbone

FEW_TOKENS = 32_000  # enough to tell kernels apart: 4 % of a 2K evaluation
REPEATS = 3


@dataclass(frozen=True)
class Variant:
    """How a network is computed: the attention kernel, and whether its blocks are compiled."""

    kernel: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}, compiled" if self.compiled else self.kernel

    @property
    def overrides(self) -> list[str]:
        """As a run has it."""
        return [f"trainer.attention={self.kernel}", f"trainer.compile={str(self.compiled).lower()}"]


def choose_variant(run: Run, kernels: Sequence[str], compiles: str) -> tuple[Variant | None, dict[str, float | str]]:
    """The fastest variant, None if none is to be had; and what is said of each (`time_variants`).

    compiles  `BenchOptions.compile`
    """
    if len(kernels) > 1 or compiles == "true":
        variants = time_variants(run, kernels, compiles=compiles == "true")
        best = fastest(variants)
        if best is not None and compiles == "always":
            best = dataclasses.replace(best, compiled=True)
        return best, {str(variant): seconds for variant, seconds in variants.items()}
    variant = Variant(kernels[0], compiled=compiles == "always")
    if why := _not_to_be_had(run, variant.kernel):
        return None, {str(variant): why}
    return variant, {str(variant): "not timed, there is no other"}


def _not_to_be_had(run: Run, kernel: str) -> str:
    """Why an attention kernel cannot be computed here; nothing where it can."""
    from pw.nn.networks import Network, check_kernel

    try:
        check_kernel(Network(run.backbone, run.injector, kernel, False, run.seed), str(device_of(run)))
    except ValueError as error:
        return str(error)
    return ""


def time_variants(run: Run, kernels: Sequence[str], *, compiles: bool) -> dict[Variant, float | str]:
    """Seconds of one evaluation of stage II's network with each attention kernel, and compiled with the fastest.

    Or why it is not to be had. Of no more frames than make `FEW_TOKENS`.
    """
    import torch

    from pw.nn.networks import Network, compile_blocks, load_network, use_kernel

    device = device_of(run)
    forget(device)
    net = load_network(Network(run.backbone, run.injector, "sdpa", False, run.seed), "random", None, str(device))
    evaluate = _evaluation(run, net)
    found: dict[Variant, float | str] = {}

    def note(variant: Variant, outcome: float | str) -> None:
        found[variant] = outcome
        print(f"{variant}: {outcome}{' s' if isinstance(outcome, float) else ''}", file=sys.stderr, flush=True)

    for name in kernels:
        if why := _not_to_be_had(run, name):
            note(Variant(name), why)
            continue
        use_kernel(net, name)
        note(Variant(name), _seconds(evaluate, device))
    best = fastest(found)
    if compiles and best is not None:
        variant = dataclasses.replace(best, compiled=True)
        use_kernel(net, variant.kernel)
        compile_blocks(net)
        try:
            note(variant, _seconds(evaluate, device))
        except Exception as error:  # whatever a compiler that is not for this machine raises
            note(variant, f"not to be had here ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
        torch.compiler.reset()
    return found


def _evaluation(run: Run, net: Backbone) -> Callable[[], torch.Tensor]:
    """One evaluation of stage II's network, of no more frames than make `FEW_TOKENS`."""
    import torch

    from pw.cost.counts import stage_latent, tokens
    from pw.stages.velocity import Condition, velocity

    device = device_of(run)
    channels, frames, rows, columns = stage_latent(run)
    patch = run.backbone.patch_size
    few = FEW_TOKENS // tokens((channels, patch[0], rows, columns), patch) * patch[0]
    shape = (channels, min(frames, max(patch[0], few)), rows, columns)
    state = torch.randn(1, *shape, device=device)
    small = [side // run.codec.factor for side in run.scale.anchor_size]
    anchor = torch.randn(1, *shape[:2], *small, device=device)
    text = torch.randn(1, run.backbone.text_tokens, run.backbone.text_dim, device=device)
    evaluate = velocity(net, Condition(text, anchor), run.schedule)
    now = torch.full((1,), float(run.schedule.num_timesteps), dtype=torch.float64, device=device)
    return lambda: evaluate(state, now, now)


def _seconds(evaluate: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Mean seconds of `REPEATS` evaluations after one that warms up."""
    import torch

    from pw.nn.stock import synchronize

    with torch.no_grad():
        evaluate()
        synchronize(device)
        began = time.perf_counter()
        for _ in range(REPEATS):
            evaluate()
        synchronize(device)
    return round((time.perf_counter() - began) / REPEATS, 4)


def fastest(variants: Mapping[Variant, float | str]) -> Variant | None:
    """The one of least seconds; None if none is to be had."""
    timed = {variant: seconds for variant, seconds in variants.items() if isinstance(seconds, float)}
    return min(timed, key=lambda variant: timed[variant]) if timed else None


def device_of(run: Run) -> torch.device:
    import torch

    return torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu")


def forget(device: torch.device) -> None:
    """Give back what was measured before, and measure memory from here.

    A network whose hooks point back at it stays until it is collected, and would be part of the next one's peak.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
