"""The options of `pw system`, checked before anything loads (`make_call`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.systems import Diffusers, ExternalCommand, PixelWizard, Setting, System, find, read_card
from benchmarks.systems.jobs import VideoJob, input_jobs, make_jobs, read_prompts
from pw.io.arguments import ConfigError, keys, number, option, to_words
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS

SETTINGS = tuple(Setting.__annotations__)
SPLIT = "trainer=fsdp"
# kind of system -> its options that not all kinds have
KINDS = {
    "diffusers": ("trainer", "device", "offload", "lossless", "quality"),
    "pixelwizard": ("lossless", "quality"),
    "command": ("checkout", "python", "timeout"),
}
CRF = 10
ABOVE_ZERO = number(0, kind=float, excluded=(0,))


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    try:
        shares = number(1)(count)
        return number(0, shares - 1)(index), shares
    except ValueError:
        raise ValueError("expected i/n, the i-th of n shares, counted from 0, as 0/4") from None


def _length(text: str) -> int:
    """Height or width, px: every VAE reduces it by 8 or more."""
    length = number(8, 16_384)(text)
    if length % 8:
        raise ValueError(f"not a multiple of 8; use {length // 8 * 8} or {length // 8 * 8 + 8}")
    return length


@dataclass(frozen=True)
class SystemOptions:
    name: str = option("", "a system of the list that `pw system` prints, or a card of your own: a .yaml")
    prompts: Path | None = option(None, '.txt, a prompt a line; .jsonl of {"text", "long"?, "id"?}; vbench or vbench_6')
    inputs: Path | None = option(None, "the videos to be enlarged, for super-resolution")
    videos: Path | None = option(None, "register these videos instead; nothing is copied")
    seeds: int = option(1, "videos for each prompt; the seed of the noise is 0, 1, …", read=number(1, 10_000))
    out: Path | None = option(None, "outputs/systems/<name> by default; an existing video is not made again")
    limit: int | None = option(None, "only this number of videos, from the first", read=number(1))
    show: bool = option(False, "print the system's card, and do nothing")
    dry_run: bool = option(False, "print the commands without running them")
    accept_licence: bool = option(False, "accept a licence that restricts use")
    gpus: int = option(1, "a process for each GPU, each with its share", read=number(1, 64))
    shard: tuple[int, int] = option((0, 1), "i/n: the i-th of n shares, for a cluster's jobs", read=_shard)
    weights: str = option("", "a folder, or a repository on the Hugging Face hub, instead of the card's")
    width: int | None = option(None, "px, instead of the native setting", read=_length)
    height: int | None = option(None, "px, instead of the native setting", read=_length)
    frames: int | None = option(None, "instead of the native setting", read=number(1))
    fps: float | None = option(None, "1/s, instead of the native setting", read=ABOVE_ZERO)
    steps: int | None = option(None, "instead of the native setting", read=number(1))
    guidance: float | None = option(None, "instead of the native setting", read=ABOVE_ZERO)
    shift: float | None = option(None, "instead of the native setting", read=ABOVE_ZERO)
    trainer: str | None = option(None, "fsdp: with gpus=N one model over all GPUs, where it does not fit into one")
    device: str | None = option(None, "diffusers: auto, cpu or cuda")
    offload: bool | None = option(None, "diffusers: move parts between CPU and GPU")
    lossless: bool | None = option(None, "diffusers, PixelWizard: FFV1 (the default) or H.264")
    quality: int | None = option(None, f"diffusers, PixelWizard: x264's crf, {CRF} by default", read=number(0, 51))
    checkout: Path | None = option(None, "command: the folder of its repository, with its environment")
    python: str | None = option(None, "command: its interpreter, by default the checkout's .venv/bin/python")
    timeout: int | None = option(None, "command: seconds that a video may take", read=number(1))
    overrides: tuple[str, ...] = option((), "PixelWizard: any option of `pw generate`: hires=… anchor=…")


@dataclass(frozen=True)
class Call:
    """A checked call of `pw system`; overrides: words for `pw.generate.pipeline`."""

    options: SystemOptions
    card: Path
    system: System
    setting: Setting
    jobs: tuple[VideoJob, ...]
    out: Path
    overrides: tuple[str, ...]

    def words(self, gpus: int, first: int, parts: int) -> list[str]:
        """The command line of this call for share `first` of `parts`, on `gpus` GPUs."""
        rest = to_words(replace(self.options, gpus=gpus, shard=(0, 1)))
        return rest if parts == 1 else [*rest, f"shard={first}/{parts}"]

    @property
    def lossless(self) -> bool:
        return self.system.kind != "command" and self.options.lossless is not False

    @property
    def quality(self) -> int:
        return CRF if self.options.quality is None else self.options.quality

    @property
    def share(self) -> tuple[VideoJob, ...]:
        """The jobs of this process: every n-th from the i-th, finished ones included."""
        first, parts = self.options.shard
        return self.jobs[first::parts]

    @property
    def is_fsdp(self) -> bool:
        """Whether all GPUs share one diffusers model, in processes that `spread_over_gpus` starts."""
        return self.system.kind == "diffusers" and self.options.trainer == "fsdp"

    @property
    def is_split(self) -> bool:
        """Whether all GPUs share PixelWizard's networks, in processes that `pw.generate.pipeline` starts."""
        return self.system.kind == "pixelwizard" and SPLIT in self.overrides

    @property
    def weights(self) -> str | None:
        return self.options.weights or (self.system.weights.repository if self.system.kind == "diffusers" else None)

    @cached_property
    def device(self) -> str:
        if self.options.device not in (None, "auto"):
            return self.options.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def deviations(self) -> list[str]:
        """Differences of this call to the native setting, then the deviations of the card."""
        native, used = vars(self.system.setting), vars(self.setting)
        changes = [
            f"{key}={used[key]} instead of the native {native[key]}" for key in SETTINGS if used[key] != native[key]
        ]
        return [*changes, *self.system.deviations]

    def request(self, job: VideoJob) -> dict[str, Any]:
        """The inputs that determine the video of a job, as in its note."""
        request = {"prompt": job.prompt, "text": job.text, "seed": job.seed, **asdict(self.setting)}
        if job.input is not None:
            request["input"] = str(job.input)
        if self.system.kind != "command":
            request["crf"] = None if self.lossless else self.quality
        overrides = [word for word in self.overrides if word != SPLIT]  # it changes no video
        return request | {"asked_weights": self.weights, "further": overrides}


