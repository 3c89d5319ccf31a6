"""pw.nn.tiny_decoder: small random weights in the published layout, against all frames at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pw.nn.codec import WanCodec
from pw.nn.options import WanVAE
from pw.nn.tiny_decoder import load_tiny

CHANNELS, WIDTHS, GROWTH = 4, (12, 8, 6, 6), (1, 2, 2)
MEMORY = {3: 12, 4: 12, 5: 12, 9: 8, 10: 8, 11: 8, 15: 6, 16: 6, 17: 6}  # index of a block -> its channels
CHOICE = WanVAE(
    factor=16, frames_factor=4, channels=CHANNELS, precision="fp32", tile=0, overlap=0, decoder="tiny", decoder_file="x"
)


def published(channels: int = CHANNELS, encoder: bool = True) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of taew2_2, narrower."""
    shapes: dict[str, tuple[int, ...]] = {"1.weight": (12, channels, 3, 3), "1.bias": (12,)}
    for index, width in MEMORY.items():
        for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
            shapes |= {f"{index}.conv.{layer}.weight": (width, inputs, 3, 3), f"{index}.conv.{layer}.bias": (width,)}
    for stage, (width, after, count) in enumerate(zip(WIDTHS, WIDTHS[1:], GROWTH, strict=False)):
        shapes[f"{7 + 6 * stage}.conv.weight"] = (width * count, width, 1, 1)
        shapes[f"{8 + 6 * stage}.weight"] = (after, width, 3, 3)
    shapes |= {"22.weight": (12, 6, 3, 3), "22.bias": (12,)}
    generator = torch.Generator().manual_seed(0)
    state = {f"decoder.{name}": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return state | ({"encoder.0.weight": torch.zeros(6, 12, 3, 3)} if encoder else {})


def all_at_once(state: dict[str, Tensor], latent: Tensor) -> Tensor:
    """[C, T, h, w] -> [T 4 - 3, 3, 16 h, 16 w] in [0, 1]: every layer on all frames, shifted by one for the memory."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, state.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    x = conv(3 * torch.tanh(latent.transpose(0, 1) / 3), "1").relu()
    for stage in range(3):
        for block in range(3 + 6 * stage, 6 + 6 * stage):
            both = torch.cat([x, torch.cat([torch.zeros_like(x[:1]), x[:-1]])], dim=1)
            hidden = conv(conv(both, f"{block}.conv.0").relu(), f"{block}.conv.2").relu()
            x = (conv(hidden, f"{block}.conv.4") + x).relu()
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = conv(x, f"{7 + 6 * stage}.conv").unflatten(1, (GROWTH[stage], -1)).flatten(0, 1)
        x = conv(x, f"{8 + 6 * stage}")
    return F.pixel_shuffle(conv(x.relu(), "22"), 2).clamp(0, 1)[3:]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(published(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return torch.randn(2, CHANNELS, 3, 4, 10, generator=torch.Generator().manual_seed(1))


class TestTheDecoder:
    def test_makes_frame_by_frame_what_all_at_once_is(self, file: Path, latent: Tensor) -> None:
        video = load_tiny(file, CHANNELS, "cpu", torch.float32).decode(latent)
        assert video.shape == (2, 3, 9, 64, 160)
        for clip, expected in zip(video, latent, strict=True):
            torch.testing.assert_close((clip.transpose(0, 1) + 1) / 2, all_at_once(published(), expected))
        assert video.std() > 0.1

    def test_takes_latents_as_the_network_makes_them(
        self, file: Path, latent: Tensor, pipeline: tuple[Path, Any]
    ) -> None:
        """The VAE's mean and deviation, here far from 0 and 1, are not applied; encoding is the VAE's."""
        vae = pipeline[1].vae
        codec = WanCodec(replace(CHOICE, decoder_file=str(file)), vae)
        assert torch.equal(codec.decode(latent), load_tiny(file, CHANNELS, "cpu", torch.float32).decode(latent))
        video = torch.rand(1, 3, 5, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
        by_vae = WanCodec(replace(CHOICE, decoder="vae", decoder_file=None), vae)
        assert torch.equal(codec.encode(video), by_vae.encode(video))
        assert not torch.equal(codec.decode(latent), by_vae.decode(latent))

    def test_has_no_seams_further_from_them_than_it_sees(self, file: Path, pipeline: tuple[Path, Any]) -> None:
        """Each stage sees 10 positions of its size, the last convolutions 2 px: 10 + 5 + 2.5 latent positions."""
        wide = torch.randn(1, CHANNELS, 2, 2, 60, generator=torch.Generator().manual_seed(2))
        whole, tiled = (
            WanCodec(replace(CHOICE, decoder_file=str(file), tile=tile, overlap=overlap), pipeline[1].vae).decode(wide)
            for tile, overlap in ((0, 0), (640, 64))
        )
        difference = (whole - tiled).abs().amax(dim=(0, 1, 2, 3))
        # tiles of 32 positions at 0 and 28: the first one's end is seen from position 32 - 18 on
        assert difference[: 14 * 16].max() < 1e-5
        assert difference[-14 * 16 :].max() < 1e-5
        assert difference.max() > 1e-3


class TestAFile:
    def test_of_a_decoder_alone_does(self, tmp_path: Path, latent: Tensor) -> None:
        save_file(published(encoder=False), tmp_path / "a.safetensors")
        assert load_tiny(tmp_path / "a.safetensors", CHANNELS, "cpu", torch.float32).decode(latent).isfinite().all()

    def test_of_another_kind_is_told_what_it_is(self, tmp_path: Path) -> None:
        wrong = {
            "its latents have 7 channels, these 4": published(channels=7),
            "it has 1 tensors of a decoder": {"decoder.0.weight": torch.zeros(512, 48, 1, 1)},  # taew2_2_super
            r"Missing key\(s\) in state_dict: .decoder\.5\.conv\.2\.bias": {
                k: v for k, v in published().items() if k != "decoder.5.conv.2.bias"
            },
            "makes other than 4 frames": published() | {"decoder.7.conv.weight": torch.zeros(24, 12, 1, 1)},
        }
        for message, state in wrong.items():
            save_file(state, tmp_path / "a.safetensors")
            with pytest.raises(ValueError, match=rf"codec\.decoder_file=.*a\.safetensors: .*{message}"):
                load_tiny(tmp_path / "a.safetensors", CHANNELS, "cpu", torch.float32)
        (tmp_path / "b.safetensors").write_bytes(b"x" * 100)
        for name in ("b.safetensors", "none.safetensors"):
            with pytest.raises(ValueError, match=r"codec\.decoder_file=.*cannot be read as \.safetensors"):
                load_tiny(tmp_path / name, CHANNELS, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "vae"}, r"codec\.decoder_file=x: is read by codec\.decoder=tiny alone"),
        ({"decoder_file": None}, r"codec\.decoder=tiny: set codec\.decoder_file to its \.safetensors"),
        ({"factor": 8}, r"codec\.decoder=tiny: makes 16 x 16 px .* this VAE 8 x 8 px"),
    ],
)
def test_an_option_that_would_not_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CHOICE, **changes)
