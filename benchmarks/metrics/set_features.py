"""Features of a clip for distances between sets: I3D as FVD takes it, or VideoMAE.

The clip is the middle of the video: consecutive frames at the video's own rate, each resized to the network's square,
which changes the aspect, by bilinear interpolation. `antialias` filters what the small picture cannot hold; the
published implementations do not, which matters little from 256 px and much from 2K. RGB in [0, 1].

    i3d        400 logits of Kinetics-400 (Carreira and Zisserman 2017) from 16 frames of 224 px in [-1, 1], by the
               TorchScript port of StyleGAN-V's authors
    videomae   the mean over tokens of VideoMAE, normalised where it was fine-tuned. The published file, ViT-g of
               VideoMAE v2 fine-tuned on Something-Something v2, has 1408 features of 16 frames of 224 px in [0, 1]:
               those of the content-debiased FVD (Ge et al. 2024). A folder of transformers brings sizes, mean and
               deviation with it.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from pw.io.video import Frames

SIZE, FRAMES = 224, 16
HEADS = 16  # of ViT-g, which its file does not say


@dataclass(frozen=True)
class FeatureNetwork:
    """A loaded network. compute: [1, 3, frames, size, size] in [0, 1] -> features [1, D]."""

    compute: Callable[[Tensor], Tensor]
    frames: int
    size: int
    device: str

    def features(self, clip: Iterable[Frames], antialias: bool) -> np.ndarray:
        """float32 [D] of a clip's uint8 [H, W, 3]. Raises ValueError for what is not finite, or not one row."""
        pictures = [_resized(image, self.size, self.device, antialias) for image in clip]
        with torch.inference_mode():
            row = self.compute(torch.stack(pictures, dim=1)[None])
        if not isinstance(row, Tensor) or row.ndim != 2 or len(row) != 1:
            shape = list(row.shape) if isinstance(row, Tensor) else type(row).__name__
            raise ValueError(f"the network gives {shape} for a clip, not a row of features [1, D]")
        if not torch.isfinite(row).all():
            raise ValueError("its features are not finite")
        return row[0].float().cpu().numpy()


def first_frame(frames: int, of_clip: int) -> int:
    """The first frame of the middle. Raises ValueError for a video that is too short."""
    if frames < of_clip:
        raise ValueError(f"has {frames} frames, {of_clip} are needed")
    return (frames - of_clip) // 2


def _resized(image: Frames, size: int, device: str, antialias: bool) -> Tensor:
    picture = torch.from_numpy(image).to(device).movedim(-1, 0)[None].float() / 255
    return interpolate(picture, (size, size), mode="bilinear", align_corners=False, antialias=antialias)[0]


def load(features: str, path: Path, frames: int | None, device: str) -> FeatureNetwork:
    """The network of a file or folder of weights; on CUDA without TF32.

    frames: of a clip, None for the network's own. Raises: ValueError if it is not what `features` needs.
    """
    if device != "cpu":
        torch.backends.cudnn.allow_tf32 = False
    if features == "i3d":
        return FeatureNetwork(_i3d(path, device), frames or FRAMES, SIZE, device)
    network, mean, deviation = _folder(path) if path.is_dir() else _published(path)
    config, needed = network.config, network.config.num_frames
    if frames not in (None, needed):
        raise ValueError(f"frames={frames}: this VideoMAE takes {needed}")
    norm = getattr(network, "fc_norm", None)
    backbone = getattr(network, "videomae", network).to(device).eval()
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1, 1) for values in (mean, deviation))

    def compute(clip: Tensor) -> Tensor:
        tokens = backbone(((clip - shift) / scale).transpose(1, 2)).last_hidden_state.mean(1)
        return tokens if norm is None else norm.to(device)(tokens)

    return FeatureNetwork(compute, needed, config.image_size, device)


def _i3d(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript
            network = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is no TorchScript file ({_first_line(error)}); FVD's is i3d_torchscript.pt"
        ) from error

    def compute(clip: Tensor) -> Tensor:
        try:
            return network(2 * clip - 1, rescale=False, resize=False, return_features=True)
        except RuntimeError as error:
            if "return_features" in str(error) or "expected at most" in str(error):
                raise ValueError(
                    f"{path} is a TorchScript file, but not the I3D of FVD ({_first_line(error)})"
                ) from error
            raise

    return compute


def _folder(path: Path) -> tuple[Any, list[float], list[float]]:
    """(network, mean, deviation of pixels) of a folder of transformers."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

    try:
        values = json.loads((path / "config.json").read_text())
        if values.get("model_type") != "videomae":
            raise ValueError(f"model_type is {values.get('model_type')!r}, not 'videomae'")
        is_tuned = "VideoMAEForVideoClassification" in (values.get("architectures") or ())
        kind: Any = VideoMAEForVideoClassification if is_tuned else VideoMAEModel
        config = VideoMAEConfig.from_pretrained(path, local_files_only=True)
        network, loading = kind.from_pretrained(path, config=config, local_files_only=True, output_loading_info=True)
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(f"its weights lack {missing[0]}")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} is no folder of transformers' VideoMAE ({_first_line(error)})") from error
    preprocessor = path / "preprocessor_config.json"
    pixels = json.loads(preprocessor.read_text()) if preprocessor.is_file() else {}
    # transformers' own defaults for VideoMAE: those of ImageNet
    return network, pixels.get("image_mean", [0.485, 0.456, 0.406]), pixels.get("image_std", [0.229, 0.224, 0.225])


def _published(path: Path) -> tuple[Any, list[float], list[float]]:
    """(network, mean, deviation of pixels) of a file of VideoMAE v2's authors, in transformers' network."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("module", state.get("model", state))
        projection, hidden = state["patch_embed.proj.weight"], state["blocks.0.mlp.fc1.weight"]
        numbers = [int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))]
        config = VideoMAEConfig(
            image_size=SIZE,
            patch_size=projection.shape[-1],
            num_frames=FRAMES,
            tubelet_size=projection.shape[2],
            hidden_size=projection.shape[0],
            num_hidden_layers=1 + max(numbers),
            num_attention_heads=HEADS,
            intermediate_size=hidden.shape[0],
            layer_norm_eps=1e-6,
            id2label={i: str(i) for i in range(len(state["head.weight"]))},
        )
        network: Any = VideoMAEForVideoClassification(config)
        network.load_state_dict({name: value.float() for name, value in _renamed(state).items()})
        network.fc_norm.eps = 1e-6
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no fine-tuned VideoMAE v2 ({_first_line(error)})") from error
    return network, [0.0] * 3, [1.0] * 3


# VideoMAE v2's name -> transformers', in a block and outside
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_OUTSIDE = {
    "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "fc_norm": "fc_norm",
    "head": "classifier",
}


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VideoMAE v2's state in transformers' names; queries, keys and values are one matrix there."""
    result = {}
    for key, value in state.items():
        block = re.match(r"blocks\.(\d+)\.(.+)", key)
        if block and block[2] == "attn.qkv.weight":
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[f"videomae.encoder.layer.{block[1]}.attention.attention.{name}.weight"] = part
            continue
        prefix, names, rest = (
            (f"videomae.encoder.layer.{block[1]}.", _IN_BLOCK, block[2]) if block else ("", _OUTSIDE, key)
        )
        old = next((name for name in names if rest == name or rest.startswith(f"{name}.")), None)
        if old is None:
            raise KeyError(key)
        result[f"{prefix}{names[old]}{rest.removeprefix(old)}"] = value
    return result


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else 'no reason'}"
