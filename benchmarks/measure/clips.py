"""Score the clips of an ablation's run: `scores.csv` (a row per video), `scores.json` (values and their contract).

A folder has lossless clips `0000.mkv`, `0001.mkv`, ...; real clips, structure clips (anchors) and many-step solutions
are paired with them by file name. A metric without its folders is absent, never zero.

The contract is a dictionary in every scores.json that defines which scores may share a table. Free keys (signature,
seed, git commit, ...) describe the origin of a score and may differ between rows. All other keys describe the
measurement: `scale`, `data`, `sampling`, ... and `metrics` (protocol and settings) must be equal in the whole table,
`clips` (names and content of the real clips) within each seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.metrics import lookup, protocols
from pw.io.files import remove, write_csv
from pw.io.lazy import Tensor
from pw.io.manifest import listed_names, make_folder, write_mark
from pw.io.video_files import is_video

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.metrics.implementation import Batch

BATCH_PIXELS = 2**22
"""Pixels of a batch: small clips are batched until they have as many; a batch has at least one clip."""

FREE_KEYS = frozenset((
    *("signature", "train_signature", "seed", "arm", "varied", "git_commit", "dirty", "lock_hash", "code", "host"),
    *("versions", "created", "n_videos"),
))  # fmt: skip
SEED_KEYS = frozenset({"clips"})

Contracts = Mapping[str, Mapping[int, Mapping[str, Any]]]


def score_folder(
    videos: Path,
    out: Path,
    *,
    real: Path | None,
    structure: Path | None,
    solution: Path | None,
    n_solutions: int | None,
    metrics: Sequence[str],
    contract: Mapping[str, Any],
) -> dict[str, Any]:
    """Score the clips of `videos` and write `out`/scores.{csv,json}, atomically.

    A metric uses the clips whose names are in all folders that it needs; n_videos is their number.

    n_solutions: use only as many clips of `solution`, the first by name; the folder may have more, from another arm.
    contract: origin and measurement; the metrics' protocols and the hash of the real clips are added.
    Returns: {"metrics": {name: value}, "n_videos": {name: n}, "contract": {...}}; scores.json is their mark.
    Raises: ValueError for an unknown metric, a folder without clips, or without a name in common with `videos`.
    """
    folders = {"real": real, "structure": structure, "solution": solution}
    rows, result, clip_hash = measure_clips(pair_clips(clip_paths(videos), folders, n_solutions), metrics)
    result["contract"] = {**contract, "metrics": protocols(metrics), "clips": clip_hash}
    columns = ["video", "frames", *(name for name in result["n_videos"] if lookup(name).level == "video")]
    make_folder(out)
    for name in ("scores.json", "scores.csv"):
        remove(out / name)
    write_csv(out / "scores.csv", columns, ({"video": name, **row} for name, row in rows.items()))
    write_mark(out / "scores.json", result, [out / "scores.csv"])
    return result


def measure_clips(
    clips: Mapping[str, Mapping[str, Path]], metrics: Sequence[str]
) -> tuple[dict[str, dict[str, float]], dict[str, Any], dict[str, Any]]:
    """Measure clips of `pair_clips` by the metrics whose folders are given.

    Returns: clip -> "frames" and its values; {"metrics": the folder's finite values, "n_videos": the number of clips
        per metric}; number and hash of the real clips.
    """
    from benchmarks.metrics.implementation import scorer_of

    scorers = {name: scorer_of([name]) for name in metrics if all(need in clips for need in lookup(name).needs)}
    rows: dict[str, dict[str, float]] = {}
    counts = dict.fromkeys(scorers, 0)
    clip_hash = ClipHash()
    for names, batch in batches(clips, clip_hash):
        frames = batch.video.shape[2]
        rows.update({name: {"frames": frames} for name in names})
        for metric, scorer in scorers.items():
            if any(getattr(batch, need) is None for need in lookup(metric).needs):
                continue
            values = scorer.add(batch)
            counts[metric] += len(names)
            for name, value in zip(names, () if values is None else values.tolist(), strict=False):
                rows[name][metric] = value
        del batch  # before the next one is read
    totals = {name: scorer.result() for name, scorer in scorers.items() if counts[name]}
    finite = {name: value for name, value in totals.items() if math.isfinite(value)}
    return rows, {"metrics": finite, "n_videos": counts}, {"n": clip_hash.count, "sha256": clip_hash.value()}


def pair_clips(
    videos: Mapping[str, Path], folders: Mapping[str, Path | None], n_solutions: int | None = None
) -> dict[str, Mapping[str, Path]]:
    """Role ("video", "real", ...) -> clips by name; of the solutions only the first `n_solutions`.

    Raises: ValueError for a folder without clips, or without a name in common with `videos`.
    """
    clips = {"video": videos}
    for role, folder in folders.items():
        if folder is None:
            continue
        clips[role] = dict(list(clip_paths(folder).items())[: n_solutions if role == "solution" else None])
        if not clips[role].keys() & videos.keys():
            video_folder = next(iter(videos.values())).parent
            raise ValueError(f"no clip of {role}={folder} has the name of one in {video_folder}; names must agree")
    return clips


def clip_paths(folder: Path) -> dict[str, Path]:
    """The clips of a folder by name without suffix, sorted; of a folder of the suite those that its mark lists.

    Raises ValueError if there are none; DamagedResult.
    """
    listed = listed_names(folder)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = {path.stem: path for path in entries if is_video(path) and (listed is None or path.name in listed)}
    if not paths:
        raise ValueError(f"no clips (*.mkv) in {folder}; sample into it first")
    return paths


def batches(clips: Mapping[str, Mapping[str, Path]], clip_hash: ClipHash) -> Iterator[tuple[list[str], Batch]]:
    """Names and tensors of consecutive clips with the same roles and sizes, up to BATCH_PIXELS per batch."""
    from pw.io.video import read_video

    group: list[tuple[str, dict[str, np.ndarray]]] = []
    for name in clips["video"]:
        paths = {role: by_name[name] for role, by_name in clips.items() if name in by_name}
        videos = {path: read_video(path) for path in set(paths.values())}  # structure and real are often one folder
        arrays = {role: videos[path] for role, path in paths.items()}
        shapes = {role: array.shape for role, array in arrays.items()}
        if "real" in arrays:
            clip_hash.add(name, arrays["real"].shape, arrays["real"].data)
        if group and {role: array.shape for role, array in group[0][1].items()} != shapes:
            yield _stack(group)
            group = []
        group.append((name, arrays))
        del videos, arrays
        pixels = sum(clip["video"].size // 3 for _, clip in group)
        if pixels >= BATCH_PIXELS:  # before the next clip is read, so that only one large clip is in memory
            yield _stack(group)
            group = []
    if group:
        yield _stack(group)


def _stack(group: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> tuple[list[str], Batch]:
    """uint8 [F, H, W, 3] each -> uint8 [B, 3, F, H, W]; a view without a copy if there is one clip."""
    import numpy as np
    import torch

    from benchmarks.metrics.implementation import Batch

    def stack(role: str) -> Tensor:
        clips = [arrays[role] for _, arrays in group]
        array = clips[0][None] if len(clips) == 1 else np.stack(clips)
        return torch.from_numpy(array).permute(0, 4, 1, 2, 3)

    return [name for name, _ in group], Batch(**{role: stack(role) for role in group[0][1]})


# ---- the contract


class ClipHash:
    """Hash of names, sizes and pixels (not file bytes) of the real clips, 16 hex digits."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.count = 0

    def add(self, name: str, shape: tuple[int, ...], pixels: bytes | memoryview) -> None:
        """Add a clip; the order of calls matters. pixels: uint8 [F, H, W, 3]."""
        self._sha.update(f"{name}\0{shape}\0".encode())
        self._sha.update(pixels)
        self.count += 1

    def value(self) -> str:
        """Hash of all clips so far."""
        return self._sha.hexdigest()[:16]


