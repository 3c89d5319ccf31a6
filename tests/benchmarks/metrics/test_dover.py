"""DOVER: the network against the released code's answers, the views, the scales, the loading, and a video in all."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.measure.metric_weights import MissingWeights
from benchmarks.metrics import METRICS
from benchmarks.metrics.dover import (
    DoverScorer,
    draw,
    enlarge,
    fragments,
    normalise,
    resize_whole,
    scorer,
    scores,
)
from benchmarks.metrics.dover_network import (
    WINDOW,
    Dover,
    WindowAttention,
    fragment_distance,
    from_windows,
    load,
    relative_position_index,
    shift_mask,
    to_windows,
)
from benchmarks.metrics.implementation import FrameView
from pw.io.video import Frames, VideoInfo, iter_frames, probe, write_video

KEYS = Path(__file__).parents[3].parent / "shared" / "data" / "calibration" / "dover_state_dict_keys.json"
ALL = [name for name, row in METRICS.items() if row.family == "dover"]
SETTINGS = {"seeds": 1, "resize_antialias": False}
# The paper's technical and aesthetic scores (Tables 2 and 4), and what they are when calibrated.
PAPER = {
    "PixelWizard-2k": (14.31, 99.58, 83.8, 54.3),
    "PixelWizard-4k": (14.14, 99.66, 83.4, 57.0),
    "FlashVideo": (12.47, 98.11, 79.1, 35.3),
    "UltraWan-1k": (13.77, 98.73, 82.5, 40.2),
    "UltraWan-4k": (10.59, 98.88, 72.5, 41.8),
    "CineScale": (12.83, 98.21, 80.1, 36.0),
    "Anchor": (8.01, 97.91, 59.2, 34.1),
    "Anchor w/o Tuning": (3.30, 79.11, 18.9, 12.5),
}
# SHA-256 of the sorted lines "name shape dtype" of DOVER.pth.
FINGERPRINT = "7e12ae262d2d73fa0cd37d2a8f36fa834ca66f12cbbe9ba3ffde8e9f3356d2c0"
# Branch and frames -> the released code's answers, see the test.
GOLDEN = {
    ("technical", 4): (-0.223098, -0.211264, -0.269454, 0.129671),
    ("aesthetic", 4): (-2.929744, -3.411677, -2.644464, -3.578284),
    ("technical", 32): (-0.238772, -0.217712, -0.115736, -0.224996),
    ("aesthetic", 32): (-2.876682, -3.006002, -1.954234, -3.120869),
}


def noise(*shape: int, key: int) -> torch.Tensor:
    """Numbers in [-0.5, 0.5) by integer arithmetic alone, the same everywhere."""
    n = torch.arange(1, math.prod(shape) + 1) + 1_000_003 * key
    for _ in range(3):
        n = (n ^ (n >> 16)) * 73_244_475 % 2**32
    return (n.double() / 2**32 - 0.5).float().reshape(shape)


def formula_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict in which every table, scale and bias makes a difference."""
    state = network.state_dict()
    for key, (name, value) in enumerate(state.items()):
        if value.dtype == torch.float32:
            unit = noise(*value.shape, key=key)
            if "table" in name:
                state[name] = 4 * unit
            elif value.ndim > 1:
                state[name] = 5 * unit / value[0].numel() ** 0.5
            else:
                state[name] = unit + (0 if name.endswith("bias") else 1)
    return state


def small(width: int = 4, heads: tuple[int, ...] = (1, 1, 1, 1)) -> Dover:
    network = Dover(width, heads)
    network.load_state_dict(formula_weights(network))
    return network.eval().requires_grad_(False)


