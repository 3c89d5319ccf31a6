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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.data.latents import ABOUT, EMPTY, UNFINISHED, fit
from pw.data.shard_index import ShardError, manifest_entry, write_tar
from pw.data.shards import seeded
from pw.io.arguments import Command, ConfigError
from pw.io.files import check_writable, digest, replacing, write_json, write_tensors
from pw.io.progress import Pace, ProgressLine
from pw.nn import options as choices
from pw.prepare.encoding import Encoding, LatentsOptions, VideoShard, check_disk, estimate, find_weights, plan_encoding

if TYPE_CHECKING:
    from torch import Tensor

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


def encode(encoding: Encoding, progress: ClipProgress | None = None) -> EncodingReport:
    """Encode the shards that this call is dealt and that are not there.

    Raises ValueError when the weights do not fit, OSError when the disk is full.
    """
    from filelock import FileLock, Timeout

    folder = encoding.folder
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    _write_about(encoding)
    report = EncodingReport(sum(_expected(encoding, shard) for shard in encoding.mine))
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


def _expected(encoding: Encoding, shard: VideoShard) -> int:
    """Clips of a shard; of one that cannot be read, as many as its manifest says, or as the others have."""
    if shard.index is not None:
        return len(shard.ids)
    known = manifest_entry(shard.path)
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


def _encode_shard(
    encoding: Encoding, shard: VideoShard, worker: _Worker, report: EncodingReport, progress: ClipProgress | None
) -> None:
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


def _count_skipped(report: EncodingReport, what: Sequence[str], clips: int) -> None:
    report.skipped += what
    report.lost += clips


def _assemble(encoding: Encoding, shard: VideoShard, work: Path) -> None:
    """The tar of a shard from its clips' files, if there are any."""

    def samples() -> Iterator[dict[str, Any]]:
        for path in sorted(work.glob("*.safetensors")):
            about = path.with_suffix(".json").read_bytes()
            yield {"__key__": json.loads(about)["key"], "safetensors": path.read_bytes(), "json": about}

    if any(work.glob("*.safetensors")):
        with replacing(encoding.folder / shard.path.name) as partial:
            write_tar(partial, samples())


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    import torch

    write_tensors(path, {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()})


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
            assert isinstance(choice, choices.WanVAE)
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
        report = encode(encoding, _progress_line(encoding))
    except ValueError as error:  # of VAE or text encoder, naming the key
        raise ConfigError(str(error)) from error
    print(_outcome(encoding, report))
    return int(report.is_bad)


main = Command(LatentsOptions, run, resumes="what is done is kept; the same call goes on")


def _outcome(encoding: Encoding, report: EncodingReport) -> str:
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


def _progress_line(encoding: Encoding) -> ClipProgress:
    """A line with what is done and the time left."""
    line, pace = ProgressLine(), Pace()
    started = False

    def show(shard: str, done: int, clips: int) -> None:
        nonlocal started
        if not started:
            pace.restart(done - 1)  # what was there took no time
            started = True
        if line.is_due or done == clips:
            left = pace.left(done, clips)
            line.show(f"rank {encoding.rank}: {shard}, {done} of {clips} clips, about {left} left", last=done == clips)

    return show
