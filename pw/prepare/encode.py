"""Encode shards of video to latent shards: training at Wan's scales then needs no pixels, no VAE, no text encoder.

    pw latents urls=data/shards scale=2k anchors=8 [key=value …]

Keys of its own (everything else is an override of conf/, `trainer.weights=DIR` and `seed=1` among them):

    urls=data/shards     the shards of `make data`
    anchors=8            degraded anchors to encode of each clip; training draws one of them
    out=data/latents     in it a folder <scale>-<digest> is made or gone on with: see `pw.data.latents`
    splits=train,val     which clips; training reads those of train
    rank=0 world=1       one call of several, each takes every world-th shard; under torchrun they are known
    dry_run=false        `true` prints sizes and looks at the disk, and needs no weights

A call that was stopped goes on at the clip where it was. What is made does not depend on how many calls share the work:
an anchor's degradation is drawn by (seed, the clip's key, its number).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.data.latents import ABOUT, EMPTY, UNFINISHED, described, fit
from pw.data.shards import Sample, ShardError, ShardIndex, find_shards, fits, noted, seeded, short_side, write_tar
from pw.io.arguments import ConfigError
from pw.io.files import digest, write_json
from pw.io.wan_weights import check, fingerprint, locate
from pw.nn import options
from pw.run.build import Run, build
from pw.train.preflight import check_device

if TYPE_CHECKING:
    from torch import Tensor

    from pw.nn.codec import WanCodec
    from pw.nn.text import TextEncoder

OWN = {
    "urls": "data/shards",
    "anchors": "8",
    "out": "data/latents",
    "splits": "train,val",
    "rank": None,
    "world": None,
    "dry_run": "false",
}
SPLITS = ("train", "val")
PARTS = ("vae", "text_encoder", "tokenizer")
BYTES = 2  # of a number in bf16
TOLERATED = 0.05  # share of clips that may be unreadable
FORMAT = 1  # of what is written: part of the digest

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Shard:
    """A shard of video; `ids` are the clips of its index that are large enough, `problem` why it has no index."""

    path: Path
    split: str
    index: ShardIndex | None
    ids: tuple[int, ...]
    problem: str = ""

    @property
    def samples(self) -> list[Sample]:
        """The clips to be encoded, in order."""
        return [] if self.index is None else [self.index.samples[i] for i in self.ids]


@dataclass(frozen=True)
class Sizes:
    """What a clip becomes: shapes, and bytes in bf16; of the text, whose length differs, at most."""

    latent: tuple[int, int, int, int]
    anchor: tuple[int, int, int, int]
    anchors: int
    text: tuple[int, int]
    patch: tuple[int, int, int]

    @property
    def latent_bytes(self) -> int:
        return BYTES * math.prod(self.latent)

    @property
    def anchor_bytes(self) -> int:
        return BYTES * math.prod(self.anchor)

    @property
    def text_bytes(self) -> int:
        return BYTES * math.prod(self.text)

    @property
    def clip_bytes(self) -> int:
        """Of a whole clip, at most."""
        return self.latent_bytes + self.anchors * self.anchor_bytes + self.text_bytes

    def tokens(self, shape: tuple[int, int, int, int]) -> int:
        """Tokens that the network makes of a latent."""
        return math.prod(shape[1:]) // math.prod(self.patch)


@dataclass
class Encoding:
    """One call, checked: what is encoded and where it goes. `find_weights` adds weights and what names the folder."""

    run: Run
    urls: str
    out: Path
    anchors: int
    shards: list[Shard]
    skipped_small: int
    rank: int
    world: int
    dry_run: bool
    weights: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where it goes: named by the scale and a digest of all that decides what is in it."""
        return self.out / f"{self.run.scale.name}-{digest(self.identity, 8)}"

    @property
    def sizes(self) -> Sizes:
        """Of a clip."""
        return sizes(self.run, self.anchors)

    @property
    def mine(self) -> list[Shard]:
        """The shards that this call is dealt."""
        return self.shards[self.rank :: self.world]

    def record(self, shard: Shard) -> Path:
        """The file that says what became of a shard: written last."""
        return self.folder / f"{shard.path.stem}.json"

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard needs no more work; one that could not be read at all is tried again."""
        path = self.record(shard)
        return path.exists() and not json.loads(path.read_text())["problem"]


@dataclass
class Report:
    """What a call did: `encoded` clips now, `there` before, `skipped` (shard or clip, why) of `clips`."""

    clips: int
    encoded: int = 0
    there: int = 0
    skipped: list[str] = field(default_factory=list)
    lost: int = 0

    @property
    def is_bad(self) -> bool:
        """Whether too many clips could not be read."""
        return self.lost > TOLERATED * max(1, self.clips)


def sizes(run: Run, anchors: int) -> Sizes:
    """What a clip of this run becomes. Raises ConfigError where clips are not encoded by Wan's VAE."""
    scale, codec, backbone = run.scale, run.codec, run.backbone
    if not isinstance(codec, options.WanVAE) or run.text is None or scale.anchor_upsample != "latent":
        raise ConfigError(
            f"scale={scale.name}: latents are for what Wan's VAE and text encoder encode; set scale=proxy, 2k or 4k "
            "(codec=wan_vae text=umt5 scale.anchor_upsample=latent)"
        )
    frames, f = codec.latent_frames(scale.frames), codec.factor
    return Sizes(
        latent=(codec.channels, frames, scale.height // f, scale.width // f),
        anchor=(codec.channels, frames, scale.anchor_height // f, scale.anchor_width // f),
        anchors=anchors,
        text=(backbone.text_tokens, backbone.text_dim),
        patch=backbone.patch_size,
    )


# ---- what is asked for, checked before anything loads


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Encoding:
    """A call from its words; reads headers of shards, no weights. Raises ValueError naming the key and what would do.

    environment  has RANK and WORLD_SIZE under torchrun
    """
    environment = os.environ if environment is None else environment
    own: dict[str, Any] = dict(OWN)
    overrides = []
    for word in arguments:
        key, _, value = word.partition("=")
        if key in OWN and not value:
            raise ConfigError(f"{key}=: says nothing; give {key} a value, or leave it out")
        if key == "data":
            raise ConfigError(f"{word}: clips are read from urls=DIR here")
        if key in OWN:
            own[key] = value
        else:
            overrides.append(word)
    if not any(word.startswith("scale=") for word in overrides):
        overrides.insert(0, "scale=2k")
    world = _whole("world", own["world"] or environment.get("WORLD_SIZE", "1"), 1)
    rank = _whole("rank", own["rank"] or environment.get("RANK", "0"), 0)
    if rank >= world:
        raise ConfigError(f"rank={rank}: of world={world} calls the ranks are 0 to {world - 1}")
    if own["dry_run"] not in ("true", "false"):
        raise ConfigError(f"dry_run={own['dry_run']}: true or false")
    splits = own["splits"].split(",")
    if not set(splits) <= set(SPLITS):
        raise ConfigError(f"splits={own['splits']}: of {','.join(SPLITS)}")
    anchors = _whole("anchors", own["anchors"], 1)
    run = build([*overrides, "data=none"])
    sizes(run, anchors)
    urls, out = str(Path(own["urls"]).expanduser()), Path(own["out"]).expanduser()
    shards, small = _fitting(_shards(urls, splits), run, urls)
    return Encoding(run, urls, out, anchors, shards, small, rank, world, own["dry_run"] == "true")


def _whole(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{key}={text}: wants a whole number, {least} or more")
    return int(text)


def _shards(urls: str, splits: Sequence[str]) -> list[Shard]:
    """The shards of some splits; one that is damaged has no index."""
    try:
        paths = find_shards(urls)
    except ValueError as error:
        raise ConfigError(str(error).replace("data.urls", "urls")) from error
    shards = []
    for path in paths:
        split = path.name.partition("-")[0]
        if split not in splits:
            continue
        try:
            index = ShardIndex([str(path)], split)
            shards.append(Shard(path, split, index, tuple(range(len(index)))))
        except (ShardError, ValueError, OSError) as error:
            shards.append(Shard(path, split, None, (), str(error)))
    if not shards:
        raise ConfigError(f"urls={urls}: none of its {len(paths)} shards is named {' or '.join(splits)}-*.tar")
    if twice := [name for name, count in Counter(shard.path.name for shard in shards).items() if count > 1]:
        raise ConfigError(f"urls={urls}: {twice[0]} is there twice; encode folders one by one")
    if not any(shard.index for shard in shards):
        raise ConfigError(f"urls={urls}: none of {len(shards)} shards can be read, such as {shards[0].problem}")
    return shards


def _fitting(shards: list[Shard], run: Run, urls: str) -> tuple[list[Shard], int]:
    """(the shards with the clips that are large enough, how many are too small). Raises ConfigError if all are."""
    scale = run.scale
    size = (scale.frames, scale.height, scale.width)
    fitting, small = [], 0
    for shard in shards:
        samples = [] if shard.index is None else shard.index.samples
        ids = tuple(i for i, sample in enumerate(samples) if fits(sample.shape, size))
        small += len(samples) - len(ids)
        if ids or shard.index is None:
            fitting.append(Shard(shard.path, shard.split, shard.index, ids, shard.problem))
    if not any(shard.ids for shard in fitting):
        shapes = [sample.shape for shard in shards if shard.index for sample in shard.index.samples if sample.shape]
        frames, height, width = max(shapes)[:3]
        side = short_side(scale.height, scale.width)
        raise ConfigError(
            f"scale={scale.name}: needs clips of {scale.frames} frames, {scale.height} x {scale.width} px, and none of "
            f"{small} in urls={urls} is as large (the largest has {frames} frames of {height} x {width}; none is "
            f'enlarged); `make data … args="frames={scale.frames} short_side={side}"` makes such clips of videos that '
            "are large enough"
        )
    return fitting, small


def estimate(encoding: Encoding) -> str:
    """What will be made and how large it is, in words."""
    run, clip = encoding.run, encoding.sizes
    scale, clips = run.scale, sum(len(shard.ids) for shard in encoding.shards)
    small = f" ({encoding.skipped_small} more are too small)" if encoding.skipped_small else ""
    shape = lambda sides: " x ".join(map(str, sides))  # noqa: E731
    return (
        f"scale={scale.name}: {clips:,} clips in {len(encoding.shards)} shards{small}, "
        f"{scale.frames} frames of {scale.height} x {scale.width} px\n"
        f"  latent   {shape(clip.latent)}, {clip.tokens(clip.latent):,} tokens, {_mb(clip.latent_bytes)}\n"
        f"  anchors  {clip.anchors} of {shape(clip.anchor)}, {clip.tokens(clip.anchor):,} tokens, "
        f"{_mb(clip.anchor_bytes)} each\n"
        f"  text     at most {shape(clip.text)}, {_mb(clip.text_bytes)}\n"
        f"  a clip {_mb(clip.clip_bytes)}, all {clips * clip.clip_bytes / 1e9:,.2f} GB at most"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.3g} MB"


def check_disk(encoding: Encoding) -> None:
    """That what is still to be made can be written to `out`. Raises ConfigError when it cannot."""
    todo = [shard for shard in encoding.shards if not (encoding.identity and encoding.is_done(shard))]
    lengths = [len(shard.ids) for shard in todo]
    # a shard is put together of its clips: both are there for a moment, of every call at work
    need = encoding.sizes.clip_bytes * (sum(lengths) + sum(sorted(lengths)[-encoding.world :]))
    place = encoding.out.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(f"out={encoding.out}: cannot be written to ({error.strerror}); give another out=") from error
    free = shutil.disk_usage(place).free
    if need > free:
        raise ConfigError(
            f"out={encoding.out}: needs {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; give an out= on another "
            "disk, fewer anchors=, or splits=train"
        )


def find_weights(encoding: Encoding) -> None:
    """Find and check the weights, and name the folder. Raises ValueError (WeightsError) when they are wanting."""
    run = encoding.run
    encoding.weights = locate(run.trainer.weights)
    check(encoding.weights, PARTS)
    vae, text = (json.loads((encoding.weights / part / "config.json").read_text()) for part in PARTS[:2])
    codec: Any = run.codec
    for key, wanted, found in (
        ("codec.channels", codec.channels, vae.get("z_dim", codec.channels)),
        ("codec.factor", codec.factor, vae.get("scale_factor_spatial", codec.factor)),
        ("codec.frames_factor", codec.frames_factor, vae.get("scale_factor_temporal", codec.frames_factor)),
        ("backbone.text_dim", run.backbone.text_dim, text.get("d_model", run.backbone.text_dim)),
    ):
        if found != wanted:
            raise ConfigError(f"{key}={wanted}: the weights in {encoding.weights} have {found}")
    check_device(run)
    encoding.identity = {
        "format": FORMAT,
        "encoded": described(run.scale, run.codec, run.degradation, run.backbone),
        "anchors": encoding.anchors,
        "seed": run.seed,
        "weights": {part: fingerprint(encoding.weights / part) for part in PARTS},
        "accelerator": run.trainer.accelerator,
        "clips": digest([_content(shard) for shard in encoding.shards], 16),
    }


def _content(shard: Shard) -> list[str]:
    """Names what is in a shard: by its sha256 if a manifest knows it."""
    known = noted(shard.path)
    if known is not None:
        return [shard.path.name, known["sha256"]]
    return [shard.path.name, "damaged" if shard.index is None else shard.index.fingerprint]


# ---- the work


def encode(encoding: Encoding, progress: Progress | None = None) -> Report:
    """Encode the shards that this call is dealt and that are not there.

    progress(shard, clips done, clips) is called after every clip and every shard.
    Raises ValueError when the weights do not fit, OSError when the disk is full: what has its name is whole.
    """
    from filelock import FileLock, Timeout

    folder = encoding.folder
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    _write_about(encoding)
    report = Report(sum(_expected(encoding, shard) for shard in encoding.mine))
    worker = _Worker(encoding)
    _write_empty(encoding, worker)
    waiting = encoding.mine
    for patience in (0, -1):  # first what no other call is at, then wait for it
        shards, waiting = waiting, []
        for shard in shards:
            try:
                with FileLock(folder / UNFINISHED / f"{shard.path.stem}.lock", timeout=patience):
                    _encode_shard(encoding, shard, worker, report, progress)
            except Timeout:
                waiting.append(shard)
    return report


def _expected(encoding: Encoding, shard: Shard) -> int:
    """Clips of a shard; of one that cannot be read, as many as its manifest says, or as the others have."""
    if shard.index is not None:
        return len(shard.ids)
    known = noted(shard.path)
    if known is not None:
        return int(known["samples"])
    readable = [len(other.ids) for other in encoding.shards if other.index is not None]
    return math.ceil(sum(readable) / len(readable))


def _write_about(encoding: Encoding) -> None:
    write_json(
        encoding.folder / ABOUT,
        {
            "digest": digest(encoding.identity, 16),
            "scale": encoding.run.scale.name,
            **encoding.identity,
            "urls": os.path.abspath(encoding.urls),
            "shards": [{"file": shard.path.name, "split": shard.split} for shard in encoding.shards],
        },
    )


def _write_empty(encoding: Encoding, worker: _Worker) -> None:
    path = encoding.folder / EMPTY
    if not path.exists():
        with tempfile.TemporaryDirectory() as cache:
            _save(path, {"text": worker.text("", Path(cache))})


def _encode_shard(encoding: Encoding, shard: Shard, worker: _Worker, report: Report, progress: Progress | None) -> None:
    record, name = encoding.record(shard), shard.path.name
    if encoding.is_done(shard):
        made = json.loads(record.read_text())
        report.there += made["clips"]
        _count_skipped(report, made["skipped"], len(made["skipped"]))
    elif shard.index is None:
        write_json(record, {"clips": 0, "skipped": [], "problem": shard.problem})
        _count_skipped(report, [shard.problem], _expected(encoding, shard))
    else:
        work = encoding.folder / UNFINISHED / shard.path.stem
        work.mkdir(exist_ok=True)
        skipped = []
        for number, (i, sample) in enumerate(zip(shard.ids, shard.samples, strict=True)):
            path = work / f"{number:06d}.safetensors"
            if path.exists():
                report.there += 1
                continue
            try:
                clip = shard.index.read(i)
            except ShardError as error:
                skipped.append(str(error))
                continue
            about = {"caption": clip.caption, "split": shard.split, "shard": name, "key": sample.key}
            write_json(path.with_suffix(".json"), about)
            _save(path, worker.clip(clip.frames, sample.key) | {"text": worker.text(clip.caption, work / "text")})
            report.encoded += 1
            if progress is not None:
                progress(name, report.encoded + report.there, report.clips)
        _assemble(encoding, shard, work)
        clips = len(shard.ids) - len(skipped)
        write_json(record, {"clips": clips, "skipped": skipped, "problem": ""})
        shutil.rmtree(work)
        _count_skipped(report, skipped, len(skipped))
    if progress is not None:
        progress(name, report.encoded + report.there, report.clips)


def _count_skipped(report: Report, what: Sequence[str], clips: int) -> None:
    report.skipped += what
    report.lost += clips


def _assemble(encoding: Encoding, shard: Shard, work: Path) -> None:
    """The tar of a shard from its clips' files; it has its name when it is whole."""

    def samples() -> Iterator[dict[str, Any]]:
        for path in sorted(work.glob("*.safetensors")):
            about = path.with_suffix(".json").read_bytes()
            yield {"__key__": json.loads(about)["key"], "safetensors": path.read_bytes(), "json": about}

    partial = work / "tar"
    if write_tar(partial, samples()):
        os.replace(partial, encoding.folder / shard.path.name)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}, partial)
        os.replace(partial, path)
    except SafetensorError as error:  # a full disk
        raise OSError(f"{path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


class _Worker:
    """VAE and text encoder on this call's device, each loaded when it is first needed."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding, self.run = encoding, encoding.run
        self.device = device(encoding)
        self._codec: WanCodec | None = None
        self._encoder: TextEncoder | None = None

    def clip(self, frames: Any, key: str) -> dict[str, Tensor]:
        """uint8 [F, H, W, 3] -> `latent` [C, F', h, w], `anchors` [n, C, F', h', w'], float32."""
        import torch

        scale = self.run.scale
        codec = self._loaded_codec()
        video = fit(frames, (scale.frames, scale.height, scale.width))[None].to(self.device)
        latents = [codec.encode(video)]
        for number in range(self.encoding.anchors):
            draw = seeded(self.run.seed, key, number)
            latents.append(codec.encode(self.run.degradation.anchor(video, scale.anchor_size, draw)))
        if not all(bool(latent.isfinite().all()) for latent in latents):
            raise ValueError(f"clip {key!r} has a latent that is not finite; codec.precision=fp32 may do better")
        return {"latent": latents[0][0], "anchors": torch.cat(latents[1:])}

    def text(self, caption: str, cache: Path) -> Tensor:
        """A caption's embedding, [length, D]; `cache` keeps it for the other clips of the same video."""
        import torch

        from pw.nn.text import TextEncoder

        if self._encoder is None:
            weights, dtype = self.encoding.weights, torch.float32 if self.device == "cpu" else torch.bfloat16
            assert weights is not None, "find_weights comes first"
            tokens = self.run.backbone.text_tokens
            self._encoder = TextEncoder(weights, tokens, cache, "", self.device, dtype)
        self._encoder.cache = cache
        return self._encoder.unpadded(caption)

    def _loaded_codec(self) -> WanCodec:
        from pw.nn.codec import WanCodec

        if self._codec is None:
            choice, weights = self.run.codec, self.encoding.weights
            assert isinstance(choice, options.WanVAE)
            assert weights is not None, "find_weights comes first"
            self._codec = WanCodec.load(choice, weights, self.device)
        return self._codec


def device(encoding: Encoding) -> str:
    """Where this call computes: the GPU that LOCAL_RANK names, else the one of its rank among those there are."""
    if encoding.run.trainer.accelerator == "cpu":
        return "cpu"
    import torch

    count = torch.cuda.device_count()
    local = os.environ.get("LOCAL_RANK")
    if local is not None and int(local) >= count:
        raise ConfigError(f"LOCAL_RANK={local}: torch sees {count} GPUs here, 0 to {count - 1}")
    return f"cuda:{encoding.rank % count if local is None else int(local)}"


# ---- the command


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 done, 1 too many clips could not be read, 2 a mistake in the call or no room, 130 interrupted."""
    try:
        encoding = parse(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print(estimate(encoding), flush=True)
        if encoding.dry_run:
            check_disk(encoding)
            return 0
        find_weights(encoding)
        check_disk(encoding)
        import torch

        torch.set_num_threads(encoding.run.trainer.threads)
        print(f"to {encoding.folder}", flush=True)
        report = encode(encoding, _Show(encoding))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: out={encoding.out}: {error}; what is done is kept, the same call goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same call goes on from here", file=sys.stderr)
        return 130
    print(_outcome(encoding, report))
    return int(report.is_bad)


def _outcome(encoding: Encoding, report: Report) -> str:
    lines = [f"{report.encoded} clips encoded, {report.there} were there, {report.lost} skipped"]
    lines += [f"  {reason}" for reason in report.skipped[:20]]
    if len(report.skipped) > 20:
        lines.append(f"  … and {len(report.skipped) - 20} more, see the .json beside each shard")
    if report.is_bad:
        lines.append(f"more than {TOLERATED:.0%} of {report.clips} clips are unreadable: mend {encoding.urls}")
    undone = [shard.path.name for shard in encoding.shards if not encoding.record(shard).exists()]
    if undone:
        lines.append(f"{len(undone)} of {len(encoding.shards)} shards are left to the other ranks, such as {undone[0]}")
    else:
        lines.append(f"train with data=latents data.urls={encoding.folder}")
    return "\n".join(lines)


class _Show:
    """A line with what is done and the time left: rewritten on a terminal, else now and then."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.began = self.last = time.perf_counter()
        self.first: int | None = None
        self.shown = 0

    def __call__(self, shard: str, done: int, clips: int) -> None:
        now, live = time.perf_counter(), sys.stderr.isatty()
        if self.first is None:
            self.first = done - 1  # what was there took no time
        if done == self.shown or (done < clips and now - self.last < (0.5 if live else 15)):
            return
        self.last, self.shown = now, done
        left = (now - self.began) / max(1, done - self.first) * (clips - done)
        words = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
        text = f"rank {self.encoding.rank}: {shard}, {done} of {clips} clips, about {words} left"
        print(
            f"\r\x1b[2K{text}" if live else text, end="" if live and done < clips else "\n", file=sys.stderr, flush=True
        )
