"""One video, decoded once: every frame to every metric that wants it, on several threads, in bounded memory."""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.metrics.implementation import FrameView, Scorer, Video

if TYPE_CHECKING:
    from pw.io.video import Frames, VideoInfo

BUDGET = 600 << 20
"""Bytes that the calls in flight may take together: six 4K frames for mHD-MSE, which then stays under 1 GB in all. A
call that alone takes more (LPIPS at 4K: 1.1 GB) goes beside them, one at a time."""

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED", re.IGNORECASE)
_GPU_ERROR = re.compile(r"cuda|cublas|cudnn|gpu", re.IGNORECASE)
_MAX_LENGTH = 200  # characters of an allocator's story


@dataclass
class VideoScores:
    """What came of a video: metric -> value, frames, and which families would not score it and why.

    is_short: whether memory ran out under one of them.
    """

    values: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    refusals: dict[str, str] = field(default_factory=dict)
    out_of_memory: bool = False


def score_video(
    path: Path,
    scorers: Mapping[str, Scorer],
    *,
    real: Path | None = None,
    paired: Collection[str] = (),
    threads: int = 1,
    budget: int = BUDGET,
) -> VideoScores:
    """Score a video with every family of `scorers`.

    real: the video it is held against by the families of `paired`.
    threads: frames and metrics worked on at once. Values do not depend on it, but for the last bits of networks.
    budget: bytes that calls in flight may take together; a metric that needs more is given one frame at a time.
    A family whose memory runs out is refused as one that cannot measure the video, and its memory given back.
    Raises: VideoError for a video that is not whole or not readable.
    """
    from pw.io.video import decode, probe

    info = probe(path)
    scores = VideoScores()
    attempts = {family: _try(family, scores, lambda s=scorer: s.begin(info)) for family, scorer in scorers.items()}
    videos: dict[str, Video] = {family: video for family, video in attempts.items() if family not in scores.refusals}
    futures: dict[str, list[Future[Any]]] = {family: [] for family in videos}
    real_frames = _real_frames(real, info, scores, paired) if real is not None and paired else None
    memory = _Memory(budget, calls=4 * threads)
    needs = {family: video.memory + 2 * (info.height * info.width * 3) for family, video in videos.items()}
    # torch threads of one call: where memory lets few frames in at once, each gets more of the cores
    shares = {family: threads // max(1, min(threads, budget // need)) for family, need in needs.items()}
    previous: Frames | None = None
    with ThreadPoolExecutor(threads) as pool:
        try:
            for frame in decode(path):
                view = FrameView(
                    frame.index, frame.image, previous, next(real_frames) if real_frames is not None else None
                )
                for family, video in videos.items():
                    if family in scores.refusals or not video.wants(frame.index):
                        continue
                    memory.take(need := needs[family])
                    future = pool.submit(_frame, family, video, view, scores, shares[family], threads, need)
                    future.add_done_callback(lambda _, need=need: memory.give(need))
                    futures[family].append(future)
                previous, scores.frames = frame.image, scores.frames + 1
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _use_threads(threads)
    for family, video in videos.items():
        if family not in scores.refusals:
            frames = [future.result() for future in futures.pop(family)]
            scores.values.update(_try(family, scores, lambda v=video, f=frames: v.result(f)) or {})
    if scores.out_of_memory:
        free_gpu_cache()
    return scores


def _try(family: str, scores: VideoScores, measure: Callable[[], Any], concurrent: int = 1, need: int = 0) -> Any:
    """What `measure` gives; None where it cannot, the reason then in `scored.refused`.

    The error goes with this call: the frames of its traceback hold the very tensors that filled the memory.
    """
    try:
        return measure()
    except ValueError as error:  # the video is not what the metric can measure
        scores.refusals.setdefault(family, str(error))
    except (MemoryError, RuntimeError) as error:
        if not (reason := shortage(error)):
            raise
        scores.out_of_memory = True
        scores.refusals.setdefault(family, f"{reason}; {remedy(reason, concurrent=concurrent, need=need)}")
    return None


def _frame(family: str, video: Video, view: FrameView, scores: VideoScores, share: int, threads: int, need: int) -> Any:
    if family in scores.refusals:  # since it was submitted
        return None
    _use_threads(share)
    return _try(family, scores, lambda: video.frame(view), concurrent=threads // share, need=need)


def _use_threads(threads: int) -> None:
    """Of the calling thread, if torch is in use at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _real_frames(real: Path, info: VideoInfo, scores: VideoScores, paired: Collection[str]) -> Iterator[Frames | None]:
    """The real video's frames; families that need them are refused where it is broken or of another length."""
    from pw.io.video import VideoError, iter_frames, probe

    try:
        frames = probe(real).frames
        if frames != info.frames:
            raise VideoError(f"{real}: {frames} frames, the video has {info.frames}; cut both alike")
        yield from iter_frames(real)
    except VideoError as error:
        scores.refusals.update(dict.fromkeys(paired, str(error)))
    while True:
        yield None


class _Memory:
    """Bytes and calls in flight: small calls share the total, of those that need more than all of it one goes on."""

    def __init__(self, total: int, calls: int) -> None:
        self._total, self._free = total, total
        self._calls, self._large, self._released = threading.Semaphore(calls), threading.Lock(), threading.Condition()

    def take(self, need: int) -> None:
        self._calls.acquire()
        if need > self._total:
            self._large.acquire()
            return
        with self._released:
            self._released.wait_for(lambda: need <= self._free)
            self._free -= need

    def give(self, need: int) -> None:
        if need > self._total:
            self._large.release()
        else:
            with self._released:
                self._free += need
                self._released.notify()
        self._calls.release()


# ---- memory that ran out: told in one line with what would do, and given back for the next video


def shortage(error: BaseException) -> str:
    """What an error says of memory that ran out, in one line; nothing for any other error.

    numpy raises MemoryError; torch a RuntimeError: of its own kind where its CUDA allocator ran out, of any where the
    driver, cuBLAS or the CPU did.
    """
    is_torch_error = type(error).__name__ == "OutOfMemoryError" or _OUT_OF_MEMORY.search(str(error))
    if not (isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_torch_error)):
        return ""
    # torch goes on with who holds how much, and with advice about its allocator
    line = " ".join(str(error).split()).partition(" Process ")[0].partition(" Including ")[0].rstrip(". ")
    return (line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]} …") or "out of memory"


def remedy(reason: str, *, concurrent: int = 1, need: int = 0) -> str:
    """What would do against a `shortage`, as keys of `benchmarks.measure.score`.

    at_once: frames that were given to the metric together; need: bytes of one.
    """
    memory_hint = f"memory={math.ceil(need / 1e6)}MB hands it one frame at a time" if concurrent > 1 else ""
    device_hint = "device=cpu takes the machine's memory instead" if _GPU_ERROR.search(reason) else ""
    return (
        ", ".join(filter(None, (memory_hint, device_hint))) or "it takes a machine with more memory, or a smaller video"
    )


def free_gpu_cache() -> None:
    """Return what torch keeps of the GPUs' memory for later; to be called when no error holds tensors any more."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
