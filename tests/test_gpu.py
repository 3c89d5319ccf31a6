"""The code for GPUs on a simulated GPU: devices and dtypes agree, and peak memory is as planned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_without_data import Gpu, gpu_without_data
from small_proxy import SMALL, picture, write_videos
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchmetrics.functional.image.lpips import _NoTrainLpips

from benchmarks.metrics.dover import DoverScorer
from benchmarks.metrics.dover_network import Dover
from benchmarks.metrics.implementation import FrameView
from benchmarks.metrics.lpips import Lpips, LpipsScorer, MhdLpips
from benchmarks.metrics.mhd import Mhd, Scales
from benchmarks.speed.generation import main, measure_ours
from pw.cost.codec_cost import codec_bytes
from pw.cost.counts import stage_latent
from pw.cost.generation_cost import denoising, generation_cost, stages_of
from pw.data import LatentBatch
from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, make_request
from pw.io.arguments import ConfigError, parse
from pw.io.video import VideoInfo
from pw.nn.backbone import Backbone, groups_of, share_tokens
from pw.nn.codec import WanCodec
from pw.nn.networks import use_kernel
from pw.prepare.encode import encode
from pw.prepare.encoding import LatentsOptions, find_weights, plan_encoding
from pw.run.build import Run, build
from pw.sample.evaluate import synthesise
from pw.stages import stage_module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with gpu_without_data(monkeypatch) as gpu_device:
        yield gpu_device


def test_a_matrix_product_of_two_dtypes_or_devices_is_an_error_there(gpu: Gpu) -> None:
    linear = torch.nn.Linear(8, 8).to("cuda")
    assert linear(torch.zeros(2, 8, device="cuda")).shape == (2, 8)
    for tensor in (torch.zeros(2, 8), torch.zeros(2, 8, device="cuda", dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError):
            linear(tensor)


def test_bytes_are_counted_while_they_are_alive(gpu: Gpu) -> None:
    one = torch.zeros(1000, device="cuda")
    two = one + 1
    del one
    three = two.to("cpu")
    assert (gpu.now, gpu.peak) == (4000, 8000)
    assert torch.equal(three, torch.zeros(1000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "word"),
    [
        *((scale, f"trainer.guidance_batch={batch}") for scale in ("2k", "4k") for batch in ("false", "true")),
        *((scale, "trainer.storage=fp8") for scale in ("proxy", "2k")),
        *((scale, "trainer.offload=group") for scale in ("proxy", "2k")),
        ("2k", "trainer.offload=group trainer.storage=fp8"),
    ],
)
def test_stage_two_peaks_where_the_plan_says(gpu: Gpu, scale: str, word: str) -> None:
    """Two blocks at full size are enough, and four of which two are there: each of the thirty frees its memory."""
    layers = 4 if "offload" in word else 2
    words = (f"scale={scale}", "trainer=gpu", f"backbone.num_layers={layers}", "injector.blocks=[1]")
    run = build([*words, *word.split()])
    result = measure_ours(run)
    planned = denoising(run, "bf16").bytes
    assert result["peak_gb"] * 1e9 == pytest.approx(planned, rel=0.01)
    assert result["tokens"] == {"proxy": 4_732, "2k": 111_600, "4k": 249_240}[scale]


def test_at_4k_it_is_planned_below_45_gb() -> None:
    hires, anchor = stages_of(build(["scale=4k", "trainer=gpu"]))
    assert generation_cost(hires, anchor).worst.bytes < 45e9


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "side"), [("encode", 768), ("decode", 768), ("decode", 1408)])
def test_a_tile_of_the_codec_peaks_where_the_plan_says(gpu: Gpu, direction: Any, side: int) -> None:
    run = build(["scale=2k", "trainer=gpu", f"codec.tile={side}"])
    choice: Any = run.codec
    frames = 9
    codec = WanCodec.random(choice, "cuda")
    gpu.reset_peak()
    if direction == "decode":
        output = codec.decode(torch.zeros(1, 48, 3, side // 16, side // 16, device="cuda"))
    else:
        output = codec.encode(torch.zeros(1, 3, frames, side, side, device="cuda"))
    assert output.device.type == "cuda"
    assert output.dtype == torch.float32
    planned = sum(part.bytes for part in codec_bytes(choice, frames, side, side, direction))
    assert gpu.peak == pytest.approx(planned, rel=0.1)


SIZE = (
    *("scale=tiny", "scale.height=64", "scale.width=96", "scale.anchor_height=32", "scale.anchor_width=64"),
    *("anchor.sampling.num_steps=2", "sampling.num_steps=2", "hires=random", "trainer=gpu", "frames=5"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("scale.anchor_upsample=pixel", "codec.tile=64", "codec.overlap=16"),
        ("trainer.guidance_batch=true",),
        ("trainer.storage=fp8",),
    ],
    ids=["latent", "pixel", "batch", "fp8"],
)
def test_a_video_is_made_from_weights_on_disk(gpu: Gpu, pipeline: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    keys = {word.partition("=")[0] for word in words}
    options = [o for o in ("scale.anchor_upsample=latent",) if o.partition("=")[0] not in keys]
    options += [*words, "prompt=a heron", f"weights={pipeline[0]}", f"out={tmp_path}"]
    [path] = generate(make_request(parse(GenerateOptions, [*SIZE, *options])))
    note = json.loads(path.with_suffix(".mp4.json").read_text())
    assert note["device"] == "a GPU without data"
    tile = 64 if "codec.tile=64" in words else 256  # auto: of those that make one piece the smallest
    assert note["decode"]["tile"] == tile
    assert set(note["peak_memory_gb"]) == {"text", "anchor", "hires", "decode"}
    assert gpu.now == 0


def test_blocks_that_are_too_large_for_cpu_memory_are_told(
    gpu: Gpu, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of the small pipeline: 8 squares of 32 x 32 and two of 32 x 48 in bf16, in powers of two 24 kB; three."""
    monkeypatch.setattr("pw.generate.stage_runs.free_memory", lambda: 50_000)
    words = [*SIZE, "prompt=a heron", f"weights={pipeline[0]}", f"out={tmp_path}", "trainer.offload=group"]
    message = r"trainer\.offload=group: 73\.7 kB of CPU memory are needed, 50\.0 kB are free; set trainer\.storage=fp8"
    with pytest.raises(ConfigError, match=message):
        make_request(parse(GenerateOptions, words))
    make_request(parse(GenerateOptions, [*words, "trainer.storage=fp8"]))


