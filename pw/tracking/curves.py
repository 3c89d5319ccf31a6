"""Names of the files that a training writes while it runs."""

from __future__ import annotations

DIAGNOSTICS = "diagnostics.jsonl"
CURVES = {"metrics.jsonl": "train/", DIAGNOSTICS: ""}  # file of curves -> prefix of its names in a store
SAMPLES = "samples"  # folder of videos
