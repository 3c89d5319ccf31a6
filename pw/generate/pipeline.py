"""Prompt -> video: text encoding, stage I, stage II, tiled decode, each network on the device by itself.

    pw generate prompt="a heron lifts off a misty lake" scale=2k hires=DIR-OR-FILE [key=value …]

Keys of its own (everything else is an override of conf/ for stage II; `anchor.KEY=VALUE` is one for stage I):

    prompt=…             or prompts=FILE: a .txt of one prompt a line, or a .jsonl of {"prompt": …, "seed": …}
    hires=…              stage II's weights: a checkpoint, an export, a training's signature, or `random`
    anchor=…             stage I's weights; without it Wan's own
    weights=DIR          Wan's weights in diffusers' layout (`make weights` fetches them); `random` needs no `hires`
    anchors_from=DIR     take the anchors of an earlier call from its `out`
    out=DIR              outputs/generated/<scale> by default
    frames=N fps=24 quality=16 lossless=false   `frames=1` makes images
    text_device=auto     or cpu, gpu: where the text encoder runs
    trainer=fsdp trainer.devices=N    splits each network over N GPUs, where one GPU is too small for it
    trainer.context=M                 has groups of M of them make each video together, in nearly an Mth of the time

Every part is done for all prompts before the next one loads, and kept as a file: a call that was stopped goes on where
it was, and a prompt that is done is never made again. Several calls may share prompts and `out`, one for each GPU: what
one is making, the others leave to it.

With `trainer=fsdp` one call starts a process for each GPU (`pw.parallel`). Each makes videos of its own, the
same ones that a single process makes, but all evaluate their networks at the same time, since each holds only a part
of the weights (`pw.parallel.sharded`). With `trainer.context` above 1 so many processes share the tokens of a video
(`pw.nn.context`) and the tiles of its decode; the first of them encodes its text, and writes. Text encoder and VAE are
whole in every process that uses them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.files import digest, write_json
from pw.io.imports import quiet
from pw.io.paths import OUTPUTS
from pw.parallel.launch import exit_with_parent, launch, report_failure
from pw.parallel.place import PLACE, Place, current_place
from pw.parallel.signals import Stopped, ignore_closed_stream
from pw.parallel.team import Team, join_team
from pw.run.build import Run, build
from pw.run.compose import ConfigError, override_key
from pw.run.provenance import provenance
from pw.train.preflight import check_device
from pw.train.record import written_overrides

if TYPE_CHECKING:
    from torch import Tensor

OWN = {
    "prompt": None,
    "prompts": None,
    "hires": None,
    "anchor": "base",
    "weights": None,
    "anchors_from": None,
    "out": None,
    "frames": None,
    "fps": "24",
    "quality": "16",
    "lossless": "false",
    "text_device": "auto",
    "outputs": None,
}
BOTH = {"scale", "backbone", "codec", "text", "trainer", "seed", "train"}  # what stage I shares with stage II
# What makes a small pipeline of Wan's make out of scale=tiny, which has a codec and sizes of its own.
TINY = (
    *("codec=wan_vae", "text=umt5", "guidance=on", "data=none", "start=none", "scale.anchor_upsample=latent"),
    *("scale.frames=9", "scale.height=128", "scale.width=192", "scale.anchor_height=64", "scale.anchor_width=96"),
)
# What of a training's configuration its network goes on needing.
NETWORK = {
    *("scale", "backbone", "codec", "text", "injector", "schedule"),
    *("objective", "turns", "step_sampler", "weighting", "target"),
}
NOISE = 8  # stream of random numbers, see pw.stages.stage
OTHER_FILES = 512  # that are open beside the prompts' locks, libraries and weights among them
SLUG = 40  # letters of the prompt in a file's name


@dataclass(frozen=True)
class Prompt:
    """One video to make: its text, the seed of its noise, the name of its files, and the anchor it was given."""

    text: str
    seed: int
    name: str
    anchor: Path | None = None


@dataclass
class Generation:
    """One call, checked: what is made of what, and where it goes.

    words  the command line, for the processes of several GPUs
    """

    hires: Run
    anchor: Run
    prompts: list[Prompt]
    out: Path
    weights: Path | None  # None: random
    hires_source: str
    anchor_source: str
    anchors_from: Path | None
    fps: float
    quality: int
    lossless: bool
    text_device: str
    words: tuple[str, ...] = ()
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where the networks run."""
        return "cuda" if self.hires.trainer.accelerator == "gpu" else "cpu"

    @property
    def is_split(self) -> bool:
        """Whether several processes hold each network together."""
        return self.hires.trainer.strategy == "fsdp"

    @property
    def place(self) -> Place | None:
        """Which of the processes this one is; None when they have yet to be started."""
        return current_place(self.hires.trainer) if self.is_split else Place(0, 1)

    @cached_property
    def identity(self) -> str:
        """16 hex digits of everything but the prompt that decides what is made."""
        from pw.io.wan_weights import fingerprint

        sources = [source if source in ("base", "random") else fingerprint(Path(source)) for source in self.sources]
        base = None if self.weights is None else fingerprint(self.weights)
        away = [run.text and run.text.negative_prompt for run in (self.anchor, self.hires)]
        how = [self.device, self.hires.trainer.attention, self.anchor.trainer.attention]  # `sage` is not exact
        return digest([self.hires.signature, self.anchor.signature, sources, base, away, how], 16)

    @property
    def sources(self) -> tuple[str, str]:
        """Where the weights of stage I and II come from."""
        return self.anchor_source, self.hires_source

    def video(self, prompt: Prompt) -> Path:
        """The finished file of a prompt: .mp4, .mkv if lossless, .png of a single frame."""
        ending = "png" if self.hires.scale.frames == 1 else "mkv" if self.lossless else "mp4"
        return self.out / f"{prompt.name}.{ending}"

    def manifest(self, prompt: Prompt) -> Path:
        """What was made, how, and at what cost: written last."""
        return self.video(prompt).with_suffix(f"{self.video(prompt).suffix}.json")

    def anchor_file(self, prompt: Prompt) -> Path:
        """The anchor's latent, kept."""
        return self.out / "anchors" / f"{prompt.name}.safetensors"

    def latent_file(self, prompt: Prompt) -> Path:
        """Stage II's latent, until it is decoded."""
        return self.out / "latents" / f"{prompt.name}.safetensors"

    def is_done(self, prompt: Prompt) -> bool:
        """Whether the video and its manifest are there, at this rate and quality."""
        if not self.manifest(prompt).exists() or not self.video(prompt).exists():
            return False
        about = json.loads(self.manifest(prompt).read_text())
        return (about["fps"], about["quality"]) == (self.fps, "lossless" if self.lossless else self.quality)


