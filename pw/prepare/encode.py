"""Encode shards of video to latent shards: training at Wan's scales then needs no pixels, no VAE, no text encoder.

    pw latents urls=data/shards scale=2k anchors=8 [key=value …]

A call that was stopped goes on at the clip where it was. What is made does not depend on how many calls share the work:
an anchor's degradation is drawn by (seed, the clip's key, its number). `pw.data.latents` says what is written.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.data.latents import EMPTY, RECORD, UNFINISHED, fit
from pw.data.shard_index import ShardError, manifest_entry, write_tar
from pw.data.shards import seeded_rng
from pw.io.arguments import Command, ConfigError
from pw.io.files import check_writable, digest, replacing, write_json, write_tensors
from pw.io.lazy import Tensor
from pw.io.progress import Pace, ProgressLine
from pw.prepare.encoding import Encoding, LatentsOptions, VideoShard, check_disk, estimate, find_weights, plan_encoding

if TYPE_CHECKING:
    from pw.nn.codec import WanCodec
    from pw.nn.text import TextEncoder

TOLERATED = 0.05  # share of clips that may be unreadable

ClipProgress = Callable[[str, int, int], None]
"""Called after every clip and every shard, with the shard, the clips done and the clips there are."""


@dataclass
class EncodingReport:
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


def encode(encoding: Encoding, progress: ClipProgress = lambda shard, done, clips: None) -> EncodingReport:
    """Encode the shards that this call is dealt and that are not there.

    Raises ValueError when the weights do not fit, OSError when the disk is full.
    """
    from filelock import FileLock, Timeout

    folder, worker = encoding.folder, _Worker(encoding)
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    about = {"digest": digest(encoding.identity, 16), "scale": encoding.run.scale.name, **encoding.identity}
    shards = [{"file": shard.path.name, "split": shard.split} for shard in encoding.shards]
    write_json(folder / RECORD, about | {"urls": os.path.abspath(encoding.urls), "shards": shards})
    if not (folder / EMPTY).exists():
        with tempfile.TemporaryDirectory() as cache:
            _save(folder / EMPTY, {"text": worker.text("", Path(cache))})
    report = EncodingReport(sum(_expected(encoding, shard) for shard in encoding.mine))
    waiting = encoding.mine
    for patience in (0, -1):  # first what no other call is at, then wait for it
        todo, waiting = waiting, []
        for shard in todo:
            try:
                with FileLock(folder / UNFINISHED / f"{shard.path.stem}.lock", timeout=patience):
                    _encode_shard(encoding, shard, worker, report, progress)
            except Timeout:
                waiting.append(shard)
    return report


def _expected(encoding: Encoding, shard: VideoShard) -> int:
    """Clips of a shard; of one that cannot be read, as many as its manifest says, or as the others have."""
    if shard.index is not None:
        return len(shard.ids)
    if (known := manifest_entry(shard.path)) is not None:
        return int(known["samples"])
    readable = [len(other.ids) for other in encoding.shards if other.index is not None]
    return math.ceil(sum(readable) / len(readable))


def _encode_shard(
    encoding: Encoding, shard: VideoShard, worker: _Worker, report: EncodingReport, progress: ClipProgress
) -> None:
    record, name = encoding.record(shard), shard.path.name
    made: dict[str, Any]
    if encoding.is_done(shard):
        made = json.loads(record.read_text())
        report.there += made["clips"]
    elif shard.index is None:
        made = {"clips": 0, "skipped": [], "problem": shard.problem}
        write_json(record, made)
        report.skipped.append(shard.problem)
        report.lost += _expected(encoding, shard)
    else:
        work = encoding.folder / UNFINISHED / shard.path.stem
        work.mkdir(exist_ok=True)
        skipped: list[str] = []
        for number, i in enumerate(shard.ids):
            path = work / f"{number:06d}.safetensors"
            if path.exists():
                report.there += 1
                continue
            try:
                clip = shard.index.read(i)
            except ShardError as error:
                skipped.append(str(error))
                continue
            about = {"caption": clip.caption, "split": shard.split, "shard": name, "key": clip.key}
            write_json(path.with_suffix(".json"), about)
            _save(path, worker.clip(clip.frames, clip.key) | {"text": worker.text(clip.caption, work / "text")})
            report.encoded += 1
            progress(name, report.encoded + report.there, report.clips)
        if len(skipped) < len(shard.ids):
            with replacing(encoding.folder / name) as partial:
                write_tar(partial, _samples(work))
        made = {"clips": len(shard.ids) - len(skipped), "skipped": skipped, "problem": ""}
        write_json(record, made)
        shutil.rmtree(work)
    report.skipped += made["skipped"]
    report.lost += len(made["skipped"])
    progress(name, report.encoded + report.there, report.clips)


def _samples(work: Path) -> Iterator[dict[str, Any]]:
    """The finished clips of a shard, as webdataset samples."""
    for path in sorted(work.glob("*.safetensors")):
        about = path.with_suffix(".json").read_bytes()
        yield {"__key__": json.loads(about)["key"], "safetensors": path.read_bytes(), "json": about}


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    import torch

    write_tensors(path, {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()})


class _Worker:
    """VAE and text encoder on this call's device, each loaded when it is first needed."""

    def __init__(self, encoding: Encoding) -> None:
        self.run, self.weights, self.anchors = encoding.run, encoding.weights, encoding.sizes.anchors
        self.device = _device(encoding)

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

    def clip(self, frames: Any, key: str) -> dict[str, Tensor]:
        """uint8 [F, H, W, 3] -> `latent` [C, F', h, w], `anchors` [n, C, F', h', w'], float32."""
        import torch

        scale = self.run.scale
        video = fit(frames, (scale.frames, scale.height, scale.width))[None].to(self.device)
        latents = [self.codec.encode(video)]
        for number in range(self.anchors):
            draw = seeded_rng(self.run.seed, key, number)
            latents.append(self.codec.encode(self.run.degradation.anchor(video, scale.anchor_size, draw)))
        if not all(bool(latent.isfinite().all()) for latent in latents):
            raise ValueError(f"clip {key!r} has a latent that is not finite; codec.precision=fp32 may do better")
        return {"latent": latents[0][0], "anchors": torch.cat(latents[1:])}

    def text(self, caption: str, cache: Path) -> Tensor:
        """A caption's embedding, [length, D]; `cache` keeps it for the other clips of the same video."""
        self.encoder.cache = cache
        return self.encoder.unpadded(caption)


