"""`make bench what=metrics`: time the metrics on this machine, ours and other implementations in the same run.

mhd     mHD-MSE of 1080p uint8 frames: ours, F.interpolate on the whole clip, and F.interpolate frame by frame.
niqe    NIQE of a 1080p frame: ours and pyiqa's, with the same pristine statistics.
stream  frames per second and peak memory of `pw score` on an encoded 4K clip of `frames` frames.

mhd and niqe use one thread, and the median of `repeats` rounds after one to warm up; stream uses all cores. A frame is
a seeded texture, the clip a pan over one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure.metric_weights import MissingWeights, find
from benchmarks.metrics import lookup
from benchmarks.metrics.implementation import FrameView, Scorer, scorer_of
from pw.io.arguments import Command, number, option
from pw.io.console import console
from pw.io.files import writable_file, write_json
from pw.io.host import default_threads, usable_cores
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS, ROOT

if TYPE_CHECKING:
    from pw.io.video import Frames

HD, UHD = (1080, 1920), (2160, 3840)
FRAMES = 16  # of the clip for mhd: 400 MB of floats, far more than any cache
STREAMED = {"mhd_mse": 1.0, "mhd_mse,niqe": 3.0}  # GB at most
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class BenchRow:
    """One measured number and its aim.

    sense: whether the aim is the "least" or the "most" allowed value.
    note: the reason for a missing value, with the command that supplies it.
    """

    part: str
    what: str
    value: float | None
    unit: str
    aim: float | None = None
    sense: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None or self.aim is None:
            return None
        return self.value >= self.aim if self.sense == "least" else self.value <= self.aim


def texture(height: int, width: int, seed: int = 0) -> Frames:
    """A seeded colour image with the spectrum of a photograph, uint8 `[height, width, 3]`."""
    import numpy as np

    rng = np.random.default_rng(seed)
    amplitude = 1 / (np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 2 / (height + width))
    grey = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * amplitude, (height, width))
    grey *= 40 / grey.std()
    image = np.empty((height, width, 3), np.uint8)
    for channel, share in enumerate((1.0, 0.9, 0.8)):
        image[..., channel] = np.clip(128 + share * grey + rng.normal(0, 1, grey.shape), 0, 255)
    return image


def pan(frames: int, height: int, width: int) -> Frames:
    """A clip `[frames, height, width, 3]` of views of one texture, moving 2 px down and 1 px right per frame."""
    from numpy.lib.stride_tricks import as_strided

    image = texture(height + 2 * (frames - 1), width + frames - 1)
    row, column, channel = image.strides
    return as_strided(image, (frames, height, width, 3), (2 * row + column, row, column, channel), writeable=False)


def time_rivals(rivals: Mapping[str, Callable[[], float]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """(rival -> value, rival -> median seconds). Rivals run in turn; the first round is a warm-up."""
    values: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats + 1):
        for name, run in rivals.items():
            start = time.perf_counter()
            values[name] = run()
            seconds[name].append(time.perf_counter() - start)
    return values, {name: statistics.median(times[1:]) for name, times in seconds.items()}


def value_of(name: str, scorer: Scorer, frames: Frames) -> float:
    """A metric of frames `[F, H, W, 3]`, computed on this thread."""
    from pw.io.video import VideoInfo

    video = scorer.begin(VideoInfo(*frames.shape[:3], fps=24.0, codec="rawvideo"))
    results = [video.frame(FrameView(i, image)) for i, image in enumerate(frames) if video.wants(i)]
    return video.result(results)[name]


def interpolated_mhd(frames: Frames, ks: Sequence[int]) -> float:
    """mHD-MSE by its definition: squared difference of the float clip `[F, 3, H, W]` to its R_k, mean over all."""
    from torch.nn.functional import interpolate

    clip = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    height, width = clip.shape[-2:]
    total = 0.0
    for k in ks:
        small = interpolate(clip, (height >> k, width >> k), mode="bilinear", align_corners=False)
        back = interpolate(small, (height, width), mode="bilinear", align_corners=False)
        total += float((clip - back).square().mean())
    return total / len(ks)


def bench_mhd(repeats: int) -> list[BenchRow]:
    """Time ours, and F.interpolate on the whole clip and frame by frame."""
    import numpy as np

    scorer, ks = scorer_of(["mhd_mse"]), lookup("mhd_mse").settings["ks"]
    frames = np.ascontiguousarray(pan(FRAMES, *HD))
    values, seconds = time_rivals(
        {
            "ours": lambda: value_of("mhd_mse", scorer, frames),
            "whole clip": lambda: interpolated_mhd(frames, ks),
            "frame by frame": lambda: statistics.fmean(interpolated_mhd(frame[None], ks) for frame in frames),
        },
        repeats,
    )
    ours, differences = values["ours"], [abs(value / values["ours"] - 1) for value in values.values()]
    times = [BenchRow("mhd", f"{name}, a 1080p frame", 1e3 * s / FRAMES, "ms") for name, s in seconds.items()]
    return [
        *times,
        BenchRow("mhd", "faster than the whole clip", seconds["whole clip"] / seconds["ours"], "x", 3.0, "least"),
        BenchRow("mhd", "faster at equal memory", seconds["frame by frame"] / seconds["ours"], "x", 1.5, "least"),
        BenchRow("mhd", "largest relative difference", max(differences), "", 1e-5, "most"),
        BenchRow("mhd", "mHD-MSE of the clip", ours, ""),
    ]


def bench_niqe(repeats: int) -> list[BenchRow]:
    try:
        scorer = scorer_of(["niqe"])
    except MissingWeights as error:
        return [BenchRow("niqe", "ours", None, "ms", note=str(error))]
    frames = texture(*HD)[None]
    rivals = {"ours": lambda: value_of("niqe", scorer, frames)}
    pyiqa_metric = pyiqa_niqe() if importlib.util.find_spec("pyiqa") else None
    if pyiqa_metric is not None:
        rivals["pyiqa"] = lambda: pyiqa_metric(frames[0])
    values, seconds = time_rivals(rivals, repeats)
    rows = [BenchRow("niqe", f"{name}, a 1080p frame", 1e3 * duration, "ms") for name, duration in seconds.items()]
    rows.append(BenchRow("niqe", "NIQE of the frame", values["ours"], ""))
    if pyiqa_metric is None:
        note = "pyiqa is not installed: `make iqa` installs it"
        return [*rows, BenchRow("niqe", "faster than pyiqa", None, "x", 4.0, "least", note)]
    rows.append(BenchRow("niqe", "faster than pyiqa", seconds["pyiqa"] / seconds["ours"], "x", 4.0, "least"))
    return [*rows, BenchRow("niqe", "difference", abs(values["ours"] - values["pyiqa"]), "", 0.01, "most")]


def pyiqa_niqe() -> Callable[[Frames], float]:
    """pyiqa's NIQE of a uint8 frame `[H, W, 3]` with our statistics; it downloads nothing."""
    import numpy as np
    from scipy.io import savemat

    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        mat = Path(folder) / "niqe.mat"
        with np.load(find("niqe")) as file:
            savemat(mat, {"mu_prisparam": file["mu_pris_param"], "cov_prisparam": file["cov_pris_param"]})
        # not an import statement: only benchmarks/metrics/musiq.py may import pyiqa
        metric = importlib.import_module("pyiqa").create_metric("niqe", pretrained_model_path=str(mat), device="cpu")
    return lambda image: float(metric(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255))