Progress = Callable[[str, float, float], None]


# ---- what is asked for, checked before anything loads


def parse(arguments: Sequence[str]) -> Generation:
    """A call from its words. Raises ValueError (ConfigError, WeightsError) naming the key and what would do."""
    from pw.io.wan_weights import check, fingerprint, locate

    own, overrides, below = dict(OWN), [], []
    for word in arguments:
        key, _, value = word.partition("=")
        if key in OWN:
            if not value and key != "prompt":
                raise ConfigError(f"{key}=: says nothing; give {key} a value, or leave it out")
            own[key] = value
        elif key.startswith("anchor."):
            below.append(word.removeprefix("anchor."))
        else:
            overrides.append(word)
    _check_keys(overrides, below)
    texts = _texts(own)
    is_random = own["weights"] == "random"
    weights = None if is_random else locate(own["weights"])
    if weights is not None:
        check(weights, ("transformer", "vae", "text_encoder", "tokenizer"))
    hires_source = _source(own, "hires", "random" if is_random else None)
    anchor_source = _source(own, "anchor", "random" if is_random else "base")
    overrides = [*_as_trained(hires_source, overrides), *overrides]
    below = [*_as_trained(anchor_source, below), *below]
    hires, anchor = _runs(own, overrides, below, weights)
    _check_processes(hires, anchor)
    check_device(hires)
    _check_memory(hires, anchor)
    out = Path(own["out"] or OUTPUTS / "generated" / hires.scale.name).expanduser()
    _check_folder(out)
    made = Generation(
        hires=hires,
        anchor=anchor,
        prompts=[],
        out=out,
        weights=weights,
        hires_source=hires_source,
        anchor_source=anchor_source,
        anchors_from=None if own["anchors_from"] is None else Path(own["anchors_from"]).expanduser(),
        fps=_number(own, "fps", 1, 240),
        quality=int(_number(own, "quality", 0, 51)),
        lossless=_truth(own, "lossless"),
        text_device=_choice(own, "text_device", ("auto", "cpu", "gpu")),
        words=tuple(arguments),
    )
    for text, asked in texts:
        seed = hires.seed if asked is None else asked
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: a whole number from 0 to {2**32 - 1}")
        given = _given_anchor(made, text, seed)
        slug = re.sub(r"[^a-z0-9]+", "-", text.lower())[:SLUG].strip("-") or "prompt"
        key = [text, seed, made.identity, *([fingerprint(given)] if given else [])]
        made.prompts.append(Prompt(text, seed, f"{slug}_{digest(key, 8)}", given))
    if len({prompt.name for prompt in made.prompts}) < len(made.prompts):
        twice = next(p for i, p in enumerate(made.prompts) if p.name in {q.name for q in made.prompts[:i]})
        raise ValueError(f"prompts: {twice.text[:60]!r} with seed {twice.seed} is there twice; give it another seed")
    _check_networks(made)
    encoder = _text_encoder(made)
    if encoder is not None:
        encoder.check([text for text, _ in texts])
        for stage, run in (("", hires), ("anchor.", anchor)):
            assert run.text is not None
            encoder.check([run.text.negative_prompt], f"{stage}text.negative_prompt")
    return made


def _check_keys(overrides: Sequence[str], below: Sequence[str]) -> None:
    """Raises ConfigError for overrides that are none of a generation's."""
    for before, words in (("", overrides), ("anchor.", below)):
        for word in words:
            key, _, value = word.partition("=")
            if key == "stage":
                raise ConfigError(f"{before}{word}: a video is made by both stages; anchor.KEY=VALUE is for stage I")
            if key == "trainer.weights":
                raise ConfigError(f"{before}{word}: here it is weights=DIR")
            if (key, value) == ("text", "none"):
                raise ConfigError(f"{before}{word}: a prompt needs an encoder; leave it at umt5")


