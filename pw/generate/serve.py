"""`pw serve`: the networks of `pw generate`, kept on the device, behind a local JSON API (`pw.generate.video_server`).

    pw serve scale=2k hires=DIR-OR-FILE [port=8186] [an option of pw generate, or an override of conf/]

One video is made at a time, in the order of the requests, and is the one that `pw generate prompts=FILE` makes for its
prompt and seed. The address, with its token, is printed, and kept until the end in OUT/serve.json, which only its user
can read.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pw.generate.estimate import describe, threads_of
from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, GenerationRequest, Prompt, check_text, make_request, named_prompts
from pw.generate.stage_runs import has_own_codec
from pw.generate.video_server import QueueFullError, RequestedVideo, VideoServer
from pw.io.arguments import Command, ConfigError, number, option, parse
from pw.io.host import check_port
from pw.io.lazy import torch
from pw.parallel.launch import carry_out, report_mistakes

if TYPE_CHECKING:
    from pw.generate.models import Models

NOT_HERE = ("prompt", "prompts", "anchors_from")  # options of `pw generate` that requests replace
MOST_WAITING = 100
HINT = "finished videos are kept, prompts that waited are not"


@dataclass(frozen=True)
class ServeOptions:
    """The options of `pw serve`."""

    port: int = option(8186, "where it listens, on 127.0.0.1 alone", read=number(1024, 65535))
    overrides: tuple[str, ...] = option((), "the options of pw generate but for prompts, and any override of conf/")


class VideoQueue:
    """Prompts that wait, and the videos that were made; `work` makes them in the thread that calls it.

    template  the checked request of the call, with any prompt
    """

    def __init__(self, template: GenerationRequest) -> None:
        self.template, self.jobs, self._lock = template, dict[str, RequestedVideo](), threading.Lock()
        self._encoder = template.text_encoder()
        self._prompts: dict[str, Prompt] = {}
        self._waiting: queue.Queue[RequestedVideo] = queue.Queue(MOST_WAITING)

    def add(self, text: str, seed: int | None) -> RequestedVideo:
        """The job of a prompt, which is done at once if its video is there, and queued again if it failed.

        Raises ValueError for a prompt or seed that cannot be used, QueueFullError.
        """
        check_text(text)
        with self._lock:
            if self._encoder is not None:
                self._encoder.check([text])
            [prompt] = named_prompts(self.template, [(text, seed)])
            job = self.jobs.get(prompt.name)
            if job is not None and job.state != "failed":
                return job
            job = RequestedVideo(prompt.name, text, prompt.seed)
            if self.template.is_done(prompt):
                job.state, job.share = "done", 1.0
            else:
                try:
                    self._waiting.put_nowait(job)
                except queue.Full:
                    raise QueueFullError(f"{MOST_WAITING} prompts wait already; post it later") from None
            self.jobs[job.id], self._prompts[job.id] = job, prompt
            return job

    def file(self, job: RequestedVideo) -> Path:
        return self.template.video(self._prompts[job.id])

    def work(self) -> None:
        """Make the videos, without end."""
        from pw.generate.models import Models, fit_together

        keeps_text = fit_together(self.template, with_text=True)
        models = Models(keep=fit_together(self.template), keeps_text=keeps_text)
        if not models.keep:
            print("the networks do not fit on the device together: each part loads its own", file=sys.stderr)
        while True:
            self._make(self._waiting.get(), models)

    def _make(self, job: RequestedVideo, models: Models) -> None:
        request = replace(self.template, prompts=[self._prompts[job.id]], seconds={}, peaks={})
        job.state = "running"
        print(f"{job.id} …", file=sys.stderr, flush=True)

        def show(label: str, share: float, part_share: float) -> None:
            job.part, job.share = label, round(share, 4)

        try:
            done = generate(request, show, models)
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            job.error = str(error)
        except Exception as error:  # the next prompt may do
            traceback.print_exc()
            job.error = f"{type(error).__name__}: {error}"
        else:
            job.error = "" if done else "another call is making it"
        job.part, job.state = "", "failed" if job.error else "done"
        print(f"{job.id}: {job.error or 'done'}", file=sys.stderr, flush=True)


@contextmanager
def listening(server: VideoServer, out: Path) -> Generator[None]:
    """Inside, threads answer requests, and OUT/serve.json has the address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    address = out / "serve.json"
    out.mkdir(parents=True, exist_ok=True)
    address.unlink(missing_ok=True)  # of a server that was killed
    address.touch(mode=0o600)
    address.write_text(json.dumps({"url": server.url}))
    thread.start()
    try:
        yield
    finally:
        address.unlink(missing_ok=True)
        server.shutdown()
        server.server_close()
        thread.join()


def make_template(options: ServeOptions, announce: Callable[[GenerationRequest], None]) -> GenerationRequest:
    """The checked request of a call. Raises ConfigError."""
    for word in options.overrides:
        if word.partition("=")[0] in NOT_HERE:
            raise ConfigError(f"{word}: requests bring the prompts; leave it out, or call pw generate")
    generation = parse(GenerateOptions, [*options.overrides, "prompt=any"])
    if has_own_codec(generation.video, generation.weights, generation.overrides):
        raise ConfigError(
            f"video={generation.video}: the networks of scale=tiny and small take no prompts, which requests bring; "
            f"call pw generate{', or set weights=random' if 'scale=tiny' in generation.overrides else ''}"
        )
    template = make_request(generation, announce)
    if template.is_split:
        raise ConfigError("trainer=fsdp: pw serve uses one device; start one on each GPU, with a port= of its own")
    return template


def run(options: ServeOptions) -> int:
    """Serve until a signal; exit status 2 for a mistake in the call, 128 + signal at the end."""
    with report_mistakes():
        check_port(options.port, "another pw serve")
        template = make_template(options, lambda request: print(describe(request, 1), file=sys.stderr, flush=True))
    torch.set_num_threads(threads_of(template))
    videos = VideoQueue(template)
    server = VideoServer(options.port, videos.jobs, videos.add, videos.file)

    def serve() -> None:
        with listening(server, template.out):
            print(server.url, flush=True)
            videos.work()

    return carry_out(serve, HINT)


main = Command(ServeOptions, run, HINT)