def check_contracts(contracts: Contracts) -> None:
    """Check that the scores may share a table.

    contracts: row (arm, "floor", ...) -> seed -> the contract of its scores.
    Raises: ValueError naming the first key that differs, the rows, and both values.
    """
    reference: dict[tuple[int | None, str], tuple[str, int, Any]] = {}
    values_of = {row: {s: _comparable_values(c) for s, c in seeds.items()} for row, seeds in contracts.items()}
    keys = {k for seeds in values_of.values() for contract in seeds.values() for k in contract}
    for row, seeds in values_of.items():
        for seed, contract in seeds.items():
            for key in sorted(keys):
                if key.startswith("metrics.") and key not in contract:
                    continue
                entry = row, seed, contract.get(key)
                expected = reference.setdefault((seed if key in SEED_KEYS else None, key), entry)
                if expected[2] != entry[2]:
                    raise ValueError(_conflict(key, expected, entry))


def table_contract(contracts: Contracts) -> dict[str, Any]:
    """Merge the contracts of a table: a value if all rows have the same one, else the list of values.

    Raises: ValueError as `check_contracts`.
    """
    check_contracts(contracts)
    merged: dict[str, list[Any]] = {}
    for seeds in contracts.values():
        for contract in seeds.values():
            for key, value in contract.items():
                if (plain := _plain(value)) not in merged.setdefault(key, []):
                    merged[key].append(plain)
    return {key: values[0] if len(values) == 1 else values for key, values in merged.items()}


def _comparable_values(contract: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that must agree, with a key per metric, as rows may lack metrics (the floor has no solution)."""
    values = {key: _plain(value) for key, value in contract.items() if key not in FREE_KEYS}
    return values | {f"metrics.{name}": row for name, row in values.pop("metrics", {}).items()}


def _plain(value: Any) -> Any:
    """Convert to JSON and back, so that a new contract equals one read from a file."""
    return json.loads(json.dumps(value, sort_keys=True))


def _conflict(key: str, a: tuple[str, int, Any], b: tuple[str, int, Any]) -> str:
    difference = _first_difference(key, a[2], b[2])
    return (
        f"scores of different measurements cannot share a table: {difference[0]} is {difference[1]!r} in {a[0]!r} "
        f"(seed {a[1]}) and {difference[2]!r} in {b[0]!r} (seed {b[1]}); score these rows again alike, or put "
        f"them in tables of their own"
    )


def _first_difference(key: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """The innermost key that differs and both values: ("metrics.psd.protocol", "psd/1", "psd/2")."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for inner in sorted({*a, *b}):
            if a.get(inner) != b.get(inner):
                return _first_difference(f"{key}.{inner}", a.get(inner), b.get(inner))
    return key, a, b