def _device(encoding: Encoding) -> str:
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


def run(options: LatentsOptions) -> int:
    """Exit status: 0 done, 1 too many clips could not be read."""
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
    except ValueError as error:  # of VAE or text encoder, naming the key
        raise ConfigError(str(error)) from error
    print(f"{report.encoded} clips encoded, {report.there} were there, {report.lost} skipped")
    for reason in report.skipped[:20]:
        print(f"  {reason}")
    if len(report.skipped) > 20:
        print(f"  … and {len(report.skipped) - 20} more, see the .json beside each shard")
    if report.is_bad:
        print(f"more than {TOLERATED:.0%} of {report.clips} clips are unreadable: mend {encoding.urls}")
    undone = [shard.path.name for shard in encoding.shards if not encoding.record(shard).exists()]
    if undone:
        print(f"{len(undone)} of {len(encoding.shards)} shards are left to the other ranks, such as {undone[0]}")
    else:
        print(f"train with data=latents data.urls={encoding.folder}")
    return int(report.is_bad)


main = Command(LatentsOptions, run, resumes="what is done is kept; the same call goes on")


def _progress_line(rank: int) -> ClipProgress:
    """A line with what is done and the time left."""
    line, pace = ProgressLine(), None

    def show(shard: str, done: int, clips: int) -> None:
        nonlocal pace
        pace = pace or Pace(done - 1)  # what was there took no time
        if line.is_due or done == clips:
            left = pace.left(done, clips)
            line.show(f"rank {rank}: {shard}, {done} of {clips} clips, about {left} left", last=done == clips)

    return show