def clip_of_noise(frames: int, height: int, width: int) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_names_shapes_and_dtypes_are_those_of_the_released_weights():
    network = Dover()
    result = {name: [list(value.shape), str(value.dtype)[6:]] for name, value in network.state_dict().items()}
    lines = sorted(f"{name} {shape} {dtype}" for name, (shape, dtype) in result.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == FINGERPRINT
    assert len(result) == 381
    assert sum(value.numel() for value in network.parameters()) == 56_218_302
    if KEYS.is_file():
        assert result == json.loads(KEYS.read_text())["dover.yml"]


def test_windows_are_cut_in_order_and_put_together_again():
    x = torch.arange(2 * 4 * 6 * 6 * 1).reshape(2, 4, 6, 6, 1)
    windows = to_windows(x, (2, 3, 3))
    assert windows.shape == (2 * 8, 18, 1)
    assert torch.equal(windows[1, :, 0], x[0, :2, :3, 3:, 0].flatten())
    assert torch.equal(from_windows(windows, (2, 3, 3), (4, 6, 6)), x)


def test_fragments_are_counted_along_height_plus_width():
    """56 tokens are 7 fragments of 8, so a window of 7 begins in one and may end in the next."""
    mask = fragment_distance((8, 56, 56), WINDOW, (0, 0, 0)).reshape(64, 8, 7, 7, 8, 7, 7)
    assert not mask[0].any()
    # the second window of the first row: columns 7 to 13, of which only 7 is in fragment 0
    assert mask[1, 0, 0, 0, 7, 6, :].tolist() == [0, 1, 1, 1, 1, 1, 1]
    # the second of the second row: the corner is one fragment away from the rest in both directions
    assert mask[9, 0, 0, 0, 0, :2, :2].tolist() == [[0, 1], [1, 2]]
    # 14 tokens are fragments of 2: the window's last is 3 away in both directions
    assert fragment_distance((8, 14, 14), WINDOW, (0, 0, 0))[0, 0, -1] == 6


def test_the_gate_chooses_between_the_tables_and_extrapolates_beyond_neighbours():
    attention = WindowAttention(4, 2, gated=True)
    rows = attention.relative_position_bias_table.shape[0]
    relative, within = noise(rows, 2, key=1), noise(rows, 2, key=2)
    attention.load_state_dict(
        {
            **attention.state_dict(),
            "relative_position_bias_table": relative,
            "fragment_position_bias_table": within,
        }
    )
    distance = torch.tensor([[[0, 1], [2, 0]]], dtype=torch.int8)
    index = relative_position_index(WINDOW)
    bias = attention.bias(distance)[0].detach()
    assert bias[:, 0, 0].tolist() == pytest.approx(within[index[0, 0]].tolist())
    assert bias[:, 0, 1].tolist() == pytest.approx(relative[index[0, 1]].tolist())
    expected = 2 * relative[index[1, 0]] - within[index[1, 0]]
    assert bias[:, 1, 0].tolist() == pytest.approx(expected.tolist())


def test_a_bias_belongs_to_an_offset_in_time_height_and_width():
    index = relative_position_index(WINDOW).reshape(*WINDOW, *WINDOW)
    assert index[0, 0, 0, 7, 6, 6] == 0
    assert index[7, 6, 6, 0, 0, 0] == 15 * 13 * 13 - 1
    assert index[3, 2, 1, 2, 0, 4] == index[5, 6, 2, 4, 4, 5] == ((1 + 7) * 13 + 2 + 6) * 13 - 3 + 6


def test_tokens_that_the_shift_brought_round_an_edge_do_not_see_the_others():
    """4 tokens in windows of 2, shifted by 1 along the width alone: the last window holds 3 and 0."""
    mask = shift_mask((1, 1, 4), (1, 1, 2), (0, 0, 1))
    assert mask.tolist() == [[[False, False], [False, False]], [[False, True], [True, False]]]


@pytest.mark.parametrize("frames", [4, pytest.param(32, marks=pytest.mark.slow)])
def test_scores_are_those_of_the_released_code(frames: int):
    """Golden values: VQAssessment/DOVER at f1ddc96 with the same weights and input, torch 2.13, CPU.

    Their SwinTransformer3D(embed_dim=8, num_heads=[1, 2, 4, 8]) and ConvNeXt3D(dims=[8, 16, 32, 64]) with
    VQAHead(64, 64); per branch the mean, and the scores of three positions: the first, one amid, the last.
    """
    network = small(8, (1, 2, 4, 8))
    video = 4 * noise(1, 3, frames, 224, 224, key=999)
    with torch.inference_mode():
        for branch in ("technical", "aesthetic"):
            trunk, head = (getattr(network, f"{branch}_{part}") for part in ("backbone", "head"))
            positions = head(trunk(video))[0, 0]
            result = [positions.mean(), positions[0, 0, 0], positions[frames // 4, 2, 4], positions[-1, -1, -1]]
            assert torch.stack(result).tolist() == pytest.approx(GOLDEN[branch, frames], rel=1e-4, abs=2e-5)
            if frames == 4:
                assert getattr(network, branch)(video).tolist() == pytest.approx([positions.mean().item()])


def test_the_views_of_121_frames_are_those_of_the_released_code():
    views = draw(0, 121, 720, 1280)
    assert [list(clip.frames) for clip in views.technical] == [
        list(range(0, 64, 2)),
        list(range(40, 104, 2)),
        [*range(80, 121, 2), *range(1, 22, 2)],
    ]
    assert list(views.aesthetic) == list(range(0, 96, 3))


def test_short_videos_go_on_from_the_start():
    assert list(draw(0, 49, 720, 1280).technical[2].frames) == [*range(32, 49, 2), *range(1, 46, 2)]
    assert list(draw(0, 81, 720, 1280).technical[1].frames) == [*range(27, 81, 2), *range(0, 10, 2)]
    assert list(draw(0, 81, 720, 1280).aesthetic) == list(range(0, 64, 2))
    assert list(draw(0, 5, 720, 1280).technical[1].frames[:6]) == [1, 3, 0, 2, 4, 1]
    assert set(draw(0, 31, 720, 1280).aesthetic) == {0}
    assert {frame for clip in draw(0, 1, 720, 1280).technical for frame in clip.frames} == {0}


def test_long_videos_leave_the_frames_to_the_seed_too():
    """Golden values: UnifiedFrameSampler of VQAssessment/DOVER at f1ddc96 after numpy.random.seed(3)."""
    views = draw(3, 300, 720, 1280)
    assert [clip.frames[0] for clip in views.technical] == [24, 103, 208]
    assert list(views.aesthetic[:8]) == [0, 14, 23, 30, 38, 48, 55, 64]
    assert draw(3, 127, 720, 1280).aesthetic == draw(4, 127, 720, 1280).aesthetic


def test_fragments_are_where_the_released_code_has_them_after_the_same_seed():
    """Golden values: get_spatial_fragments of VQAssessment/DOVER at f1ddc96 after torch.manual_seed(3)."""
    clips = draw(3, 40, 720, 1280).technical
    assert clips[1].tops[0] == (38, 0, 25, 34, 69, 55, 54)
    assert clips[2].lefts[6] == (135, 182, 444, 672, 738, 1051, 1144)
    assert draw(3, 40, 720, 1280) == draw(3, 40, 720, 1280) != draw(4, 40, 720, 1280)
    assert all(6 * 102 <= top < 7 * 102 - 32 for top in clips[0].tops[6])


def test_a_mosaic_holds_each_fragment_in_its_cell():
    image = clip_of_noise(1, 720, 1280)[0]
    clip = draw(0, 40, 720, 1280).technical[0]
    mosaic = fragments(image, clip)
    top, left = clip.tops[5][2], clip.lefts[5][2]
    assert 102 * 5 <= top < 102 * 6 - 32
    assert 182 * 2 <= left < 182 * 3 - 32
    assert np.array_equal(mosaic[160:192, 64:96], image[top : top + 32, left : left + 32])


def test_small_frames_are_enlarged_but_cut_by_their_own_size():
    """As released: of 112x168, twice enlarged, only the upper left quarter and 32 px more can be seen."""
    image = clip_of_noise(1, 112, 168)[0]
    assert enlarge(image).shape == (224, 336, 3)
    clip = draw(0, 40, 112, 168).technical[0]
    assert [row[0] for row in clip.tops] == [0, 16, 32, 48, 64, 80, 80]
    assert clip.lefts[0] == (0, 24, 48, 72, 96, 120, 136)
    large = clip_of_noise(1, 224, 336)[0]
    assert np.array_equal(enlarge(large), large)


def test_without_antialias_a_small_frame_is_two_pixels_of_each_side():
    stripes = np.zeros((2240, 224, 3), np.uint8)
    stripes[1::2] = 200
    assert (resize_whole(stripes, antialias=False) == 100).all()
    stripes[4::10] = stripes[5::10] = 50
    assert (resize_whole(stripes, antialias=False) == 50).all()
    assert (resize_whole(stripes, antialias=True)[4:-4] > 80).all()


def test_colours_are_normalised_by_imagenets():
    frame = np.full((224, 224, 3), (124, 116, 104), np.uint8)
    video = normalise([frame, frame])
    assert video.shape == (1, 3, 2, 224, 224)
    expected = [(124 - 123.675) / 58.395, (116 - 116.28) / 57.12, (104 - 103.53) / 57.375]
    assert video[0, :, 1, 7, 9].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("system", PAPER)
def test_the_papers_scores_are_these_when_calibrated(system: str):
    technical, aesthetic, *calibrated = PAPER[system]
    logit = {"technical": math.log(technical / (100 - technical)), "aesthetic": math.log(aesthetic / (100 - aesthetic))}
    raw = {
        "technical": 0.1107 + 0.07355 * logit["technical"],
        "aesthetic": -0.08285 + 0.03774 * logit["aesthetic"],
    }
    if system == "PixelWizard-2k":
        assert raw == pytest.approx({"technical": -0.0209, "aesthetic": 0.1235}, abs=1e-4)
    result = scores(raw)
    assert result["dover_technical"] == pytest.approx(technical)
    assert result["dover_aesthetic"] == pytest.approx(aesthetic)
    fused = 0.6104 * logit["technical"] + 0.3896 * logit["aesthetic"]
    assert result["dover_overall"] == pytest.approx(100 / (1 + math.exp(-fused)))
    assert [result["dover_technical_calibrated"], result["dover_aesthetic_calibrated"]] == pytest.approx(
        calibrated, abs=0.06
    )


def test_scores_have_the_registrys_names_and_the_overall_ones_need_both_branches():
    assert sorted(scores({"technical": 0.0, "aesthetic": 0.0})) == sorted(ALL)
    assert sorted(scores({"technical": -60.0})) == [
        "dover_technical",
        "dover_technical_calibrated",
        "dover_technical_raw",
    ]


class TestScorer:
    """A whole video, by a network of a few thousand weights."""

    @pytest.mark.slow
    def test_gives_the_mean_of_its_views_and_counts_one_that_was_drawn_twice_twice(self, tmp_path: Path) -> None:
        write_video(tmp_path / "clip.mkv", clip_of_noise(40, 240, 320))
        info, images = probe(tmp_path / "clip.mkv"), list(iter_frames(tmp_path / "clip.mkv"))
        network = small()
        video = DoverScorer(tuple(ALL), network, 1, False).begin(info)
        frame_views = [FrameView(i, image) for i, image in enumerate(images) if video.wants(i)]
        random.Random(0).shuffle(frame_views)
        inputs = sorted((video.frame(view) for view in frame_views), key=lambda inputs: inputs.index)
        video.clips[next(iter(video.clips))] = 2
        result = video.result(inputs)
        assert list(result) == ALL

        views = draw(0, 40, 240, 320)
        with torch.inference_mode():
            technical = [
                network.technical(normalise([fragments(images[i], clip) for i in clip.frames])).item()
                for clip in views.technical
            ]
            whole = [resize_whole(images[i], antialias=False) for i in views.aesthetic]
            aesthetic = network.aesthetic(normalise(whole)).item()
        assert len(set(technical)) == 3
        assert result["dover_technical_raw"] == pytest.approx(np.average(technical, weights=[2, 1, 1]), abs=1e-5)
        assert result["dover_aesthetic_raw"] == pytest.approx(aesthetic, abs=1e-5)

    def test_looks_at_equal_draws_once_and_runs_only_the_branch_asked_for(self) -> None:
        video = DoverScorer(("dover_technical_raw",), small(), 4, False).begin(VideoInfo(1, 224, 224, 24.0, "ffv1"))
        assert list(video.clips.values()) == [12]
        assert not video.whole_frames
        inputs = video.frame(FrameView(0, clip_of_noise(1, 224, 224)[0]))
        assert inputs.whole is None
        assert set(video.result([inputs])) == {"dover_technical_raw"}

    def test_wants_the_frames_of_all_draws_and_no_others(self) -> None:
        video = DoverScorer(tuple(ALL), small(), 2, False).begin(VideoInfo(400, 480, 832, 24.0, "h264"))
        views = [draw(seed, 400, 480, 832) for seed in (0, 1)]
        indices = {i for view in views for clip in view.technical for i in clip.frames}
        indices |= {i for view in views for i in view.aesthetic}
        assert {i for i in range(400) if video.wants(i)} == indices
        assert len(indices) < 260

    def test_refuses_a_video_smaller_than_a_fragment(self) -> None:
        with pytest.raises(ValueError, match="fragments of 32 px, the video has 64x24"):
            DoverScorer(tuple(ALL), small(), 1, False).begin(VideoInfo(9, 24, 64, 24.0, "h264"))

    def test_says_that_frames_are_gone(self) -> None:
        video = DoverScorer(("dover_aesthetic",), small(), 1, False).begin(VideoInfo(121, 64, 64, 24.0, "h264"))
        with pytest.raises(ValueError, match="32 frames that DOVER needs are missing, the first is number 0"):
            video.result([])

    def test_says_what_is_wrong_with_its_settings(self) -> None:
        with pytest.raises(ValueError, match=r"seeds=0: .* 1 or more"):
            scorer(ALL, {**SETTINGS, "seeds": 0}, "cpu")
        with pytest.raises(ValueError, match="resize_antialias='yes'"):
            scorer(ALL, {**SETTINGS, "resize_antialias": "yes"}, "cpu")


def flat_weights() -> dict[str, Any]:
    """Every tensor of the released file, each stored as a single number."""
    return {name: torch.ones((), dtype=value.dtype).expand(value.shape) for name, value in Dover().state_dict().items()}


class TestLoading:
    """A user's DOVER.pth."""

    @pytest.mark.slow
    def test_takes_a_state_dict_plain_or_under_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_METRICS", str(tmp_path))
        with pytest.raises(MissingWeights, match="DOVER\\.pth is missing"):
            scorer(ALL, SETTINGS, "cpu")
        for stored in (flat_weights(), {"state_dict": flat_weights()}):
            torch.save(stored, tmp_path / "DOVER.pth")
            network = scorer(ALL, SETTINGS, "cpu").network
            assert not network.training
            assert all(value.device.type == "cpu" and (value == 1).all() for value in network.state_dict().values())
            assert not any(value.requires_grad for value in network.parameters())

    def test_lists_what_is_missing_unexpected_or_of_another_kind(self, tmp_path: Path) -> None:
        state = flat_weights()
        del state["technical_head.fc_last.bias"]
        state["vqa_head.fc_last.bias"] = torch.zeros(1)
        state["aesthetic_head.fc_hid.bias"] = torch.zeros(32)
        state["aesthetic_head.fc_last.bias"] = torch.zeros(1, dtype=torch.float16)
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="not the weights of DOVER") as error_info:
            load(tmp_path / "other.pth")
        for message in (
            "1 missing: technical_head.fc_last.bias",
            "1 unexpected: vqa_head.fc_last.bias",
            "1 another shape: aesthetic_head.fc_hid.bias [32] instead of [64]",
            "1 another dtype: aesthetic_head.fc_last.bias torch.float16 instead of torch.float32",
        ):
            assert message in str(error_info.value)

    def test_refuses_anything_else(self, tmp_path: Path) -> None:
        path = tmp_path / "DOVER.pth"
        torch.save([torch.zeros(1)], path)
        with pytest.raises(ValueError, match="holds no state dict"):
            load(path)
        torch.save({"state_dict": 1}, path)
        with pytest.raises(ValueError, match="holds no state dict"):
            load(path)
        path.write_bytes(b"<html>404</html>")
        with pytest.raises(ValueError, match="not a checkpoint that can be read"):
            load(path)
        torch.save(Path("code"), path)
        with pytest.raises(ValueError, match="not a checkpoint that can be read"):
            load(path)
