"""The options of `pw generate`, and the request: one call, checked before anything loads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pw.generate.earlier_anchors import earlier_anchor
from pw.generate.source_image import SourceImage, read_image
from pw.generate.source_video import SourceVideo, VideoFile
from pw.generate.stage_runs import (
    check_decoder,
    check_memory,
    check_processes,
    check_windows,
    has_own_codec,
    hires_run,
    split_overrides,
    stage_runs,
    stage_source,
    with_tiles,
    with_training,
)
from pw.io.arguments import ConfigError, check_path, number, option
from pw.io.files import check_writable, digest, parse_json
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS
from pw.io.prompts import prompt_entries
from pw.method.solver import JumpAndRenoise
from pw.nn.options import WanVAE
from pw.parallel.team import Place, current_place
from pw.run.build import Run
from pw.run.compose import override_key
from pw.stages import network_of
from pw.train.preflight import check_device

if TYPE_CHECKING:
    from pw.nn.text import TextEncoder

SLUG = 40  # largest number of letters of the prompt in a file name

CRF = 16

Text = tuple[str, int | None]  # (text of a prompt, its seed if the file has one)


def _path(text: str) -> str:
    check_path(text)
    return text


def _scales(text: str) -> tuple[float, ...]:
    read = number(-100, 100, float)
    # six digits, as the words of a call to other processes have them (`to_words`)
    return tuple(float(f"{read(part.strip()):g}") for part in text.strip("[]").split(","))


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `pw generate`. `overrides` are for stage II, those that begin with `anchor.` for stage I."""

    prompt: str | None = option(None, "text prompt", read=str)
    prompts: str | None = option(None, ".txt, a prompt a line; .jsonl with seeds; vbench or vbench_6", read=_path)
    hires: str | None = option(
        None, "stage II's weights: a checkpoint, an export, a training's signature, or random", read=_path
    )
    anchor: str = option("base", "stage I's weights; base is Wan's own", read=_path)
    weights: str | None = option(
        None, "Wan's weights in diffusers' layout (`make weights` fetches them); or random", read=_path
    )
    lora: tuple[Path, ...] = option((), "LoRAs for stage II: FILE or [FILE,FILE], .safetensors")
    lora_scale: tuple[float, ...] = option((), "of each, e.g. [1,0.5]; 1 by default", read=_scales)
    anchor_lora: tuple[Path, ...] = option((), "LoRAs for stage I", key="anchor.lora")
    anchor_lora_scale: tuple[float, ...] = option((), "of each", read=_scales, key="anchor.lora_scale")
    anchors_from: Path | None = option(None, "the `out` of an earlier call, whose anchors are used")
    video: Path | None = option(None, "a video of yours in the place of stage I, of any size, rate and length")
    image: Path | None = option(None, "an image that is the first frame of the video")
    out: Path | None = option(None, "outputs/generated/SCALE by default")
    frames: int | None = option(None, "of the video, 1 is an image; with video= of a window", read=number(1, 100_000))
    fps: float | None = option(None, "frames a second; 24, or those of video=", read=number(1, 240, float))
    quality: int | None = option(None, f"CRF of H.264, 0 (best) to 51; {CRF} by default", read=number(0, 51))
    lossless: bool = option(False, "FFV1 in .mkv instead")
    text_device: Literal["auto", "cpu", "gpu"] = option("auto", "where the text encoder runs")
    outputs: Path | None = option(None, "results folder of a training")
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One video: its text, the seed of its noise, the stem of its files, and the file of an existing anchor, if any.

    window  its number among the windows of a long video, whose latents have files of their own
    """

    text: str
    seed: int
    name: str
    anchor: Path | None = None
    window: int = 0


@dataclass
class GenerationRequest:
    """One checked call: prompts, stages, weights and output folder.

    hires, anchor    stage II and stage I, None with a video in its place; `*_source`: where their weights come from;
                     `*_loras`: (file, scale) of LoRAs that are merged into these
    weights          folder of Wan's weights, None for random weights
    seconds, peaks   prompt -> part -> wall time in s and peak memory in GB, recorded while videos are made
    """

    options: GenerateOptions
    hires: Run
    anchor: Run | None
    hires_source: str
    anchor_source: str
    weights: Path | None
    out: Path
    hires_loras: tuple[tuple[Path, float], ...] = ()
    anchor_loras: tuple[tuple[Path, float], ...] = ()
    source: SourceVideo | None = None
    image: SourceImage | None = None
    prompts: list[Prompt] = field(default_factory=list)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cuda" if self.hires.trainer.accelerator == "gpu" else "cpu"

    @property
    def is_split(self) -> bool:
        """Whether several processes hold each network together."""
        return self.hires.trainer.strategy == "fsdp"

    @property
    def place(self) -> Place | None:
        """The place of this process among all; None if they are not started yet."""
        return current_place(self.hires.trainer) if self.is_split else Place(0, 1)

    @cached_property
    def identity(self) -> str:
        """16 hex digits of everything that decides a video, except its prompt."""
        from pw.io.wan_weights import fingerprint

        sources = [source if source in ("base", "random") else fingerprint(Path(source)) for _, source in self.stages]
        base = None if self.weights is None else fingerprint(self.weights)
        negative = [run.text and run.text.negative_prompt for run, _ in self.stages]
        # `sage` is not exact
        devices = [self.device, self.hires.trainer.attention, *(run.trainer.attention for run, _ in self.stages[:-1])]
        codec: Any = self.hires.codec
        decode: list[Any] = (
            [codec.decoder, codec.side, codec.overlap] if isinstance(codec, WanVAE) else []
        )  # of its seams
        if decode and codec.decoder_file is not None:
            decode.append(fingerprint(Path(codec.decoder_file)))
        parts = [self.hires.signature, self.anchor and self.anchor.signature, sources, base, negative, devices, decode]
        if self.source is not None:
            crop = [[span.start, span.stop] for span in self.source.crop]
            parts.append([self.source.fingerprint, self.fps, self.source.frames, crop])
        if self.image is not None:
            parts.append(["image", self.image.fingerprint])
        if self.hires_loras or self.anchor_loras:
            stages = (self.anchor_loras, self.hires_loras)
            parts.append([[(fingerprint(path), scale) for path, scale in loras] for loras in stages])
        return digest(parts, 16)

    @property
    def stages(self) -> list[tuple[Run, str]]:
        """(run, source of its weights) of each stage that is computed, in order."""
        anchor = [] if self.anchor is None else [(self.anchor, self.anchor_source)]
        return [*anchor, (self.hires, self.hires_source)]

    @property
    def anchor_latent(self) -> tuple[int, int, int, int]:
        """(C, F, h, w) of an anchor's latent."""
        codec, scale = self.hires.codec, self.hires.scale
        rows, columns = (length // codec.factor for length in scale.anchor_size)
        return codec.channels, codec.latent_frames(scale.frames), rows, columns

    @property
    def fps(self) -> float:
        return self.options.fps or (24.0 if self.source is None else self.source.fps)

    @property
    def frames(self) -> int:
        """Of the whole video."""
        return self.hires.scale.frames if self.source is None else self.source.frames

    def windows(self, prompt: Prompt) -> list[Prompt]:
        """The parts in which a video is made, in order: itself, or the windows of `video=`."""
        count = 1 if self.source is None else len(self.source.windows)
        if count == 1:
            return [prompt]
        return [replace(prompt, name=f"{prompt.name}.{number:04d}", window=number) for number in range(count)]

    def video_of(self, window: Prompt) -> Prompt:
        """The prompt that a window is of."""
        return replace(window, name=window.name.removesuffix(f".{window.window:04d}"), window=0)

    def video(self, prompt: Prompt) -> Path:
        """The video file of a prompt: .mp4, .mkv if lossless, .png for a single frame."""
        suffix = "png" if self.hires.scale.frames == 1 else "mkv" if self.options.lossless else "mp4"
        return self.out / f"{prompt.name}.{suffix}"

    def manifest(self, prompt: Prompt) -> Path:
        return self.video(prompt).with_suffix(f"{self.video(prompt).suffix}.json")

    def anchor_file(self, prompt: Prompt) -> Path:
        """The latent of the anchor; this file stays."""
        return self.out / "anchors" / f"{prompt.name}.safetensors"

    def upsampled_file(self, prompt: Prompt) -> Path:
        """The latent of the enlarged anchor (`scale.anchor_upsample=pixel`), until the video is done."""
        return self.out / "latents" / f"{prompt.name}.anchor.safetensors"

    def latent_file(self, prompt: Prompt) -> Path:
        """The latent of stage II, until the video is done."""
        return self.out / "latents" / f"{prompt.name}.safetensors"

    def velocity_file(self, prompt: Prompt, evaluation: int, index: int) -> Path:
        """The velocity of a window of the video, and of a branch of guidance, until the video is done."""
        name = (
            f"{self.video_of(prompt).name}.{'b' if self.hires.trainer.guidance_batch else 'v'}"  # both branches at once
        )
        return self.out / "latents" / f"{name}{evaluation:04d}.{index:04d}.safetensors"

    def image_file(self, prompt: Prompt, stage: str) -> Path:
        """The latent of the image at a stage's size, until the video is done."""
        return self.out / "latents" / f"{prompt.name}.image_{stage}.safetensors"

    def remove_latents(self, prompt: Prompt) -> None:
        """Remove the latents of a finished video; its anchor stays."""
        for path in (self.out / "latents").glob(f"{prompt.name}.[vi]*.safetensors"):
            path.unlink(missing_ok=True)
        for part in self.windows(prompt):
            for path in (self.latent_file(part), self.upsampled_file(part)):
                path.unlink(missing_ok=True)

    @property
    def quality(self) -> int | Literal["lossless"]:
        return "lossless" if self.options.lossless else self.crf

    @property
    def crf(self) -> int:
        """Constant rate factor of H.264."""
        return CRF if self.options.quality is None else self.options.quality

    def is_done(self, prompt: Prompt) -> bool:
        """Whether the video and its manifest exist, with the requested rate and quality."""
        if not self.manifest(prompt).exists() or not self.video(prompt).exists():
            return False
        content = parse_json(self.manifest(prompt).read_text())
        return (content["fps"], content["quality"]) == (self.fps, self.quality)

    def text_encoder(self) -> TextEncoder | None:
        """Wan's text encoder, which loads at its first use; None for random weights."""
        if self.weights is None:
            return None
        from pw.io.wan_weights import fingerprint
        from pw.nn.text import TextEncoder

        device = {"cpu": "cpu", "gpu": "cuda", "auto": self.device}[self.options.text_device]
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("text_device=gpu: torch sees no CUDA device here; leave it at auto")
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32  # 11.4 GB, on a CPU twice that
        name = fingerprint(self.weights / "text_encoder")
        return TextEncoder(self.weights, self.hires.backbone.text_tokens, self.out / "text", name, device, dtype)


def _read_prompts(options: GenerateOptions) -> list[Text]:
    """The prompts of `prompt=` or of the file `prompts=`. Raises ConfigError with the line."""
    if has_own_codec(options.video, options.weights, options.overrides):
        if (options.prompt, options.prompts) != (None, None):
            raise ConfigError(
                "prompt=…: the networks of scale=tiny and small take no text; leave it out, or set weights=random"
            )
        return [("", None)]
    if (options.prompt is None) == (options.prompts is None):
        raise ConfigError('give either prompt="…" or prompts=FILE (a .txt of one prompt a line, or a .jsonl)')
    texts: list[Text] = [] if options.prompt is None else [(options.prompt, None)]
    if options.prompts is not None:
        for location, entry in prompt_entries(Path(options.prompts).expanduser(), "prompt", '{"prompt": "…"}'):
            text, seed = entry["prompt"], entry.get("seed")
            if not isinstance(text, str) or not (seed is None or type(seed) is int):
                raise ConfigError(f"{location}: expected text for prompt and a whole number for seed")
            texts.append((text, seed))
    for n, (text, _) in enumerate(texts, start=1):
        check_text(text, f"prompt {n} of {len(texts)}")
    return texts


def _video_file(options: GenerateOptions, anchor_overrides: list[str]) -> VideoFile | None:
    """The file of `video=`. Raises ConfigError for one that cannot be read, and for what stage I alone uses."""
    if options.video is None:
        return None
    unused = [f"anchor.{override}" for override in anchor_overrides]
    unused += [f"anchor.lora={path}" for path in options.anchor_lora]
    unused += [f"anchors_from={options.anchors_from}"] if options.anchors_from is not None else []
    unused += [f"anchor={options.anchor}"] if options.anchor != "base" else []
    if unused:
        raise ConfigError(f"{unused[0]}: with video= there is no stage I, the video is the anchor; leave one out")
    file = VideoFile(options.video, options.fps)
    _ = file.info
    return file


def check_text(text: str, name: str = "prompt") -> None:
    """Raises ConfigError for a prompt without a word, or with half a character, which no file can hold."""
    if not text.strip():
        raise ConfigError(f"{name} is empty: write a text prompt")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}: character {error.start + 1} is half a surrogate pair; write the whole") from error


