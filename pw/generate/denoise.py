"""Prompts -> latents: text embeddings, then each stage from noise, with only its network on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pw.cost.counts import evaluations, stage_latent
from pw.data.degradation import resize
from pw.data.procedural import generator
from pw.generate.models import TEXT
from pw.generate.output import Task, load_codec, load_latent, release_memory, save_latent
from pw.generate.request import GenerationRequest, Prompt
from pw.generate.video_anchors import encode_image, encode_video
from pw.generate.windows import JointWindows, share_noise
from pw.io.files import digest
from pw.nn.backbone import Backbone, groups_of, share_tokens
from pw.nn.lora import LoraFile
from pw.nn.networks import load_network, network_without_weights
from pw.nn.unipc import synchronize
from pw.run.build import Run
from pw.stages import network_of
from pw.stages.given import GivenFrame
from pw.stages.velocity import Condition, integrate, noise_of_phases

NOISE = 8  # stream of random numbers, see pw.stages.stage

Embedding = Callable[[str], Tensor]  # text -> [tokens, dim]


@dataclass(frozen=True)
class Denoising:
    """One stage of a task.

    part, label   its name in the task, and in the progress line
    source        where the weights come from (`pw.generate.stage_runs.stage_source`)
    loras         files and scales of LoRAs that are merged into them
    latent_file   prompt -> output file, a latent
    anchor_file   prompt -> input file, the latent of the anchor; None for stage I
    """

    part: str
    label: str
    run: Run
    source: str
    loras: tuple[LoraFile, ...]
    latent_file: Callable[[Prompt], Path]
    anchor_file: Callable[[Prompt], Path] | None = None


def encode_texts(task: Task) -> Embedding:
    """A function text -> embedding: random, or encoded once and read from the cache on disk."""
    request = task.request
    encoder = task.models.get(TEXT, request.text_encoder)
    if request.hires.text is None:
        return lambda text: torch.zeros(request.hires.backbone.text_tokens, request.hires.backbone.text_dim)
    if encoder is None:
        shape = request.hires.backbone.text_tokens, request.hires.backbone.text_dim
        return lambda text: torch.randn(shape, generator=generator(int(digest(text), 16), 0, NOISE))
    task.add("text", 0.0, "encoding prompts")
    for run, _ in request.stages if task.writes else ():
        assert run.text is not None
        encoder.encode(run.text.negative_prompt)
    for prompt in task.prompts if task.writes else ():
        start = time.perf_counter()
        encoder.encode(prompt.text)
        task.add("text", 1.0, "encoding prompts")
        task.record("text", prompt, start)
    if not task.models.keeps_text:
        encoder.free()
    task.models.release()
    release_memory(request.device)
    task.team.wait()  # until all texts are on disk
    return encoder.encode


def make_anchors(task: Task, prompts: Sequence[Prompt], embedding: Embedding) -> None:
    """Stage I: make the missing anchors, or copy those of an earlier call, or encode `video=`."""
    request = task.request
    if request.source is not None:
        encode_video(task, request.source, prompts)
        return
    assert request.anchor is not None
    if request.image is not None:
        encode_image(task, request.image, prompts)
    for prompt in prompts if task.writes else ():
        if prompt.anchor is not None and not request.anchor_file(prompt).exists():
            save_latent(request.anchor_file(prompt), *load_latent(prompt.anchor), prompt)
    anchor = request.anchor_source, request.anchor_loras, request.anchor_file
    stage = Denoising("anchor", "stage I: anchors", request.anchor, *anchor)
    denoise(task, stage, prompts, embedding)


def make_details(task: Task, prompts: Sequence[Prompt], embedding: Embedding) -> None:
    """Stage II: make the missing latents from the anchors."""
    request = task.request
    is_upsampled = request.hires.scale.anchor_upsample == "pixel"
    if is_upsampled and task.writes:
        _upsample_anchors(task, prompts)
    files = request.latent_file, request.upsampled_file if is_upsampled else request.anchor_file
    hires = request.hires_source, request.hires_loras, *files
    stage = Denoising("hires", "stage II: detail", request.hires, *hires)
    denoise(task, stage, prompts, embedding)


def _upsample_anchors(task: Task, prompts: Sequence[Prompt]) -> None:
    """Decode each anchor, enlarge it in pixels, and encode it again (`scale.anchor_upsample=pixel`)."""
    request = task.request
    files = (request.latent_file, request.upsampled_file)
    windows = [window for prompt in prompts for window in request.windows(prompt)]
    todo = [prompt for prompt in windows if not any(file(prompt).exists() for file in files)]
    if not todo:
        return
    codec = task.models.get("codec", lambda: load_codec(request))
    for prompt in todo:
        pixels = codec.decode(load_latent(request.anchor_file(prompt))[0])
        upsampled = resize(pixels, request.hires.scale.size, "bicubic").clamp(-1, 1)
        save_latent(request.upsampled_file(prompt), codec.encode(upsampled), {}, prompt)
    del codec
    task.models.release()
    release_memory(request.device)


def denoise(task: Task, stage: Denoising, prompts: Sequence[Prompt], embedding: Embedding) -> None:
    """Make the missing latents of a stage from noise; loads the network only if there are any.

    Processes that hold the network together must evaluate it equally often: a process with fewer latents to make
    evaluates it on zeros and drops the result.
    """
    request = task.request
    task.team.wait()  # until other processes have written the files of the previous part
    todo = []
    for prompt in prompts:
        windows = request.windows(prompt)
        if all(stage.latent_file(window).exists() for window in windows):
            for window in windows:
                task.skip(stage.part, f"{stage.label}, taken from file")
                task.record_from(stage.part, window, load_latent(stage.latent_file(window))[1])
        else:
            todo.append(windows)
    rounds = int(task.team.maximum(len(todo)))  # also waits for all processes
    if rounds:
        net = task.models.get(stage.part, lambda: _load(task, stage, bool(todo)))
        for windows in todo:
            _denoise_one(task, stage, net, windows, embedding)
        for _ in range((rounds - len(todo)) * windows_of_each(request)):
            integrate(stage.run, net, *_zeros(request, stage))
        del net
    task.models.release()
    release_memory(request.device)


def _load(task: Task, stage: Denoising, shows: bool) -> Backbone:
    if shows:
        task.add(stage.part, 0.0, f"loading {stage.label}")
    net = load_stage(task.request, stage)
    if shows:
        task.add(stage.part, 0.0, stage.label)
    return net


def _denoise_one(task: Task, stage: Denoising, net: Backbone, windows: list[Prompt], embedding: Embedding) -> None:
    """Make the latent of a prompt, or those of all windows of its video, which are on the CPU between evaluations."""
    request, run, prompt = task.request, stage.run, windows[0]
    start, device = time.perf_counter(), request.device if len(windows) == 1 else "cpu"
    anchor = None
    if stage.anchor_file is not None:
        anchor = torch.cat([load_latent(stage.anchor_file(window))[0] for window in windows]).to(device)
    texts = (prompt.text, "" if run.text is None else run.text.negative_prompt)
    text, negative_text = (embedding(t)[None].to(device) for t in texts)
    noise = [part.to(device) for part in _noise(request, stage, windows)]

    def tick() -> None:
        synchronize(torch.device(request.device))
        task.add(stage.part, 1 / calls_of(run), stage.label)

    conditions = Condition(text, anchor), Condition(negative_text, anchor)
    if request.image is not None:
        latent, _ = load_latent(request.image_file(prompt, stage.part))
        given = GivenFrame(net, run.schedule, latent.to(device), per_token=stage.anchor_file is None)
        latents = given.in_place(integrate(run, given, noise, *conditions, tick))
    elif len(windows) == 1:
        latents = integrate(run, net, noise, *conditions, tick)
    else:
        joint = joint_windows(task, net, windows, tick)
        latents = integrate(run, joint, noise, *conditions, resized=joint.resized)
    metadata = task.record(stage.part, prompt, start)
    for window, latent in zip(windows, latents.split(1), strict=True):
        if task.writes:
            save_latent(stage.latent_file(window), latent, metadata if window is prompt else {}, window)


def _noise(request: GenerationRequest, stage: Denoising, windows: Sequence[Prompt]) -> list[Tensor]:
    """The noise of each phase, [W, C, F, h, w]. Drawn on the CPU: the same on every device, for any set of prompts."""
    run, noises = stage.run, []
    for window in windows:
        place = [window.window] if window.window else []
        stream = (window.seed, 0 if stage.anchor_file is None else 1, NOISE, *place)
        noises.append(noise_of_phases(run, torch.randn(stage_latent(run), generator=generator(*stream)), *stream))
    shared = [request.source.shared_latents(window.window) if request.source else 0 for window in windows]
    return [torch.stack(share_noise(parts, shared)) for parts in zip(*noises, strict=True)]


def joint_windows(task: Task, net: Backbone, windows: Sequence[Prompt], tick: Callable[[], None]) -> JointWindows:
    request = task.request
    assert request.source is not None
    shared = [request.source.shared_latents(window.window) for window in windows]
    # groups of processes that make other videos must evaluate a network that they hold together equally often
    keeps = request.hires.trainer.shares == 1
    file = partial(request.velocity_file, windows[0]) if keeps else None
    return JointWindows(net, request.device, shared, request.source.factor == 1, tick, file, task.writes)


def windows_of_each(request: GenerationRequest) -> int:
    return 1 if request.source is None else len(request.source.windows)


def calls_of(run: Run) -> int:
    """Calls of the network for one latent; guidance in one batch makes one call for two evaluations."""
    return run.sampling.num_steps if run.trainer.guidance_batch else evaluations(run)


def _zeros(request: GenerationRequest, stage: Denoising) -> tuple[list[Tensor], Condition, Condition]:
    """Noise and conditions of zeros, for a process that has no latent to make."""

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(1, *sizes, device=request.device)

    text = zeros(stage.run.backbone.text_tokens, stage.run.backbone.text_dim)
    condition = Condition(text, None if stage.anchor_file is None else zeros(*request.anchor_latent))
    latent = torch.zeros(stage_latent(stage.run))
    noise = [part[None].to(request.device) for part in noise_of_phases(stage.run, latent, 0)]
    return noise, condition, condition


def load_stage(request: GenerationRequest, stage: Denoising) -> Backbone:
    """The network of a stage, or the part of it that this process holds."""
    network = replace(network_of(stage.run), loras=stage.loras)
    if not request.is_split:
        return load_network(network, stage.source, request.weights, request.device)
    from pw.parallel.sharded import fill, mesh_of, shard  # imports lightning

    net = network_without_weights(network, stage.source, request.device)
    shard(net, net.dit.blocks, mesh_of(stage.run.trainer))
    full = None
    if torch.distributed.get_rank() == 0:  # one copy in memory, not one for each process
        device = request.device if stage.source == "random" else "cpu"  # the fastest place to draw 5e9 numbers
        eager = replace(network, compile=False)
        full = load_network(eager, stage.source, request.weights, device, request.device)
    fill(net, full, request.device)
    if stage.run.trainer.context > 1:
        share_tokens(net, groups_of(stage.run.trainer.context, request.device))
    return net
