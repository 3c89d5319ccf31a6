"""The networks of set metrics, small and with random weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from benchmarks.metrics.set_features import first_frame, load

SMALL = {
    **{"image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2, "hidden_size": 8},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
}


class SmallI3D(nn.Module):
    """Answers as FVD's I3D: the mean colour, if it is called as FVD calls it."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> Tensor:
        if rescale or resize or not return_features or x.shape[3] != 224 or x.shape[4] != 224:
            return torch.full((1, 3), 9.0)
        return x.mean((2, 3, 4))


class Other(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def script(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(path)
    return path


def clip(frames: int = 16, size: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, size, size + 4, 3), dtype=np.uint8)


def test_i3d_takes_pixels_from_minus_one_to_one_at_224(tmp_path: Path):
    network = load("i3d", script(SmallI3D(), tmp_path / "i3d.pt"), None, "cpu")
    assert (network.frames, network.size) == (16, 224)
    colours = np.tile(np.array([0, 255, 51], np.uint8), (16, 30, 40, 1))
    assert network.features(colours, antialias=True) == pytest.approx([-1, 1, 2 * 0.2 - 1], abs=1e-6)


def test_antialiasing_averages_what_does_not_fit(tmp_path: Path):
    """Stripes of one white column in eight, made eight times smaller: 1/8 everywhere, and without it none is seen."""
    network = load("i3d", script(SmallI3D(), tmp_path / "i3d.pt"), 2, "cpu")
    stripes = np.zeros((2, 8, 8 * 224, 3), np.uint8)
    stripes[:, :, ::8] = 255
    assert network.features(stripes, antialias=True) == pytest.approx([2 / 8 - 1] * 3, abs=5e-3)
    assert network.features(stripes, antialias=False) == pytest.approx([-1] * 3)


@pytest.mark.parametrize("kind", [VideoMAEModel, VideoMAEForVideoClassification])
def test_a_folder_of_transformers_gives_the_mean_token_of_normalised_pixels(tmp_path: Path, kind: type):
    torch.manual_seed(0)
    model = kind(VideoMAEConfig(**SMALL)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    network = load("videomae", tmp_path, None, "cpu")
    frames = clip(4, 16)[:, :, :16]  # of the network's size: nothing is resized
    pixels = (torch.from_numpy(frames) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        output = getattr(model, "videomae", model)(pixels.permute(0, 3, 1, 2)[None])
        expected = output.last_hidden_state.mean(1)
        expected = model.fc_norm(expected) if kind is VideoMAEForVideoClassification else expected
    assert network.features(frames, antialias=True) == pytest.approx(expected[0].numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="frames=16: this VideoMAE takes 4"):
        load("videomae", tmp_path, 16, "cpu")


def small_vit(width: int = 32, depth: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A state of VideoMAE v2's authors' network, with 16 heads and patches of 2 x 56 x 56."""
    shapes = {"patch_embed.proj.weight": (width, 3, 2, 56, 56), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        of_block = {
            **{f"norm{k}.{part}": (width,) for k in (1, 2) for part in ("weight", "bias")},
            **{"attn.q_bias": (width,), "attn.v_bias": (width,), "attn.qkv.weight": (3 * width, width)},
            **{"attn.proj.weight": (width, width), "attn.proj.bias": (width,), "mlp.fc1.weight": (48, width)},
            **{"mlp.fc1.bias": (48,), "mlp.fc2.weight": (width, 48), "mlp.fc2.bias": (width,)},
        }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in of_block.items()}
    shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,), "head.weight": (5, width), "head.bias": (5,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def forward(state: dict[str, Tensor], pixels: Tensor, heads: int = 16) -> Tensor:
    """The authors' network written out: [1, 3, F, H, W] in [0, 1] -> [1, D]."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    weight = state["patch_embed.proj.weight"]
    x = functional.conv3d(pixels, weight, state["patch_embed.proj.bias"], stride=weight.shape[2:]).flatten(2).mT
    tokens, width = x.shape[1:]
    angles = torch.arange(tokens)[:, None] / 10000 ** (2 * (torch.arange(width) // 2) / width)
    x = x + torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())
    for i in range(sum(name.endswith("qkv.weight") for name in state)):
        block = f"blocks.{i}"
        q_bias, v_bias = state[f"{block}.attn.q_bias"], state[f"{block}.attn.v_bias"]
        bias = torch.cat([q_bias, torch.zeros(width), v_bias])
        qkv = norm(x, f"{block}.norm1") @ state[f"{block}.attn.qkv.weight"].T + bias
        q, k, v = qkv.view(1, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attended = (q @ k.mT / math.sqrt(width // heads)).softmax(-1) @ v
        x = x + linear(attended.transpose(1, 2).reshape(1, tokens, width), f"{block}.attn.proj")
        x = x + linear(functional.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x.mean(1), "fc_norm")


def test_the_published_videomae_is_the_authors_network(tmp_path: Path):
    state = small_vit()
    torch.save({"module": state}, tmp_path / "vit.pth")
    network = load("videomae", tmp_path / "vit.pth", None, "cpu")
    frames = clip(16, 100)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    pixels = functional.interpolate(pixels, (224, 224), mode="bilinear").transpose(0, 1)[None]
    expected = forward(state, pixels)[0].numpy()
    assert np.ptp(expected) > 0.1
    assert network.features(frames, antialias=False) == pytest.approx(expected, abs=2e-5)


def test_the_middle_of_a_video_is_taken():
    assert [first_frame(n, 16) for n in (16, 17, 121)] == [0, 0, 52]
    with pytest.raises(ValueError, match="has 15 frames, 16 are needed"):
        first_frame(15, 16)


def test_other_files_are_refused_by_name(tmp_path: Path):
    text = tmp_path / "notes.pt"
    text.write_text("not a network")
    with pytest.raises(ValueError, match=r"notes\.pt is no TorchScript file"):
        load("i3d", text, None, "cpu")
    with pytest.raises(ValueError, match=r"notes\.pt is no fine-tuned VideoMAE v2"):
        load("videomae", text, None, "cpu")
    other = load("i3d", script(Other(), tmp_path / "other.pt"), None, "cpu")
    with pytest.raises(ValueError, match=r"other\.pt is a TorchScript file, but not the I3D of FVD"):
        other.features(clip(), antialias=True)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type is 'bert', not 'videomae'"):
        load("videomae", tmp_path, None, "cpu")
    state = small_vit()
    torch.save({**state, "blocks.0.gamma_1": torch.ones(32)}, tmp_path / "scaled.pth")
    with pytest.raises(
        ValueError, match=r"scaled\.pth is no fine-tuned VideoMAE v2 \(KeyError: 'blocks\.0\.gamma_1'\)"
    ):
        load("videomae", tmp_path / "scaled.pth", None, "cpu")