def make_request(
    options: GenerateOptions, announce: Callable[[GenerationRequest], None] = lambda request: None
) -> GenerationRequest:
    """The checked request. Raises ValueError (ConfigError, WeightsError) with the key and a valid value.

    announce  called before the last checks, which import torch and diffusers, for half a minute on a slow disk
    """
    from pw.generate.estimate import pays_to_compile
    from pw.io.wan_weights import check, locate

    is_own = has_own_codec(options.video, options.weights, options.overrides)
    overrides, anchor_overrides = split_overrides(options.overrides, is_own)
    if options.image is not None and (options.video or options.anchors_from) is not None:
        key = "anchors_from" if options.video is None else "video"
        raise ConfigError(f"{key}=…: has a first frame of its own, image= gives another; leave one out")
    file = _video_file(options, anchor_overrides)
    if options.anchors_from is not None and not options.anchors_from.is_dir():
        raise ConfigError(f"anchors_from={options.anchors_from}: no such folder; it is the `out` of an earlier call")
    if options.anchors_from is not None and options.anchor_lora:
        raise ConfigError(
            f"anchor.lora={options.anchor_lora[0]}: with anchors_from= stage I is not computed; leave one out"
        )
    if options.lossless and options.quality is not None:
        raise ConfigError(f"quality={options.quality}: is for H.264, lossless=true writes FFV1; leave one out")
    texts = _read_prompts(options)
    loras = _loras("", options.lora, options.lora_scale)
    anchor_loras = _loras("anchor.", options.anchor_lora, options.anchor_lora_scale)
    weights = None if options.weights == "random" or is_own else locate(options.weights)
    if weights is not None:
        check(weights, ("transformer", "vae", "text_encoder", "tokenizer"))
    sources = (
        stage_source("hires", options.hires, weights, options.outputs),
        "random" if file is not None else stage_source("anchor", options.anchor, weights, options.outputs),
    )
    anchor = None
    if file is None:
        stage_overrides = with_training(sources[0], overrides), with_training(sources[1], anchor_overrides)
        hires, anchor = stage_runs(*stage_overrides, weights, options.frames)
    else:
        overrides = with_training(sources[0], overrides, anchors=True)
        hires = hires_run(overrides, weights, options.frames, own=is_own)
        overrides = [o for o in overrides if override_key(o) != "scale.frames"]
        hires = hires_run(overrides, weights, file.window(hires), own=is_own)
    check_processes(hires)
    check_decoder(hires)
    check_device(hires)
    hires, anchor = with_tiles(hires, anchor)
    check_memory(hires, anchor)
    out = options.out or OUTPUTS / "generated" / hires.scale.name
    check_writable("out", out)
    source = None if file is None else file.source(hires, options.lossless)
    if source is not None:
        check_windows(hires, source)
    if source is not None and len(source.windows) > 1 and isinstance(hires.solver, JumpAndRenoise):
        raise ConfigError(
            f"video={options.video}: its {len(source.windows)} windows would not agree in the fresh noise of "
            "solver=consistency; take a shorter video, or solver=euler"
        )
    image = None if options.image is None else read_image(options.image, hires)
    request = GenerationRequest(options, hires, anchor, *sources, weights, out, loras, anchor_loras, source, image)
    request.prompts = named_prompts(request, texts)
    has_casts = any(run.trainer.storage == "fp8" for run, _ in request.stages)
    if hires.trainer.compile is None and not has_casts and pays_to_compile(request):
        request.hires = hires.with_values({"trainer.compile": True})
        request.anchor = anchor and anchor.with_values({"trainer.compile": True})
    announce(request)
    _check_weights(request)
    return request


