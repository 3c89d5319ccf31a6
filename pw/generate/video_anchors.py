"""A video file -> the anchors of stage II, degraded as in training (D125); an image -> its latents (D126)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pw.data.procedural import generator
from pw.generate.output import Task, load_codec, load_latent, release_memory, save_latent
from pw.generate.request import GenerationRequest, Prompt
from pw.generate.source_image import SourceImage
from pw.generate.source_video import SourceVideo
from pw.io.video import Frames, frames_at, to_float

DEGRADE = 10  # stream of random numbers, see pw.stages.stage


def encode_video(task: Task, source: SourceVideo, prompts: Sequence[Prompt]) -> None:
    """The missing anchors: each window of the video, degraded as in training and encoded.

    All windows have the random parameters of the seed. The noise of training is not added, as in an evaluation.
    """
    request = task.request
    windows = [window for prompt in prompts for window in request.windows(prompt)]
    todo = [window for window in windows if not request.anchor_file(window).exists()]
    for prompt in windows if task.writes else ():
        if prompt not in todo:
            task.skip("anchor", "encoding the video, taken from file")
            task.record_from("anchor", prompt, load_latent(request.anchor_file(prompt))[1])
    if todo and task.writes:
        codec = task.models.get("codec", lambda: load_codec(request))
        task.add("anchor", 0.0, "encoding the video")
        start, last = time.perf_counter(), max(prompt.window for prompt in todo)
        for window, frames in enumerate(itertools.islice(windows_of(source), last + 1)):
            for prompt in (p for p in todo if p.window == window):
                latent = codec.encode(anchor_video(request, prompt.seed, frames))
                task.add("anchor", 1.0, "encoding the video")
                save_latent(request.anchor_file(prompt), latent, task.record("anchor", prompt, start), prompt)
                start = time.perf_counter()
        del codec
    task.models.release()
    release_memory(request.device)


def windows_of(source: SourceVideo) -> Iterator[list[Frames]]:
    """The frames of each window, cropped, uint8 [h, w, 3] each; the video's last one is repeated at the end."""
    count = source.first_frame(len(source.windows) - 1) + source.window_frames
    frames, kept = frames_at(source.path, source.fps, count), list[Frames]()
    for window in range(len(source.windows)):
        del kept[: source.first_frame(window) - source.first_frame(max(0, window - 1))]
        kept += [
            np.ascontiguousarray(f[source.crop]) for f in itertools.islice(frames, source.window_frames - len(kept))
        ]
        yield kept


def anchor_video(request: GenerationRequest, seed: int, frames: Sequence[Frames]) -> Tensor:
    """Cropped frames -> the anchor [1, 3, F, h, w] in [-1, 1] on the device: the clip at its full size, degraded.

    A training's factor of the downscale is relative to the clip, so the frames take its size first (bicubic).
    """
    run = request.hires
    clip = torch.empty(1, 3, len(frames), *run.scale.size, device=request.device)
    for number, frame in enumerate(frames):  # one at a time: 121 frames of 4K are 12 GB
        clip[0, :, number] = _resized(frame, run.scale.size, request.device)
    size, rng = run.scale.anchor_size, generator(seed, 0, DEGRADE)
    return run.degradation.degrade(clip, size, run.degradation.draw(1, len(frames), size, rng))


def _resized(frame: Frames, size: tuple[int, int], device: str) -> Tensor:
    """uint8 [h, w, 3] -> [3, *size] in [-1, 1], bicubic."""
    picture = torch.from_numpy(to_float(frame[None])).transpose(0, 1).to(device)
    return torch.nn.functional.interpolate(picture, size=size, mode="bicubic", antialias=True)[0].clamp_(-1, 1)


def encode_image(task: Task, image: SourceImage, prompts: Sequence[Prompt]) -> None:
    """The missing latents of the image, as a clip of one frame at the size of each stage."""
    request, scale = task.request, task.request.hires.scale
    todo = [prompt for prompt in prompts if not request.latent_file(prompt).exists()] if task.writes else []
    if todo:
        codec, frame = task.models.get("codec", lambda: load_codec(request)), image.pixels()
        for part, size in (("anchor", scale.anchor_size), ("hires", scale.size)):
            latent = codec.encode(_resized(frame, size, request.device)[None, :, None])
            for prompt in todo:
                save_latent(request.image_file(prompt, part), latent, {}, prompt)
        del codec
    task.models.release()
    release_memory(request.device)