def _check_folder(out: Path) -> None:
    """Raises ConfigError unless files can be written to `out`, which need not be there yet."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"out={out}: {there} is a file; wants a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"out={out}: {there} may not be written to; choose another out=")


def _check_networks(made: Generation) -> None:
    """That kernels are there and checkpoints fit, before anything is computed. Raises ValueError otherwise."""
    from pw.nn.networks import check_checkpoint, check_kernel

    for run, source in ((made.anchor, made.anchor_source), (made.hires, made.hires_source)):
        check_kernel(_network(run), made.device)
        if source not in ("base", "random"):
            check_checkpoint(_network(run), Path(source))


def _check_processes(hires: Run, anchor: Run) -> None:
    """Raises ConfigError unless one process makes the videos, or those of one machine that this module starts."""
    for stage, run in (("", hires), ("anchor.", anchor)):
        if run.trainer.strategy not in ("single", "fsdp"):
            raise ConfigError(
                f"{stage}trainer={run.config.choices['trainer']}: to generate, trainer=fsdp splits each network over "
                "trainer.devices GPUs; where it fits into one, give each GPU the same call with trainer=gpu"
            )
    ours, below = hires.trainer, anchor.trainer
    for key in ("accelerator", "strategy", "devices", "nodes", "context"):
        if getattr(ours, key) != getattr(below, key):
            raise ConfigError(f"anchor.trainer.{key}={getattr(below, key)}: stage II has {getattr(ours, key)}")
    if ours.strategy == "single":
        return
    if ours.nodes > 1:
        raise ConfigError(f"trainer.nodes={ours.nodes}: a network is split over the GPUs of one machine; set it to 1")
    place = current_place(ours)
    if place is not None and place.processes > 1 and not place.is_launched:
        raise ConfigError("trainer=fsdp: starts its processes by itself; call it once, without torchrun or srun")
    if place is not None and ours.accelerator == "gpu":
        import torch

        torch.cuda.set_device(place.local_rank)


def _check_memory(hires: Run, anchor: Run) -> None:
    """Raises ValueError when the GPU is too small, with the nearest setting that fits."""
    if hires.trainer.accelerator != "gpu" or current_place(hires.trainer) is None:  # whoever launches needs no GPU
        return
    import torch

    from pw.cost.planner import check_generation

    check_generation(hires, anchor, torch.cuda.mem_get_info()[0], torch.cuda.device_count())


def _text_encoder(made: Generation) -> Any:
    """Wan's encoder, not loaded yet; None for random weights."""
    if made.weights is None:
        return None
    import torch

    from pw.io.wan_weights import fingerprint
    from pw.nn.text import TextEncoder

    device = {"cpu": "cpu", "gpu": "cuda", "auto": made.device}[made.text_device]
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("text_device=gpu: torch sees no CUDA device here; leave it at auto")
    dtype = torch.bfloat16 if made.device == "cuda" else torch.float32  # 11.4 GB, on a CPU too
    name = fingerprint(made.weights / "text_encoder")
    cache = made.out / "text"
    return TextEncoder(made.weights, made.hires.backbone.text_tokens, cache, name, device, dtype)


def _texts(own: dict[str, Any]) -> list[tuple[str, int | None]]:
    if (own["prompt"] is None) == (own["prompts"] is None):
        raise ValueError('give prompt="…" or prompts=FILE (a .txt of one prompt a line, or a .jsonl), one of them')
    if own["prompt"] is not None:
        found: list[tuple[str, int | None]] = [(own["prompt"], None)]
    else:
        path = Path(own["prompts"]).expanduser()
        if not path.is_file():
            raise ValueError(f"prompts={path}: no such file")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"prompts={path}: is not UTF-8 ({error})") from error
        # not splitlines: it would also cut at separators that a prompt may hold
        lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if path.suffix == ".jsonl":
            found = [_json_prompt(line, number, path) for number, line in lines]
        elif path.suffix == ".txt":
            found = [(line, None) for _, line in lines]
        else:
            raise ValueError(f'prompts={path}: wants a .txt of one prompt a line or a .jsonl of {{"prompt": …}}')
        if not found:
            raise ValueError(f"prompts={path}: there is no prompt in it")
    for number, (text, _) in enumerate(found, start=1):
        if not text.strip():
            raise ValueError(f"prompt {number} of {len(found)} is empty: describe what is to be seen")
    return found


def _json_prompt(line: str, number: int, path: Path) -> tuple[str, int | None]:
    try:
        entry = json.loads(line)
        text, seed = entry["prompt"], entry.get("seed")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'prompts={path}: line {number} is not {{"prompt": "…"}}: {line[:60]}') from error
    if not isinstance(text, str) or not (seed is None or type(seed) is int):
        raise ValueError(f"prompts={path}: line {number}: prompt is text and seed a whole number")
    return text, seed


def _runs(own: dict[str, Any], overrides: list[str], below: list[str], weights: Path | None) -> tuple[Run, Run]:
    from pw.io.wan_weights import overrides_of

    size = [] if weights is None else [*overrides_of(weights), f"trainer.weights={json.dumps(str(weights))}"]
    if own["frames"] is not None:
        size.append(f"scale.frames={int(_number(own, 'frames', 1, 100_000))}")
    scale = next((o for o in overrides if override_key(o) == "scale"), "scale=2k")
    real = TINY if scale == "scale=tiny" else ()
    first = [scale, *real, *size]
    shared = [o for o in overrides if override_key(o).split(".")[0] in BOTH]
    hires = build(_last([*first, "stage=hires", *overrides]))
    wan = ["solver=unipc", "sampling.grid=wan", "sampling.start=1.0"]  # method.md 4: Wan's own defaults
    try:
        anchor = build(_last([*first, "stage=anchor", *wan, *shared, *below]))
    except ConfigError as error:
        key = str(error).partition("=")[0]
        if key in {override_key(o) for o in (*first, *shared)}:
            raise
        raise ConfigError(f"anchor.{error}") from error  # as it was said, or would have to be
    for stage, run in (("", hires), ("anchor.", anchor)):
        if run.guidance.drop != "text":
            raise ConfigError(f"{stage}guidance.drop={run.guidance.drop}: with a prompt, guidance drops the text")
    if hires.injector is None:
        raise ConfigError("injector=none: stage II is given an anchor; choose the injector that it was trained with")
    return hires, anchor


