"""benchmarks.systems.external: PixelWizard as a system, on the small random pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.systems import CARDS
from benchmarks.systems.jobs import costs
from benchmarks.systems.system_command import main
from pw.io.video import probe


@pytest.mark.slow
def test_pw_generate_makes_the_videos_and_tells_their_costs(pipeline: tuple[Path, Any], tmp_path: Path) -> None:
    text = (CARDS / "pixelwizard_2k.yaml").read_text()
    for old, new in (
        ("width: 2560, height: 1440, frames: 121", "width: 96, height: 64, frames: 5"),
        ("steps: 4", "steps: 2"),
        ('scale: "2k"', 'scale: "tiny"'),
        ("name: pixelwizard_2k", "name: small"),
    ):
        assert old in text
        text = text.replace(old, new)
    card, prompts, out = tmp_path / "small.yaml", tmp_path / "prompts.txt", tmp_path / "out"
    card.write_text(text)
    prompts.write_text("a heron\n")
    size = ["scale.anchor_height=32", "scale.anchor_width=64", "scale.anchor_upsample=latent", "trainer=cpu"]
    words = [
        *(f"name={card}", f"prompts={prompts}", f"out={out}", f"weights={pipeline[0]}", "seeds=2", "hires=random"),
        *("scale.height=64", "scale.width=96", "anchor.sampling.num_steps=2", *size),
    ]
    assert main(words) == 0
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["a heron-0.mkv", "a heron-1.mkv"]
    info = probe(out / "videos" / "a heron-1.mkv")
    assert (info.width, info.height, info.frames, info.fps, info.codec) == (96, 64, 5, 24.0, "ffv1")
    note = json.loads((out / "jobs" / "a heron-1.json").read_text())
    assert note["seconds_diffusion"] == note["seconds"]["anchor"] + note["seconds"]["hires"]
    assert note["seconds_diffusion"] < note["seconds_total"]
    assert note["peak_memory_bytes"] > 0
    assert note["manifest"]["seed"] == note["seed"] == 1
    assert note["command"][1:4] == ["-m", "pw", "generate"]
    result = costs(out)
    assert (result.n, result.devices) == (2, ("CPU",))
    stages = [note["manifest"][stage]["parameters"] for stage in ("anchor", "hires")]
    assert result.parameters == sum(stages)  # Table 8.2 counts both
    assert 0 < stages[0] < stages[1]  # stage II has an injector and a stride embedding
    assert result.peak_memory_from == ("process",)
    assert main(words) == 0  # nothing is left to be made, so nothing starts
