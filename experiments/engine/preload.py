"""The modules that workers need, imported once in the server that forks them."""

from pw.io.paths import import_without_gc

import_without_gc(
    "torch",
    "lightning.pytorch",
    "diffusers.models.transformers.transformer_wan",
    "pw.stages.stage",
    "pw.data.procedural",
    "pw.sample.evaluate",
    "pw.io.video",
    "av",
    "benchmarks.measure.clips",
    "benchmarks.metrics.reference",
)