def _last(overrides: Sequence[str]) -> list[str]:
    """The last word on each key: Hydra takes one choice of a group."""
    return list({override_key(o): o for o in overrides}.values())


def _as_trained(source: str, said: Sequence[str]) -> list[str]:
    """What a training of ours, or an export of one, was configured with, but for what the call says itself."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if (folder / "config.yaml").exists():
        found = written_overrides(folder)
    elif (path / "pixelwizard" / "config.json").exists():
        found = json.loads((path / "pixelwizard" / "config.json").read_text())["overrides"]
    else:
        return []
    keys = {override_key(o) for o in said}
    return [
        o
        for o in found
        if override_key(o).split(".")[0] in NETWORK and not keys & {override_key(o), override_key(o).split(".")[0]}
    ]


def _source(own: dict[str, Any], key: str, default: str | None) -> str:
    value = own[key] if key != "anchor" or own[key] != "base" else default
    if value is None:
        value = default
    if value is None:
        raise ValueError(
            "hires=…: stage II needs trained weights: a checkpoint, an export of `make export`, or a signature under "
            "outputs/train; weights=random tries everything out without any"
        )
    if value in ("base", "random"):
        if (key, value) == ("hires", "base"):
            raise ValueError("hires=base: Wan's own weights know no anchor and no stride; give trained weights")
        return value
    if re.fullmatch(r"[0-9a-f]{8}", value):
        folder = Path(own["outputs"] or OUTPUTS).expanduser() / "train" / value
        if not (folder / "done.json").exists():
            raise ValueError(f"{key}={value}: {folder} holds no finished training")
        return str(folder / "ema.safetensors")
    if not Path(value).expanduser().exists():
        raise ValueError(f"{key}={value}: no such file or folder, nor a signature")
    return str(Path(value).expanduser())


def _number(own: dict[str, Any], key: str, low: float, high: float) -> float:
    try:
        value = float(own[key])
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (key != "fps" and value != int(value)):
        kind = "a number" if key == "fps" else "a whole number"
        raise ValueError(f"{key}={own[key]}: wants {kind} from {low} to {high}")
    return value


def _truth(own: dict[str, Any], key: str) -> bool:
    return _choice(own, key, ("true", "false")) == "true"


def _choice(own: dict[str, Any], key: str, options: tuple[str, ...]) -> str:
    if own[key] not in options:
        raise ValueError(f"{key}={own[key]}: one of {', '.join(options)}")
    return own[key]


def _given_anchor(made: Generation, text: str, seed: int) -> Path | None:
    """A prompt's anchor in `anchors_from`. Raises ValueError when there is none, several, or one of another size."""
    from safetensors import SafetensorError, safe_open

    if made.anchors_from is None:
        return None
    found = []
    for path in sorted((made.anchors_from / "anchors").glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as opened:
                about, shape = opened.metadata() or {}, tuple(opened.get_slice("latent").get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"anchors_from={made.anchors_from}: {path.name} cannot be read ({error})") from error
        if (about.get("prompt"), about.get("seed")) == (text, str(seed)):
            found.append((path, shape))
    if len(found) != 1:
        several = f"{len(found)} anchors ({', '.join(path.name for path, _ in found)})" if found else "no anchor"
        raise ValueError(
            f"anchors_from={made.anchors_from}: {several} of {text[:60]!r} with seed {seed}; it is the `out` of an "
            "earlier call, with one for each prompt"
        )
    [(path, shape)] = found
    wanted = (1, *_latent_shape(made.anchor, made.anchor.scale.anchor_size))
    if shape != wanted:
        raise ValueError(f"anchors_from={made.anchors_from}: {path.name} is {shape}, stage II is given {wanted} here")
    return path


# ---- the four parts


def generate(made: Generation, progress: Progress | None = None) -> list[Path]:
    """Make every video that is not there: the files of all prompts, in their order.

    progress(what, share, within): what is being done, the share of all the work that is behind, and of this part
    Starts the processes that are to hold the networks together, unless this is one of them.
    Raises ValueError when the weights do not fit, or where the disk is full.
    """
    place = made.place
    if place is None:
        _launch(made)
    else:
        _generate(made, progress, place)
    return [made.video(prompt) for prompt in made.prompts if made.is_done(prompt)]


def _launch(made: Generation) -> None:
    logs = made.out / "logs" / str(os.getpid())  # several calls may share `out`
    command = [sys.executable, "-m", "pw", "generate", *made.words]
    launch(command, made.hires.trainer.processes, logs, None)
    shutil.rmtree(logs, ignore_errors=True)


def _generate(made: Generation, progress: Progress | None, place: Place) -> None:
    quiet()
    with join_team(made.hires.trainer, place) as team, ExitStack() as locks:
        todo = team.agreed(_todo(made, locks) if place.is_first else [])
        trainer = made.hires.trainer
        group, member = divmod(place.rank, trainer.context)
        mine = todo[group :: trainer.shares]
        if todo:
            meter = _Meter(made, mine, progress if place.is_first else None)
            writes = member == 0  # of those that make videos together
            texts = _encode_texts(made, mine, meter, team, writes=writes)
            _first_stage(made, mine, texts, meter, team, writes=writes)
            _second_stage(made, mine, texts, meter, team, writes=writes)
            _decode(made, mine, meter, team, writes=writes)
            team.wait()  # the first one holds the locks of all


def _todo(made: Generation, locks: ExitStack) -> list[Prompt]:
    """The prompts that this call is to make, locked. Those with most left to do come first, so that several processes,
    which take turns, have as much of it."""
    for folder in (made.out, made.out / "anchors", made.out / "latents", made.out / ".locks"):
        if not folder.exists() and made.prompts:
            _check_disk(made, len(made.prompts))
        folder.mkdir(parents=True, exist_ok=True)
    _let_open(len(made.prompts))
    todo = [prompt for prompt in made.prompts if _is_ours(made, prompt, locks)]
    if todo:
        _check_disk(made, len(todo))

    def files(prompt: Prompt) -> tuple[bool, bool]:
        return made.latent_file(prompt).exists(), prompt.anchor is not None or made.anchor_file(prompt).exists()

    return sorted(todo, key=files) if made.is_split else todo


def _is_ours(made: Generation, prompt: Prompt, locks: ExitStack) -> bool:
    """Whether this call is to make a prompt: it is not done, and no other call is at it."""
    from filelock import FileLock, Timeout

    if not made.is_done(prompt):
        try:
            locks.enter_context(FileLock(made.out / ".locks" / prompt.name, timeout=0))
        except Timeout:
            print(f"{prompt.name}: another call is at it", file=sys.stderr)
            return False
    if made.is_done(prompt):  # perhaps since we looked
        _clear(made, prompt)
        return False
    for folder in (made.out, made.out / "anchors", made.out / "latents"):
        for path in folder.glob(f".{prompt.name}.*"):  # a call that was killed was writing it
            path.unlink(missing_ok=True)
    return True


def _let_open(locks: int) -> None:
    """Let this process hold so many locks: each is an open file, of which 1024 are usual and VBench has 4,720 prompts.

    Raises ValueError where that is not allowed.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = locks + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{locks} prompts need {needed} open files, {hard} are allowed (ulimit -Hn): give fewer at once"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _clear(made: Generation, prompt: Prompt) -> None:
    for path in (made.latent_file(prompt), _upsampled(made, prompt)):
        path.unlink(missing_ok=True)


class _Meter:
    """Share of the work that is behind, by floating-point operations; seconds and peak memory of each part."""

    def __init__(self, made: Generation, todo: list[Prompt], progress: Progress | None) -> None:
        from pw.cost.count import generation_cost

        self.made, self.progress, self.count = made, progress, len(todo)
        self.flops = dict.fromkeys(("text", "anchor", "hires", "decode"), 0.0)
        for phase in generation_cost(made.hires, made.anchor).phases:
            part = {"text": "text", "stage I": "anchor", "decode": "decode"}.get(phase.name, "hires")
            self.flops[part] += phase.flops.total
        self.wanted = dict.fromkeys(self.flops, float(self.count))  # prompts of each part
        self.done = dict.fromkeys(self.flops, 0.0)

    def skip(self, part: str, what: str) -> None:
        """One prompt's `part` is there already."""
        self.wanted[part] -= 1
        self.add(part, 0.0, what)

    def add(self, part: str, share: float, what: str) -> None:
        """`share` of one prompt's `part` is done."""
        self.done[part] += share
        if self.progress is not None:
            total = sum(self.wanted[p] * self.flops[p] for p in self.flops)
            behind = sum(self.done[p] * self.flops[p] for p in self.flops)
            within = self.done[part] / self.wanted[part] if self.wanted[part] else 1.0
            self.progress(what, min(1.0, behind / total) if total else 1.0, min(1.0, within))

    def took(self, part: str, prompt: Prompt, began: float) -> None:
        seconds = round(time.perf_counter() - began, 3)
        self.made.seconds.setdefault(prompt.name, {})[part] = seconds
        self.made.peaks.setdefault(prompt.name, {})[part] = _peak_gb(self.made.device)

    def took_before(self, part: str, prompt: Prompt, about: dict[str, str]) -> None:
        """As an earlier call noted beside a latent that is taken from file."""
        for kept, key in ((self.made.seconds, "seconds"), (self.made.peaks, "peak_gb")):
            if key in about:
                kept.setdefault(prompt.name, {})[part] = float(about[key])

    def ticking(self, part: str, calls: int, what: str) -> Callable[[], None]:
        """To be called after each of `calls` equal shares of one prompt's part, when its kernels have ended."""

        def tick() -> None:
            if self.made.device == "cuda":
                import torch

                torch.cuda.synchronize()
            self.add(part, 1 / calls, what)

        return tick


def _peak_gb(device: str) -> float:
    """Peak memory so far, GB: of the GPU since its part began, of the process on a CPU."""
    if device == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    import resource

    unit = 1024 if sys.platform == "linux" else 1
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def _forget(device: str) -> None:
    """Give freed memory back before the next part loads, and measure its peak from here."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


Texts = Callable[[str], "Tensor"]


def _encode_texts(made: Generation, todo: list[Prompt], meter: _Meter, team: Team, *, writes: bool) -> Texts:
    """Embedding of a text, [tokens, dim]: random, or read from the cache that this fills."""
    import torch

    from pw.data.procedural import generator

    run = made.hires
    assert run.text is not None
    encoder = _text_encoder(made)
    shape = run.backbone.text_tokens, run.backbone.text_dim
    if encoder is None:
        meter.wanted["text"] = 0.0  # else all that there is to do would end at 98 %
        return lambda text: torch.randn(shape, generator=generator(int(digest(text), 16), 0, NOISE))
    meter.add("text", 0.0, "encoding prompts")
    for stage in (made.anchor, made.hires) if writes else ():
        assert stage.text is not None
        encoder.encode(stage.text.negative_prompt)
    for prompt in todo if writes else ():
        began = time.perf_counter()
        encoder.encode(prompt.text)
        meter.add("text", 1.0, "encoding prompts")
        meter.took("text", prompt, began)
    encoder.free()
    _forget(made.device)
    team.wait()  # those that do not write read
    return encoder.encode


def _noise(prompt: Prompt, shape: tuple[int, ...], stream: int) -> Tensor:
    """Drawn on the CPU: the same on every device, whatever else is made."""
    import torch

    from pw.data.procedural import generator

    return torch.randn(shape, generator=generator(prompt.seed, stream, NOISE))[None]


def _latent_shape(run: Run, size: tuple[int, int]) -> tuple[int, ...]:
    factor = run.codec.factor
    return run.codec.channels, run.codec.latent_frames(run.scale.frames), size[0] // factor, size[1] // factor


def _conditions(made: Generation, run: Run, texts: Texts, prompt: Prompt, anchor: Tensor | None) -> tuple[Any, Any]:
    """The prompt's condition and the negative prompt's, the anchor in both."""
    from pw.stages.velocity import Condition

    assert run.text is not None
    text, away = (texts(words)[None].to(made.device) for words in (prompt.text, run.text.negative_prompt))
    return Condition(text, anchor), Condition(away, anchor)


def _network(run: Run) -> Any:
    from pw.nn.networks import Network

    return Network(run.backbone, run.injector, run.trainer.attention, run.trainer.compile, run.seed)


def _first_stage(
    made: Generation, todo: list[Prompt], texts: Texts, meter: _Meter, team: Team, *, writes: bool
) -> None:
    for prompt in todo if writes else ():
        if prompt.anchor is not None and not made.anchor_file(prompt).exists():
            _save_latent(made.anchor_file(prompt), *_load_latent(prompt.anchor), prompt)
    what = "anchor", "stage I: anchors"
    _denoise(made, todo, texts, meter, team, what, made.anchor, made.anchor_source, made.anchor_file, writes=writes)


def _second_stage(
    made: Generation, todo: list[Prompt], texts: Texts, meter: _Meter, team: Team, *, writes: bool
) -> None:
    given = made.anchor_file
    if made.hires.scale.anchor_upsample == "pixel":
        if writes:
            _upsample_anchors(made, todo)
        given = functools.partial(_upsampled, made)
    what = "hires", "stage II: detail"
    _denoise(
        made, todo, texts, meter, team, what, made.hires, made.hires_source, made.latent_file, given, writes=writes
    )


def _denoise(
    made: Generation,
    todo: list[Prompt],
    texts: Texts,
    meter: _Meter,
    team: Team,
    what: tuple[str, str],
    run: Run,
    source: str,
    target: Callable[[Prompt], Path],
    given: Callable[[Prompt], Path] | None = None,
    *,
    writes: bool,
) -> None:
    """A stage's latents of all prompts, from noise: what is there is skipped, the network is loaded when it is needed.

    what    the part's key and its words
    target  where a prompt's latent goes; given: where the anchor's is, for stage II
    writes  whether it is this process, of those that make a video together, that writes

    Processes that hold the network together evaluate it equally often: one with fewer latents to make than another
    computes of zeros, and drops it.
    """
    from pw.stages.velocity import evaluations, integrate

    part, words = what
    size, stream = (run.scale.anchor_size, 0) if given is None else (run.scale.size, 1)
    shape = _latent_shape(run, size)
    waiting = []
    team.wait()  # for what others write of the part before
    for prompt in todo:
        if target(prompt).exists():
            meter.skip(part, f"{words}, taken from file")
            meter.took_before(part, prompt, _load_latent(target(prompt))[1])
        else:
            waiting.append(prompt)
    rounds = int(team.maximum(len(waiting)))  # they meet here, too
    net: Any = _load(made, run, source) if rounds else None
    if waiting:
        meter.add(part, 0.0, words)
    for prompt in waiting:
        began = time.perf_counter()
        anchor = None if given is None else _load_latent(given(prompt))[0].to(made.device)
        noise = _noise(prompt, shape, stream).to(made.device)
        tick = meter.ticking(part, _calls(run, evaluations(run)), words)
        latent = integrate(run, net, noise, *_conditions(made, run, texts, prompt, anchor), tick)
        meter.took(part, prompt, began)
        if writes:
            _save_latent(target(prompt), latent, _cost(made, prompt, part), prompt)
    for _ in range(rounds - len(waiting)):
        integrate(run, net, *_spare(made, run, shape, is_given=given is not None))
    net = None
    _forget(made.device)


def _load(made: Generation, run: Run, source: str) -> Any:
    """A stage's network: all of it, or this process's part."""
    from pw.nn.networks import load_network, network_without_weights

    network = _network(run)
    if not made.is_split:
        return load_network(network, source, made.weights, made.device)
    import torch.distributed as dist

    from pw.nn.context import groups_of, share_tokens
    from pw.parallel.sharded import fill, mesh_of, shard

    net = network_without_weights(network, source, made.device)
    shard(net, net.dit.blocks, mesh_of(run.trainer))
    whole = None
    if dist.get_rank() == 0:  # one copy in memory, not one for each process
        where = made.device if source == "random" else "cpu"  # 5e9 numbers are drawn where that is quick
        whole = load_network(dataclasses.replace(network, compile=False), source, made.weights, where, made.device)
    fill(net, whole, made.device)
    if run.trainer.context > 1:
        share_tokens(net, groups_of(run.trainer.context, made.device))
    return net


def _spare(made: Generation, run: Run, shape: tuple[int, ...], *, is_given: bool) -> tuple[Tensor, Any, Any]:
    """Zeros to be denoised under conditions of zeros."""
    import torch

    from pw.stages.velocity import Condition

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(1, *sizes, device=made.device)

    text = zeros(run.backbone.text_tokens, run.backbone.text_dim)
    anchor = zeros(*_latent_shape(made.anchor, made.anchor.scale.anchor_size)) if is_given else None
    return zeros(*shape), Condition(text, anchor), Condition(text, anchor)


def _cost(made: Generation, prompt: Prompt, part: str) -> dict[str, str]:
    """Seconds and peak memory of a part, to be noted beside its latent."""
    return {"seconds": str(made.seconds[prompt.name][part]), "peak_gb": str(made.peaks[prompt.name][part])}


def _calls(run: Run, evaluations: int) -> int:
    """Calls of the network: with both branches of guidance in one batch, one for two evaluations."""
    return evaluations - (evaluations - run.sampling.num_steps) * run.trainer.guidance_batch


def _upsampled(made: Generation, prompt: Prompt) -> Path:
    return made.out / "latents" / f"{prompt.name}.anchor.safetensors"


def _upsample_anchors(made: Generation, todo: list[Prompt]) -> None:
    """Decode each anchor, enlarge its pixels, encode them again  (Scale.anchor_upsample)."""
    from pw.data.degradation import resize

    waiting = [p for p in todo if not made.latent_file(p).exists() and not _upsampled(made, p).exists()]
    if not waiting:
        return
    codec = _codec(made)
    for prompt in waiting:
        small = codec.decode(_load_latent(made.anchor_file(prompt))[0])
        large = resize(small, made.hires.scale.size, "bicubic").clamp(-1, 1)
        _save_latent(_upsampled(made, prompt), codec.encode(large), {}, prompt)
    del codec
    _forget(made.device)


def _codec(made: Generation) -> Any:
    from pw.nn.codec import WanCodec

    choice: Any = made.hires.codec
    if made.weights is None:
        return WanCodec.random(choice, made.device)
    return WanCodec.load(choice, made.weights, made.device)


def _decode(made: Generation, todo: list[Prompt], meter: _Meter, team: Team, *, writes: bool) -> None:
    import numpy as np

    codec = None
    team.wait()  # for the latents that others write
    for prompt in todo:
        if codec is None:
            codec = _codec(made)
            meter.add("decode", 0.0, "decoding")
        began = time.perf_counter()
        latent = _load_latent(made.latent_file(prompt))[0].to(made.device)
        height, width = made.hires.scale.size
        frames = np.empty((made.hires.scale.frames, height, width, 3), dtype=np.uint8)
        together = made.hires.trainer.context
        for row, band in codec.bands(latent, together):  # a band of rows at a time: a 4K clip in fp32 is 12 GB
            frames[:, row : row + band.shape[-2]] = _pixels(band[0])
            meter.add("decode", band.shape[-2] / height, "decoding")
        if not writes:
            continue
        _write(made, prompt, frames)
        meter.took("decode", prompt, began)
        write_json(made.manifest(prompt), _about(made, prompt))
        _clear(made, prompt)
    del codec
    _forget(made.device)


def _pixels(band: Tensor) -> Any:
    """[3, F, rows, W] in [-1, 1] -> uint8 [F, rows, W, 3], as `pw.io.video.to_uint8`: where the band is, and in place.

    Raises ValueError when it is not finite.
    """
    import torch

    if not band.isfinite().all():
        raise ValueError("what the VAE decoded is not finite; codec.precision=fp32 may help")
    return band.clamp_(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


# ---- files


def _save_latent(path: Path, latent: Tensor, about: dict[str, str], prompt: Prompt) -> None:
    """Raises ValueError when it is not finite: nothing further can come of it. OSError when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not latent.isfinite().all():
        raise ValueError(f"{path.parent.name}/{path.name}: what was made for {prompt.text[:60]!r} is not finite")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    noted = {**about, "prompt": prompt.text, "seed": str(prompt.seed)}
    try:
        save_file({"latent": latent.float().cpu().contiguous()}, partial, metadata=noted)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _load_latent(path: Path) -> tuple[Tensor, dict[str, str]]:
    """A latent and what was noted beside it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            return opened.get_tensor("latent"), opened.metadata() or {}
    except SafetensorError as error:
        raise OSError(f"{path}: {error}; remove it to make it again") from error


def _write(made: Generation, prompt: Prompt, frames: Any) -> None:
    from pw.io.video import write_video

    path = made.video(prompt)
    if path.suffix != ".png":
        write_video(path, frames, fps=made.fps, lossless=made.lossless, crf=made.quality)
        return
    from PIL import Image

    partial = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(frames[0]).save(partial, format="png")
    os.replace(partial, path)


def _check_disk(made: Generation, count: int) -> None:
    """Raises ValueError when the files cannot fit: latents in fp32, and videos at no less than 1 bit a pixel."""
    from math import prod

    from pw.cost.planner import gigabytes

    run = made.hires
    latents = 4 * (prod(_latent_shape(run, run.scale.size)) + prod(_latent_shape(run, run.scale.anchor_size)))
    pixels = run.scale.frames * run.scale.height * run.scale.width
    need = count * (latents + pixels * (2 if made.lossless else 1 / 8))
    there = made.out
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < need:
        videos = "1 video needs" if count == 1 else f"{count} videos need"
        raise ValueError(
            f"out={made.out}: {videos} about {gigabytes(need)}, {gigabytes(free)} are free; free some, or choose "
            "another out="
        )


def _about(made: Generation, prompt: Prompt) -> dict[str, Any]:
    import torch

    from pw.cost.count import parameters
    from pw.method.solver import inference_strides

    def stage(run: Run, source: str) -> dict[str, Any]:
        return {
            "weights": source,
            "signature": run.signature,
            "steps": run.sampling.num_steps,
            "timesteps": [round(float(t), 3) for t in run.grid()],
            "strides": inference_strides(run.grid()).tolist() if run.feeds_strides() else None,
            "negative_prompt": run.text and run.text.negative_prompt,
            "solver": run.config.choices["solver"],
            "shift": run.schedule.shift if run.sampling.shift is None else run.sampling.shift,
            "guidance": run.guidance.scale,
            "guided_steps": run.guidance.first_steps,
            "parameters": parameters(run.backbone, run.injector),
            "overrides": list(run.config.overrides),
        }

    run = made.hires
    return {
        "prompt": prompt.text,
        "seed": prompt.seed,
        "file": made.video(prompt).name,
        "scale": run.scale.name,
        "size": [run.scale.width, run.scale.height],
        "frames": run.scale.frames,
        "fps": made.fps,
        "quality": "lossless" if made.lossless else made.quality,
        "weights": None if made.weights is None else str(made.weights),
        "anchor": stage(made.anchor, made.anchor_source),
        "hires": stage(run, made.hires_source),
        "anchor_from": None if prompt.anchor is None else str(prompt.anchor),
        "identity": made.identity,
        "seconds": made.seconds.get(prompt.name, {}),
        "peak_memory_gb": made.peaks.get(prompt.name, {}),
        "device": torch.cuda.get_device_name() if made.device == "cuda" else "CPU",
        "torch": torch.__version__,
        "attention": run.trainer.attention,
        "compile": run.trainer.compile,
        "processes": run.trainer.processes,
        "context": run.trainer.context,
        **provenance(),
    }


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 it could not be made, 2 a mistake in the call, 130 interrupted."""
    exit_with_parent()
    try:
        made = parse(arguments)
    except (ValueError, OSError) as error:
        if not report_failure(error):
            print(f"error: {error}", file=sys.stderr)
        return 2
    import torch

    trainer, is_worker = made.hires.trainer, PLACE in os.environ
    # torch's own number heeds OMP_NUM_THREADS and the cores that this process may use
    cores = 1 if made.device == "cuda" else torch.get_num_threads() // trainer.processes
    torch.set_num_threads(max(trainer.threads, cores))
    if made.weights is None and not is_worker:
        print("weights=random: what comes out is noise; its time and memory are real", file=sys.stderr)
    try:
        for path in generate(made, _Show()):
            print(path)
    except (KeyboardInterrupt, Stopped) as error:
        with ignore_closed_stream(sys.stderr):
            print("\ninterrupted; what is finished is kept, the same command goes on from here", file=sys.stderr)
        return 128 + (error.signal if isinstance(error, Stopped) else signal.SIGINT)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            error = ValueError(f"{error}\n`make plan scale={made.hires.scale.name} gpus=…` says what it needs")
        elif isinstance(error, OSError):
            error = OSError(f"out={made.out}: {error}; what is finished is kept, the same command goes on from here")
        if not report_failure(error):
            print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not report_failure(error):
            raise
        return 1
    return 0


class _Show:
    """A line with what is done and the time left: rewritten on a terminal, else now and then.

    The time left of a part is its own pace. That of the whole is told when a tenth is behind: parts differ in pace.
    """

    def __init__(self) -> None:
        self.began = self.part_began = time.perf_counter()
        self.last, self.what = -1e9, ""

    def __call__(self, what: str, share: float, within: float) -> None:
        now, live = time.perf_counter(), sys.stderr.isatty()
        if what != self.what:
            self.part_began = now
        elif now - self.last < (0.5 if live else 15) and share < 1:
            return
        if not within:
            self.part_began = now
        self.last, self.what = now, what
        text = f"{100 * share:3.0f} %  {what}"
        if 0 < within < 1:
            text += f", about {_time((now - self.part_began) * (1 / within - 1))} to the end of this part"
        if 0.1 < share < 1:
            text += f", {_time((now - self.began) * (1 / share - 1))} in all"
        with ignore_closed_stream(sys.stderr):
            print(
                f"\r\x1b[2K{text}" if live else text,
                end="" if live and share < 1 else "\n",
                file=sys.stderr,
                flush=True,
            )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