def _loras(prefix: str, files: tuple[Path, ...], scales: tuple[float, ...]) -> tuple[tuple[Path, float], ...]:
    """(file, scale) of each LoRA. Raises ConfigError for a file that is not there, or another number of scales."""
    for file in files:
        if not file.is_file() or file.suffix != ".safetensors":
            raise ConfigError(
                f"{prefix}lora={file}: {'is no' if file.exists() else 'there is no such'} .safetensors file"
            )
    if scales and len(scales) != len(files):
        raise ConfigError(
            f"{prefix}lora_scale={list(scales)}: {len(scales)} scales for {len(files)} files; give each one"
        )
    return tuple(zip(files, scales or (1.0,) * len(files), strict=True))


def named_prompts(request: GenerationRequest, texts: list[Text]) -> list[Prompt]:
    """The prompts with seeds, anchors and file names. Raises ConfigError for duplicates."""
    from pw.io.wan_weights import fingerprint

    anchors_from, source = request.options.anchors_from, request.source
    prompts: dict[str, Prompt] = {}
    for text, file_seed in texts:
        seed = request.hires.seed if file_seed is None else file_seed
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed={seed}: a whole number from 0 to {2**32 - 1}")
        anchor = None if anchors_from is None else earlier_anchor(anchors_from, text, seed, (1, *request.anchor_latent))
        words = text or (source.path.stem if source else "")
        slug = re.sub(r"[^a-z0-9]+", "-", words.lower())[:SLUG].strip("-") or "prompt"
        key = [text, seed, request.identity, *([] if anchor is None else [fingerprint(anchor)])]
        name = f"{slug}_{digest(key, 8)}"
        if name in prompts:
            raise ConfigError(f"prompts: {text[:60]!r} with seed {seed} occurs twice; give it another seed")
        prompts[name] = Prompt(text, seed, name, anchor)
    return list(prompts.values())


def _check_weights(request: GenerationRequest) -> None:
    """Raises ValueError if an attention kernel is missing, weights do not fit, or a prompt is too long."""
    from pw.nn.lora import check_loras
    from pw.nn.networks import check_checkpoint, check_kernel
    from pw.nn.tiny_decoder import sizes_of

    for run, source in request.stages:
        check_kernel(network_of(run), request.device)
        if source not in ("base", "random"):
            check_checkpoint(network_of(run), Path(source))
    for prefix, loras in (("", request.hires_loras), ("anchor.", request.anchor_loras)):
        try:
            check_loras(request.hires.backbone, loras)
        except ValueError as error:
            raise ConfigError(f"{prefix}lora={error}") from error
    codec = request.hires.codec
    if isinstance(codec, WanVAE) and codec.decoder_file is not None:
        sizes_of(Path(codec.decoder_file), codec.channels)
    encoder = request.text_encoder()
    if encoder is None:
        return
    encoder.check([prompt.text for prompt in request.prompts])
    for run, _ in request.stages:
        assert run.text is not None
        prefix = "anchor." if run.stage == "anchor" else ""
        encoder.check([run.text.negative_prompt], f"{prefix}text.negative_prompt")
