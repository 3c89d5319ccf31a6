"""pw.nn.text: prompts are encoded as Wan's pipeline encodes them, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pw.nn.text import TextEncoder


@pytest.fixture
def encoder(pipeline: tuple[Path, Any], tmp_path: Path) -> TextEncoder:
    return TextEncoder(pipeline[0], 64, tmp_path / "cache", "small", "cpu", torch.float32)


@pytest.mark.parametrize("prompt", ["a heron", "Ein  Reiher &amp; ein See\n im Nebel", "色调艳丽"])
def test_an_embedding_is_the_pipelines(pipeline: tuple[Path, Any], encoder: TextEncoder, prompt: str) -> None:
    with torch.no_grad():
        reference = pipeline[1]._get_t5_prompt_embeds(prompt, max_sequence_length=64)[0]
    result = encoder.encode(prompt)
    assert result.shape == (64, 16)
    torch.testing.assert_close(result, reference, rtol=1e-5, atol=2e-6)
    assert torch.equal(result[-1], torch.zeros(16))


def test_a_prompt_is_encoded_once_and_read_without_the_encoder_after(
    pipeline: tuple[Path, Any], tmp_path: Path
) -> None:
    def encoder_of(folder: Path, name: str = "small", tokens: int = 64) -> TextEncoder:
        return TextEncoder(folder, tokens, tmp_path, name, "cpu", torch.float32)

    first = encoder_of(pipeline[0]).encode("a heron")
    assert torch.equal(encoder_of(Path("/nowhere")).encode("a heron"), first)
    with pytest.raises(OSError, match="nowhere"):  # other weights, another embedding
        encoder_of(Path("/nowhere"), "others").encode("a heron")
    with pytest.raises(OSError, match="nowhere"):  # a caption that is cut elsewhere
        encoder_of(Path("/nowhere"), tokens=4).encode("a heron")


def test_only_the_true_length_is_kept_on_disk(encoder: TextEncoder) -> None:
    encoder.encode("a")
    [path] = encoder.cache.iterdir()
    assert path.stat().st_size < 64 * 16 * 4


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", "  "], r"prompt 2 of 2 is empty"),
        (["a" * 64], r"prompt 1 of 1 has 65 tokens, the encoder takes 64; shorten it: 'aaa"),
    ],
)
def test_prompts_that_cannot_be_encoded_are_told_before_the_encoder_loads(
    encoder: TextEncoder, prompts: list[str], message: str
) -> None:
    encoder.check(["a" * 63])
    with pytest.raises(ValueError, match=message):
        encoder.check(prompts)
    assert encoder._encoder is None