@pytest.mark.parametrize(
    ("words", "compiles"),
    [((), True), (("trainer.compile=false",), False), (("scale=2k",), None), (("frames=49",), None)],
)
def test_networks_are_compiled_where_the_prompts_gain_by_it(
    gpu: Gpu, tmp_path: Path, words: tuple[str, ...], compiles: bool | None
) -> None:
    """Two videos at 4K take 19 minutes by the plan, of which 13 % are more than two minutes; at 2K they take five."""
    (tmp_path / "p.txt").write_text("a heron\na fox\n")
    scale = () if "scale=2k" in words else ("scale=4k",)
    options = ["weights=random", *scale, "trainer=gpu", f"prompts={tmp_path / 'p.txt'}", f"out={tmp_path}", *words]
    request = make_request(parse(GenerateOptions, options))
    assert (request.hires.trainer.compile, request.anchor.trainer.compile) == (compiles, compiles)


@pytest.mark.slow
def test_clips_are_encoded_there(gpu: Gpu, pipeline: Any, tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "shards", {"train": [picture(0), picture(1)], "val": [picture(2)]})
    words = [f"urls={videos}", f"out={tmp_path / 'latents'}", "anchors=2", *SMALL, "trainer=gpu"]
    encoding = plan_encoding(parse(LatentsOptions, [*words, f"trainer.weights={pipeline[0]}"]))
    find_weights(encoding)
    report = encode(encoding)
    assert (report.encoded, report.skipped) == (3, [])
    assert gpu.operations["aten.convolution.default"] > 0
    assert gpu.now == 0


