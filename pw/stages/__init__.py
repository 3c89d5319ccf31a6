"""The two stages as LightningModules: `AnchorModel` fixes structure, `HiresSynth` paints detail under it.

Begin with `stage`: network, EMA, one update, sampling. `velocity` evaluates the network with guidance. Both, and
Lightning and torch, are imported with the first stage.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.paths import import_without_gc

if TYPE_CHECKING:
    from pw.nn.networks import Network
    from pw.run.build import Run


def import_stages() -> None:
    """Import Lightning and both stages, once (`import_without_gc`)."""
    if "pw.stages.stage" not in sys.modules:
        import_without_gc("pw.stages.stage")


def stage_module(run: Run, start: str | None = None, weights: Path | None = None) -> Any:
    """The LightningModule of the run's stage, see `Stage`."""
    import_stages()
    from pw.stages.stage import AnchorModel, HiresSynth

    return (AnchorModel if run.stage == "anchor" else HiresSynth)(run, start, weights)


def network_of(run: Run) -> Network:
    """What `pw.nn.networks` needs to know of a run to load its network."""
    from pw.nn.networks import Network

    trainer = run.trainer
    return Network(
        run.backbone,
        run.injector,
        trainer.attention,
        bool(trainer.compile),
        run.seed,
        sparsity=run.attention,
        offload=trainer.offload,
        storage=trainer.storage,
    )
