"""Runs of seconds: two 16-px frames, two blocks of width 32."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pw.run.build import Run, build

MICRO = (
    "scale.frames=2",
    "backbone.num_attention_heads=2",  # which two processes can share
    "scale.height=16",
    "scale.width=16",
    "scale.anchor_height=8",
    "scale.anchor_width=8",
    "backbone.num_layers=2",
    "backbone.attention_head_dim=16",
    "backbone.ffn_dim=32",
    "backbone.text_dim=8",
    "train.updates=12",
    "train.batch_size=2",
    "train.checkpoint_every=4",
    "optimizer.warmup=2",
    "sampling.num_steps=2",
    "sampling.count=4",
    "sampling.batch_size=2",
    "sampling.solution_steps=4",
)


@pytest.fixture(scope="session")
def micro() -> Callable[..., Run]:
    """`micro("objective=flow")` is a run of seconds with these overrides, from random weights unless told otherwise."""

    def make(*overrides: str) -> Run:
        start = () if any(o.startswith("start=") for o in overrides) else ("start=none",)
        return build([*MICRO, *start, *overrides])

    return make