@pytest.mark.slow
def test_the_bench_runs_through(gpu: Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    words = (
        "scales=2k,4k",
        "trainer=gpu",
        "backbone.num_layers=1",
        "injector.blocks=[0]",
        "kernels=sdpa",
        "stock_steps=1",
        "compile=false",
    )
    assert main([*words, f"out={out}"]) == 0
    report = json.loads(out.read_text())
    assert report["device"] == "a GPU without data"
    assert [row["scale"] for row in report["measured"]] == ["2k", "4k"]
    assert all(row["stock"]["peak_gb"] > row["peak_gb"] for row in report["measured"])


@pytest.mark.slow
def test_what_the_bench_has_measured_is_kept_where_stock_or_the_next_scale_does_not_fit(
    gpu: Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    words = ("trainer=gpu", "backbone.num_layers=1", "injector.blocks=[0]", "kernels=sdpa", "stock_steps=1")
    gpu.memory = 20 * 10**9
    assert main(["scales=2k,4k", *words, "compile=false", f"out={out}"]) == 1
    row_2k, row_4k = json.loads(out.read_text())["measured"]
    assert row_2k["peak_gb"] < 20
    assert "out of memory" in row_2k["stock"]["failed"]
    assert row_2k["speed_up"] is None
    assert (row_4k["scale"], "out of memory" in row_4k["failed"]) == ("4k", True)


MICRO = (
    *("trainer=gpu", "start=none", "scale.frames=5", "scale.height=32", "scale.width=32", "scale.anchor_height=16"),
    *("scale.anchor_width=16", "backbone.num_layers=2", "backbone.attention_head_dim=16", "backbone.ffn_dim=32"),
    *("backbone.text_dim=8", "sampling.num_steps=2", "train.batch_size=2", "train.precision=bf16"),
)
REAL = ("scale=2k", "scale.norm_groups=4")


def latents(run: Run) -> LatentBatch:
    channels, frames, *_ = shape = stage_latent(run)
    anchor = (channels, frames, *(side // run.codec.factor for side in run.scale.anchor_size))
    text = (run.backbone.text_tokens, run.backbone.text_dim)
    return LatentBatch(torch.zeros(2, *shape), torch.zeros(2, *anchor), torch.zeros(2, *text), torch.zeros(text))


@pytest.mark.parametrize("update", [0, 1])
@pytest.mark.parametrize(
    "words",
    [
        ("stage=anchor",),
        ("stage=hires",),
        ("stage=hires", "injector=gated_channelwise", "target.target_network=ema"),
        ("stage=hires", *REAL, "train.trainable=adapters", "train.checkpoint_activations=true"),
        ("stage=hires", *REAL, "train.condition_dropout=0.5"),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_a_loss_is_computed_in_bf16(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], update: int) -> None:
    run = build([*words[:2], *MICRO, *words[2:]] if "scale=2k" in words else [*MICRO, *words])
    module = stage_module(run)
    module.configure_model()
    clips: Any = latents(run) if run.text is not None else run.source.batch(0, update, 2)
    with gpu_without_data(monkeypatch) as gpu:
        module.to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = module.loss(clips.to("cuda"), update, update)
        assert loss.term == ("consistency" if update and run.stage == "hires" else "flow")
        assert loss.value.device.type == "cuda"
        assert loss.value.requires_grad
        operations = gpu.operations
    assert operations["aten._scaled_dot_product_flash_attention.default"] > 0
    assert operations["aten._scaled_dot_product_efficient_attention.default"] == 0, "attention in fp32"


@pytest.mark.slow
@pytest.mark.parametrize("upsample", ["pixel", "latent"])
def test_pixels_are_encoded_as_they_are_trained_on(
    monkeypatch: pytest.MonkeyPatch, pipeline: Any, upsample: str
) -> None:
    words = (*SMALL, "trainer=gpu", f"trainer.weights={pipeline[0]}", f"scale.anchor_upsample={upsample}")
    run = build([*words, "stage=hires", "codec.precision=bf16", "start=none"])
    module = stage_module(run)
    module.configure_model()
    module._empty_text = torch.zeros(run.backbone.text_tokens, run.backbone.text_dim)
    with gpu_without_data(monkeypatch) as gpu:
        module.to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = module.loss(torch.zeros(1, 3, 5, 64, 96, device="cuda"), 1, 1)
        assert loss.term == "consistency"
        assert loss.value.requires_grad
        assert gpu.dtypes_of_attention == {torch.bfloat16}


@pytest.mark.parametrize("kernel", ["sdpa", "cudnn", "flash"])
@pytest.mark.parametrize("trains", [False, True])
def test_tokens_are_shared_in_one_dtype(monkeypatch: pytest.MonkeyPatch, kernel: str, trains: bool) -> None:
    """The exchange's own backward runs outside of autocast: it would meet queries in fp32 with values in bf16."""
    run = build([*REAL, *MICRO])
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with gpu_without_data(monkeypatch) as gpu:
            with torch.device("cuda"):
                net = Backbone(run.backbone, run.injector)
                state, anchor = torch.zeros(1, 48, 2, 4, 4), torch.zeros(1, 48, 2, 2, 2)
                time, text = torch.full((1,), 500.0), torch.zeros(1, run.backbone.text_tokens, run.backbone.text_dim)
            if not trains:
                net.lower(torch.bfloat16)
            use_kernel(net, kernel)
            share_tokens(net, groups_of(2, "cuda"))
            with torch.set_grad_enabled(trains), torch.autocast("cuda", torch.bfloat16, enabled=trains):
                output = net(state, time, time, text, anchor, sigma_timestep=time)
        assert output.shape == state.shape
        assert gpu.operations["aten._scaled_dot_product_cudnn_attention.default"] == (2 if kernel == "cudnn" else 0)
        assert gpu.dtypes_of_attention == {torch.bfloat16}
    finally:
        dist.destroy_process_group()


def test_an_evaluation_clip_is_sampled_there(monkeypatch: pytest.MonkeyPatch) -> None:
    run = build([*MICRO, "stage=hires", "sampling.count=2"])
    module = stage_module(run)
    module.configure_model()
    anchor = torch.zeros(2, 3, 5, 16, 16)
    with gpu_without_data(monkeypatch) as gpu:
        output = synthesise(run, module.to("cuda"), anchor.to("cuda"), [0, 1], 0)
        assert sum(gpu.operations.values())
    assert output.shape == (2, 3, 5, 32, 32)


@pytest.fixture
def networks() -> tuple[Any, Any]:
    return _NoTrainLpips(net="alex", pnet_rand=True), Dover().eval()


@pytest.mark.slow
def test_metrics_are_measured_there(networks: tuple[Any, Any], gpu: Gpu) -> None:
    image = np.random.default_rng(0).integers(0, 255, (256, 320, 3), dtype=np.uint8)
    info, view = VideoInfo(1, 256, 320, 24.0, "ffv1"), FrameView(0, image, real=image)
    alex, network = (net.to("cuda") for net in networks)
    lpips = Lpips(alex, "cuda")
    dover = DoverScorer(("dover_technical", "dover_aesthetic"), network, 1, False)
    scales = Scales((3, 4, 5), "mean")
    for scorer in (Mhd(scales, "cuda"), LpipsScorer(lpips), MhdLpips(lpips, scales), dover):
        count = sum(gpu.operations.values())
        video = scorer.begin(info)
        values = video.result([video.frame(view)])
        assert values
        assert all(isinstance(value, float) for value in values.values())
        assert sum(gpu.operations.values()) > count, scorer