def make_call(options: SystemOptions) -> Call:
    """Check the options and build the call. Raises ConfigError naming the key, its value and a remedy."""
    card = find(options.name)
    system = read_card(card)
    if system.kind == "videos":
        raise ConfigError(f"name={system.name}: its videos cannot be made here; register existing ones with videos=DIR")
    overrides = _overrides(system, options)
    changes = {key: value for key in SETTINGS if (value := getattr(options, key)) is not None}
    for key, value in changes.items():
        if getattr(system.setting, key) is None:
            raise ConfigError(f"{key}={value:g}: {system.name} has no such setting (its card says null)")
    setting = replace(system.setting, **changes)
    jobs = _jobs(system, options)
    if system.licence.restricted and not options.accept_licence and not options.dry_run:
        raise ConfigError(
            f"{system.title} is under the licence {system.licence.name!r} ({system.licence.terms}); "
            "read it, and set accept_licence=true if you accept it"
        )
    if options.quality is not None and options.lossless is not False:
        raise ConfigError(f"quality={options.quality}: is for H.264; add lossless=false, or leave it out")
    match system.adapter:
        case Diffusers():
            _check_diffusers(options, setting)
        case PixelWizard():
            _check_pixelwizard(options, overrides)
        case ExternalCommand() as program:
            _check_program(program, options, jobs)
    out = (options.out or OUTPUTS / "systems" / system.name).absolute()
    return Call(options, card, system, setting, tuple(jobs), out, overrides)


