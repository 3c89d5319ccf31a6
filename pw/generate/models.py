"""What a call keeps on its device, and the thread that writes its files beside it (D116)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

import torch

from pw.cost.generation_cost import generation_cost
from pw.generate.request import GenerationRequest
from pw.io.host import free_memory

Model = TypeVar("Model")
TEXT = "text"  # the name of the text encoder


class Models:
    """The networks of a call, loaded at first use.

    keep        they stay; otherwise `release` drops those that are loaded
    keeps_text  the text encoder stays, too
    """

    def __init__(self, keep: bool, keeps_text: bool = False) -> None:
        self.keep, self.keeps_text, self._loaded = keep, keeps_text, dict[str, Any]()

    def get(self, name: str, load: Callable[[], Model]) -> Model:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]

    def release(self) -> None:
        for name in [*self._loaded]:
            if not (self.keeps_text if name == TEXT else self.keep):
                del self._loaded[name]


def fit_together(request: GenerationRequest, *, with_text: bool = False) -> bool:
    """Whether the plan says that all networks of a call fit into the memory that is free now.

    with_text  also the text encoder, which a call for a fixed list of prompts needs only at its beginning
    """
    if request.is_split:  # processes load and drop the parts of a network together
        return False
    free = torch.cuda.mem_get_info()[0] if request.device == "cuda" else free_memory()
    return generation_cost(request.hires, request.anchor).together(with_text=with_text).fits(free)


class FileWriter:
    """Does one job at a time in a thread, while the caller uses the device; `submit` waits for the job before.

    An error of a job is raised by the next `submit` or by `finish`. When the caller fails or is stopped, the job is
    told by `is_abandoned`, and what waits is dropped: the latents on disk make it again.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="file")
        self._job: Future[None] | None = None
        self._abandoned = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:
            self._abandoned.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def is_abandoned(self) -> bool:
        return self._abandoned.is_set()

    def submit(self, job: Callable[[], None]) -> None:
        self.finish()
        self._job = self._pool.submit(job)

    def finish(self) -> None:
        """Wait for the job."""
        if self._job is not None:
            self._job.result()
            self._job = None
