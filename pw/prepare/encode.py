"""Encode shards of video to shards of latents: training at Wan's scales then needs no pixels, VAE or text encoder.

    pw latents urls=data/shards scale=2k anchors=8 [key=value …]

A call continues a stopped one at the same clip. The latents do not depend on how many calls share the work: (seed, key
of the clip, number of the anchor) decides the degradation of an anchor. `pw.data.latents` describes the files.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.data.latents import EMPTY, RECORD, UNFINISHED, fit, text_name
from pw.data.shard_index import CAPTIONS, ShardError, manifest_entry, write_tar
from pw.data.shards import seeded_rng
from pw.io.arguments import Command, ConfigError
from pw.io.console import printable
from pw.io.files import check_writable, digest, parse_json, replacing, write_json, write_tensors
from pw.io.lazy import Tensor
from pw.io.progress import Pace, ProgressLine
from pw.prepare.encoding import Encoding, LatentsOptions, VideoShard, check_disk, estimate, find_weights, plan_encoding

if TYPE_CHECKING:
    from pw.nn.codec import WanCodec
    from pw.nn.text import TextEncoder

MAX_UNREADABLE = 0.05  # largest share of unreadable clips

ClipProgress = Callable[[str, int, int], None]
"""progress(name of the shard, clips done, clips in all), called after every clip and every shard."""


@dataclass
class EncodingReport:
    """Result of a call: of `clips`, how many are `encoded`, `existing` before or `unreadable`; reasons in `skipped`."""

    clips: int
    encoded: int = 0
    existing: int = 0
    skipped: list[str] = field(default_factory=list)
    unreadable: int = 0

    @property
    def is_bad(self) -> bool:
        """Whether too many clips could not be read."""
        return self.unreadable > MAX_UNREADABLE * max(1, self.clips)


def encode(encoding: Encoding, progress: ClipProgress = lambda shard, done, clips: None) -> EncodingReport:
    """Encode the shards of this rank that do not exist yet.

    Raises ValueError when the weights do not fit, OSError on a full disk.
    """
    from filelock import FileLock, Timeout

    folder, worker = encoding.folder, _Worker(encoding)
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    content = {"digest": digest(encoding.identity, 16), "scale": encoding.run.scale.name, **encoding.identity}
    shards = [{"file": shard.path.name, "split": shard.split} for shard in encoding.shards]
    write_json(folder / RECORD, content | {"urls": os.path.abspath(encoding.urls), "shards": shards})
    if not (folder / EMPTY).exists():
        with tempfile.TemporaryDirectory() as cache:
            _save(folder / EMPTY, {"text": worker.text("", Path(cache))})
    report = EncodingReport(sum(_clip_count(encoding, shard) for shard in encoding.rank_shards))
    locked = encoding.rank_shards
    for timeout in (0, -1):  # first the shards that no other call has locked, then the others
        todo, locked = locked, []
        for shard in todo:
            try:
                with FileLock(folder / UNFINISHED / f"{shard.path.stem}.lock", timeout=timeout):
                    _encode_shard(encoding, shard, worker, report, progress)
            except Timeout:
                locked.append(shard)
    return report


def _clip_count(encoding: Encoding, shard: VideoShard) -> int:
    """Number of clips of a shard; if unreadable, the number in the manifest, or the mean of the others."""
    if shard.index is not None:
        return len(shard.ids)
    if (entry := manifest_entry(shard.path)) is not None:
        return int(entry["samples"])
    counts = [len(other.ids) for other in encoding.shards if other.index is not None]
    return math.ceil(sum(counts) / len(counts))


def _encode_shard(
    encoding: Encoding, shard: VideoShard, worker: _Worker, report: EncodingReport, progress: ClipProgress
) -> None:
    record, name = encoding.record(shard), shard.path.name
    result: dict[str, Any]
    if encoding.is_done(shard):
        result = parse_json(record.read_text())
        report.existing += result["clips"]
    elif shard.index is None:
        result = {"clips": 0, "skipped": [], "problem": shard.problem}
        write_json(record, result)
        report.skipped.append(shard.problem)
        report.unreadable += _clip_count(encoding, shard)
    else:
        folder = encoding.folder / UNFINISHED / shard.path.stem
        folder.mkdir(exist_ok=True)
        problems: list[str] = []
        for number, index in enumerate(shard.ids):
            path = folder / f"{number:06d}.safetensors"
            if path.exists():
                report.existing += 1
                continue
            try:
                clip = shard.index.read(index)
            except ShardError as error:
                problems.append(str(error))
                continue
            content: dict[str, Any] = {"caption": clip.caption, "split": shard.split, "shard": name, "key": clip.key}
            content |= {CAPTIONS: clip.captions} if len(clip.captions) > 1 else {}
            write_json(path.with_suffix(".json"), content)
            captions = enumerate(clip.captions or ("",))
            texts = {text_name(n): worker.text(caption, folder / "text") for n, caption in captions}
            sized = None if shard.buckets is None else shard.buckets[number]
            _save(path, worker.clip(clip.frames, clip.key, sized) | texts)
            report.encoded += 1
            progress(name, report.encoded + report.existing, report.clips)
        if len(problems) < len(shard.ids):
            with replacing(encoding.folder / name) as partial:
                write_tar(partial, _samples(folder))
        result = {"clips": len(shard.ids) - len(problems), "skipped": problems, "problem": ""}
        if shard.buckets is not None:
            keys = [shard.index.samples[i].key for i in shard.ids]
            result["buckets"] = dict(zip(keys, shard.buckets, strict=True))
        write_json(record, result)
        shutil.rmtree(folder)
    report.skipped += result["skipped"]
    report.unreadable += len(result["skipped"])
    progress(name, report.encoded + report.existing, report.clips)


def _samples(folder: Path) -> Iterator[dict[str, Any]]:
    """The encoded clips of a shard, as webdataset samples."""
    for path in sorted(folder.glob("*.safetensors")):
        content = path.with_suffix(".json").read_bytes()
        yield {"__key__": parse_json(content)["key"], "safetensors": path.read_bytes(), "json": content}


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    import torch

    write_tensors(path, {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()})


class _Worker:
    """VAE and text encoder on the device of this call, each loaded at its first use."""

    def __init__(self, encoding: Encoding) -> None:
        self.run, self.weights, self.anchors = encoding.run, encoding.weights, encoding.sizes.anchors
        self.device = _device_of(encoding)

    @cached_property
    def codec(self) -> WanCodec:
        from pw.nn.codec import WanCodec

        choice: Any = self.run.codec
        return WanCodec.load(choice, self.weights, self.device)

    @cached_property
    def encoder(self) -> TextEncoder:
        import torch

        from pw.nn.text import TextEncoder

        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        return TextEncoder(self.weights, self.run.backbone.text_tokens, Path(), "", self.device, dtype)

    def clip(self, frames: Any, key: str, bucket: int | None = None) -> dict[str, Tensor]:
        """uint8 [F, H, W, 3] -> `latent` [C, F', h, w], `anchors` [n, C, F', h', w'], float32, at the size of the scale
        or of a bucket."""
        import torch

        scale = self.run.scale if bucket is None else self.run.in_buckets()[bucket][0].scale
        video = fit(frames, (scale.frames, scale.height, scale.width))[None].to(self.device)
        latents = [self.codec.encode(video)]
        for number in range(self.anchors):
            generator = seeded_rng(self.run.seed, key, number)
            latents.append(self.codec.encode(self.run.degradation.anchor(video, scale.anchor_size, generator)))
        if not all(bool(latent.isfinite().all()) for latent in latents):
            raise ValueError(f"clip {key!r} has a latent that is not finite; codec.precision=fp32 may help")
        return {"latent": latents[0][0], "anchors": torch.cat(latents[1:])}

    def text(self, caption: str, cache: Path) -> Tensor:
        """Embedding of a caption [length, D]; the folder `cache` keeps it for other clips of the same video."""
        self.encoder.cache = cache
        return self.encoder.unpadded(caption)


def _device_of(encoding: Encoding) -> str:
    """The device of this call: the CPU, or the GPU with number LOCAL_RANK, else with number rank % GPUs."""
    if encoding.run.trainer.accelerator == "cpu":
        return "cpu"
    import torch

    count = torch.cuda.device_count()
    local = os.environ.get("LOCAL_RANK")
    if local is not None and int(local) >= count:
        raise ConfigError(f"LOCAL_RANK={local}: torch sees {count} GPUs here, 0 to {count - 1}")
    return f"cuda:{encoding.rank % count if local is None else int(local)}"


# ---- the command


def run(options: LatentsOptions) -> int:
    """Exit status: 0 done, 1 too many unreadable clips."""
    encoding = plan_encoding(options)
    print(estimate(encoding), flush=True)
    if options.dry_run:
        check_disk(encoding)
        return 0
    find_weights(encoding)
    check_writable("out", options.out)
    check_disk(encoding)
    import torch

    torch.set_num_threads(encoding.run.trainer.threads)
    print(f"to {encoding.folder}", flush=True)
    try:
        report = encode(encoding, _progress_line(encoding.rank))
    except ValueError as error:  # from the VAE or text encoder, with the key
        raise ConfigError(str(error)) from error
    print(f"{report.encoded} clips encoded, {report.existing} existed, {report.unreadable} skipped")
    for reason in report.skipped[:20]:
        print(printable(f"  {reason}"))
    if len(report.skipped) > 20:
        print(f"  … and {len(report.skipped) - 20} more, see the .json beside each shard")
    if report.is_bad:
        print(f"more than {MAX_UNREADABLE:.0%} of {report.clips} clips are unreadable: repair {encoding.urls}")
    names = [shard.path.name for shard in encoding.shards if not encoding.record(shard).exists()]
    if names:
        print(f"{len(names)} of {len(encoding.shards)} shards are left to the other ranks, such as {names[0]}")
    else:
        print(f"train with data=latents data.urls={encoding.folder}")
    return int(report.is_bad)


main = Command(LatentsOptions, run, resume_hint="what is done is kept; run the same command again to resume")


def _progress_line(rank: int) -> ClipProgress:
    """A progress callback that shows a line with the clips done and the time left."""
    line, pace = ProgressLine(), None

    def show(shard: str, done: int, clips: int) -> None:
        nonlocal pace
        pace = pace or Pace(done - 1)  # existing clips took no time
        if line.is_due or done == clips:
            remaining = pace.time_left(done, clips)
            line.show(f"rank {rank}: {shard}, {done} of {clips} clips, about {remaining} left", last=done == clips)

    return show
