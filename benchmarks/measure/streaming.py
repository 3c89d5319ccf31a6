"""Score one video: decode it once and pass each frame to its metrics, on several threads and in bounded memory."""

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
"""Bytes of all concurrent calls together: six 4K frames for mHD-MSE, less than 1 GB in total. A call that needs more by
itself (LPIPS at 4K: 1.1 GB) runs in addition, one at a time."""

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED", re.IGNORECASE)
_GPU_ERROR = re.compile(r"cuda|cublas|cudnn|gpu", re.IGNORECASE)
_MAX_LENGTH = 200  # characters of an allocator's message


@dataclass
class VideoScores:
    """Scores of one video: metric -> value, number of frames, and refusals: family -> reason.

    out_of_memory: whether a family ran out of memory. note: as that of `pw.io.video.VideoInfo`.
    """

    values: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    refusals: dict[str, str] = field(default_factory=dict)
    out_of_memory: bool = False
    note: str = ""


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

    real: the real video for the families of `paired`.
    threads: the number of concurrent calls. Values do not depend on it, except for the last bits of networks.
    budget: bytes of all concurrent calls; a metric that needs more gets one frame at a time.
    A family that cannot measure the video or runs out of memory is in `refusals`; its memory is released.
    Raises: VideoError for a truncated or unreadable video.
    """
    from pw.io.video import decode, probe

    info = probe(path)
    scores = VideoScores(note=info.note)
    attempts = {family: _try(family, scores, lambda s=scorer: s.begin(info)) for family, scorer in scorers.items()}
    videos: dict[str, Video] = {family: video for family, video in attempts.items() if family not in scores.refusals}
    futures: dict[str, list[Future[Any]]] = {family: [] for family in videos}
    real_frames = _real_frames(real, info, scores, paired) if real is not None and paired else iter(())
    memory = _Memory(budget, calls=4 * threads)
    needs = {family: video.memory + 2 * (info.height * info.width * 3) for family, video in videos.items()}
    # torch threads per call: if memory allows only few concurrent frames, each call gets more cores
    shares = {family: threads // max(1, min(threads, budget // need)) for family, need in needs.items()}
    previous: Frames | None = None
    with ThreadPoolExecutor(threads) as pool:
        try:
            for frame in decode(path):
                view = FrameView(frame.index, frame.image, previous, next(real_frames, None))
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
    """Call `measure`; None if it fails, with the reason in `scores.refusals`.

    The error must not outlive this call: its traceback references the tensors that filled the memory.
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
    if family in scores.refusals:  # after this call was submitted
        return None
    _use_threads(share)
    return _try(family, scores, lambda: video.frame(view), concurrent=threads // share, need=need)


def _use_threads(threads: int) -> None:
    """Set the calling thread's number of torch threads, if torch is imported."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _real_frames(real: Path, info: VideoInfo, scores: VideoScores, paired: Collection[str]) -> Iterator[Frames]:
    """Yield the real video's frames; if it is broken or has another length, refuse the families that need them."""
    from pw.io.video import VideoError, iter_frames, probe

    try:
        frames = probe(real).frames
        if frames != info.frames:
            raise VideoError(f"{real}: {frames} frames, the video has {info.frames}; cut both to the same length")
        yield from iter_frames(real)
    except VideoError as error:
        scores.refusals.update(dict.fromkeys(paired, str(error)))


class _Memory:
    """Limits concurrent calls and their bytes: small calls share the total; one call larger than the total runs."""

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


# ---- out of memory: a message with a remedy, and release for the next video


def shortage(error: BaseException) -> str:
    """One line about an out-of-memory error, "" for any other error.

    numpy raises MemoryError; torch raises OutOfMemoryError in its CUDA allocator, and RuntimeError in the driver, in
    cuBLAS or on the CPU.
    """
    is_torch_error = type(error).__name__ == "OutOfMemoryError" or _OUT_OF_MEMORY.search(str(error))
    if not (isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_torch_error)):
        return ""
    # the rest of torch's message lists processes and gives advice about its allocator
    line = " ".join(str(error).split()).partition(" Process ")[0].partition(" Including ")[0].rstrip(". ")
    return (line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]} …") or "out of memory"


def remedy(reason: str, *, concurrent: int = 1, need: int = 0) -> str:
    """The options of `benchmarks.measure.score` that help against a `shortage`.

    concurrent: frames that the metric had at the same time; need: bytes of one.
    """
    memory_hint = f"memory={math.ceil(need / 1e6)}MB measures one frame at a time" if concurrent > 1 else ""
    device_hint = "device=cpu uses the machine's memory instead" if _GPU_ERROR.search(reason) else ""
    hints = ", ".join(filter(None, (memory_hint, device_hint)))
    return hints or "use a machine with more memory, or a smaller video"


def free_gpu_cache() -> None:
    """Release torch's cached GPU memory; call it when no error references tensors any more."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