def bench_stream(frames: int) -> list[BenchRow]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="pw-bench-") as work:
        folder = Path(work) / "videos"
        folder.mkdir()
        # in another process: on Linux a child process starts with the peak memory of its parent
        writer = multiprocessing.get_context("spawn").Process(target=write_clip, args=(folder / "pan.mp4", frames, UHD))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise RuntimeError(f"the clip could not be written (exit status {writer.exitcode})")
        for metrics, max_gb in STREAMED.items():
            name = f"{metrics}: {frames} 4K frames"
            try:
                if "niqe" in metrics:
                    find("niqe")
            except MissingWeights as error:
                rows.append(BenchRow("stream", name, None, "frames/s", note=str(error)))
                continue
            seconds, peak = score_in_a_process(folder, metrics, Path(work) / metrics)
            rows += [
                BenchRow("stream", name, frames / seconds, "frames/s"),
                BenchRow("stream", f"{metrics}: peak memory", peak / 1e9, "GB", max_gb, "most"),
            ]
    return rows


def write_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    """Write the panning clip as H.264; size: (height, width)."""
    from pw.io.video import write_video

    write_video(path, pan(frames, *size), lossless=False)


def score_in_a_process(folder: Path, metrics: str, out: Path) -> tuple[float, float]:
    """(seconds, peak memory in bytes) of `pw score` without cache. Raises RuntimeError if it fails."""
    words = [f"videos={folder}", f"metrics={metrics}", f"out={out / 'scores.csv'}", f"cache={out / 'cache'}"]
    out.mkdir()
    with (out / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, "-m", "pw", "score", *words], cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"benchmarks.measure.score of {metrics} failed:\n{log.read()}")
    run = json.loads((out / "scores.protocol.json").read_text(encoding="utf-8"))["run"]
    return run["seconds"], usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or "CPU"