def _overrides(system: System, options: SystemOptions) -> tuple[str, ...]:
    """Words for `pw.generate.pipeline`: overrides, and options that this command has only for other kinds."""
    other_keys = {key for kind in KINDS.values() for key in kind} - {*KINDS[system.kind]}
    other_options = replace(SystemOptions(), **{key: getattr(options, key) for key in other_keys})
    overrides = (*options.overrides, *to_words(other_options))
    if overrides and system.kind != "pixelwizard":
        known = [key for key in keys(SystemOptions) if key not in {*other_keys, "videos"}]
        raise ConfigError(f"{overrides[0]}: no option of {system.name} ({system.kind}); known: {', '.join(known)}")
    return overrides


def _jobs(system: System, options: SystemOptions) -> list[VideoJob]:
    if options.prompts is None and not system.enlarges:
        raise ConfigError('prompts=FILE: a .txt of one prompt a line or a .jsonl of {"text", "long"?, "id"?}')
    if (options.inputs is not None) != system.enlarges:
        problem = "set inputs=DIR, the videos to be enlarged" if system.enlarges else "takes no inputs"
        raise ConfigError(f"name={system.name}: {problem}")
    prompts = None if options.prompts is None else read_prompts(options.prompts)
    if options.inputs is not None:
        return input_jobs(options.inputs, prompts, options.seeds)[: options.limit]
    return make_jobs(prompts or [], options.seeds)[: options.limit]


def _check_diffusers(options: SystemOptions, setting: Setting) -> None:
    if options.trainer not in (None, "fsdp"):
        raise ConfigError(f"trainer={options.trainer}: use fsdp (one model over all GPUs), or leave it out")
    if options.offload and (options.device == "cpu" or options.trainer):
        raise ConfigError("offload=true: moves parts between CPU and GPU; not with device=cpu or trainer=fsdp")
    if options.lossless is False and ((setting.width or 0) % 2 or (setting.height or 0) % 2):
        raise ConfigError(f"lossless=false: expected even sizes, not {setting.width}x{setting.height}")


def _check_pixelwizard(options: SystemOptions, overrides: Sequence[str]) -> None:
    for key in ("guidance", "shift"):
        if (value := getattr(options, key)) is not None:
            raise ConfigError(f"{key}={value:g}: use an option of pw generate, e.g. schedule.shift=…")
    if invalid := [w for w in overrides if w.startswith("trainer=") and w not in ("trainer=gpu", "trainer=cpu", SPLIT)]:
        raise ConfigError(
            f"{invalid[0]}: gpus=N shares the videos; {SPLIT}, with gpus=N, splits each network, where it does not "
            "fit into one GPU"
        )
    if invalid := [w for w in overrides if w.startswith("trainer.devices=")]:
        raise ConfigError(f"{invalid[0]}: set gpus=N")


def _check_program(program: ExternalCommand, options: SystemOptions, jobs: Sequence[VideoJob]) -> None:
    from benchmarks.systems.external import fields

    names = fields(program.command)
    for key in ("steps", "guidance", "shift"):
        if (value := getattr(options, key)) is not None and key not in names:
            raise ConfigError(f"{key}={value:g}: its command has no such option, it would change nothing")
    if "seed" not in names and program.takes == "prompt" and any(job.seed for job in jobs):
        raise ConfigError(f"seeds={options.seeds}: its command takes no seed, all would be the same video; use seeds=1")
    if "weights" in names and not options.weights:
        raise ConfigError("weights=PATH: its command needs the path of the weights")
    if not options.dry_run and (options.checkout is None or not options.checkout.is_dir()):
        raise ConfigError(f"checkout={options.checkout or ''}: the folder of its repository, with its environment")