def report(what: str, rows: Sequence[BenchRow], out: Path | None, extra: Mapping[str, Any]) -> None:
    """Print the rows and write them as JSON to `out`, by default a file named after the processor."""
    show(rows)
    name = device()
    out = out or OUTPUTS / "bench" / f"{what}_{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.json"
    records = [{**asdict(row), "met": row.met} for row in rows]
    write_json(out, {"device": name, "cores": usable_cores(), "torch": torch.__version__, **extra, "measured": records})
    print(out)


def show(rows: Sequence[BenchRow]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns hold it
    for head in ("", "measured", "value", "", "aim", ""):
        table.add_column(head, justify="right" if head in ("value", "aim") else "left", no_wrap=True)
    for row in rows:
        value = "–" if row.value is None else f"{row.value:.4g}"
        aim = "" if row.aim is None else f"{'≥' if row.sense == 'least' else '≤'} {row.aim:g}"
        table.add_row(row.part, row.what, value, row.unit, aim, {None: "", True: "met", False: "missed"}[row.met])
    terminal = console()
    terminal.print(table)
    for row in rows:
        if row.note:
            terminal.print(f"{row.part}, {row.what} –  {escape(row.note)}", soft_wrap=True)


@dataclass(frozen=True)
class MetricBenchOptions:
    only: tuple[Literal["mhd", "niqe", "stream"], ...] = option(("mhd", "niqe", "stream"), "what is measured")
    frames: int = option(121, "frames of the 4K clip", read=number(1))
    repeats: int = option(5, "rounds, of which the median is reported", read=number(1))
    out: Path | None = option(
        None, "the JSON file, by default outputs/bench/metrics_<processor>.json", read=writable_file("out")
    )


def run(options: MetricBenchOptions) -> int:
    rows: list[BenchRow] = []
    if "stream" in options.only:  # first, while this process is small and uses all cores
        print(f"a 4K clip of {options.frames} frames …", file=sys.stderr, flush=True)
        rows += bench_stream(options.frames)
    threads = {"stream": default_threads(), "mhd": 1, "niqe": 1}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before numpy and torch are imported
    torch.set_num_threads(1)
    for part, bench in (("mhd", bench_mhd), ("niqe", bench_niqe)):
        if part in options.only:
            print(f"{part} …", file=sys.stderr, flush=True)
            rows += bench(options.repeats)
    report("metrics", rows, options.out, {"threads": threads, "repeats": options.repeats})
    return 0


main = Command(MetricBenchOptions, run)
