"""Which pairs a judge is shown, on which side and in which order: drawn once, kept in `outputs/<name>/votes`.

A page shows ids that mean nothing; what they stand for stays in the plan (D107). Besides pairs of arms there are
checks: a real clip beside the same one `degraded`, which nobody who looks can prefer, and the `same` clip twice.
"""

from __future__ import annotations

import json
import random
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.report.page_media import Clip
from experiments.engine.outcome.ablation_page import stored_clips
from experiments.engine.outcome.result_files import read_result
from experiments.engine.plan import Plan
from pw.io.arguments import ConfigError
from pw.io.files import digest, parse_json, write_json
from pw.sample.clip_folders import reference_folder, sample_folder

REAL, DEGRADED = "real", "degraded"
CHECK_EVERY, MIN_CHECKS, SAME_EVERY = 10, 3, 30
"""A degraded clip for every so many pairs of arms, but at least so many; for so many pairs the same clip twice."""

GRID = 6  # pixels along the shorter side of a degraded clip

Place = tuple[int, str]
"""(seed, name) of an evaluation clip."""

Clips = Mapping[str, Mapping[Place, Clip]]
"""Arm, or REAL -> its clips."""


@dataclass(frozen=True)
class ClipPair:
    """Two clips beside each other, left and right.

    kind   "arms", "degraded" or "same"
    sides  their arms, or REAL and DEGRADED
    clips  SHA-256 of their files; media: ids by which the page asks for them
    """

    id: str
    kind: str
    seed: int
    name: str
    sides: tuple[str, ...]
    clips: tuple[str, ...]
    media: tuple[str, ...]


@dataclass(frozen=True)
class VotePlan:
    """The pairs of a judge in their order. key: of the checksums of the answers; exported: to a folder."""

    id: str
    judge: str
    key: str
    exported: bool
    pairs: tuple[ClipPair, ...]

    @property
    def shown(self) -> str:
        """Hash of what is shown; an answer names it."""
        return digest([[pair.id, *pair.clips] for pair in self.pairs], 32)

    def write(self, folder: Path) -> None:
        content = parse_json(json.dumps({**asdict(self), "format": 1}))
        write_json(folder / f"plan-{self.id}.json", {**content, "checksum": digest(content, 64)}, durable=True)


def votes_folder(plan: Plan) -> Path:
    return plan.folder / "votes"


def read_plan(path: Path) -> VotePlan:
    """Raises ConfigError for a plan that is not as it was written."""
    types = {"id": str, "judge": str, "key": str, "exported": bool, "pairs": list, "format": int}
    values = read_result(path, types, "put it back, or remove it with its votes")
    del values["format"]
    lists: list[dict[str, Any]] = values.pop("pairs")
    lists = [{key: tuple(value) if isinstance(value, list) else value for key, value in pair.items()} for pair in lists]
    pairs = tuple(ClipPair(**pair) for pair in lists)
    return VotePlan(**values, pairs=pairs)


def read_plans(folder: Path) -> list[VotePlan]:
    """All plans of an ablation, those of a judge together."""
    return sorted((read_plan(path) for path in folder.glob("plan-*.json")), key=lambda plan: (plan.judge, plan.id))


def clips_of(plan: Plan) -> dict[str, dict[Place, Clip]]:
    """The clips of every arm, and the real ones, for all seeds; each as its mark lists it, damaged ones as gaps."""
    names = [f"{index:04d}" for index in range(plan.ceiling.first.sampling.count)]
    outputs, clips = plan.options.outputs, {arm.name: {} for arm in plan.arms} | {REAL: {}}
    for seed in plan.options.seeds:
        folders = {arm.name: (sample_folder(arm.runs[seed], outputs, seed), "") for arm in plan.arms}
        folders[REAL] = (reference_folder(plan.ceiling.runs[seed], outputs, seed), "real/")
        for label, (folder, prefix) in folders.items():
            clips[label] |= {(seed, name): clip for name, clip in stored_clips(folder, prefix, names).items()}
    return clips


def gaps_of(clips: Clips) -> Iterator[str]:
    for label, by_place in clips.items():
        yield from (f"{label} seed {seed} clip {name}: {c.gap}" for (seed, name), c in by_place.items() if c.gap)


def draw_plan(
    judge: str, votes: int, arms: Sequence[str], clips: Clips, earlier: Sequence[VotePlan],
    first: Sequence[frozenset[str]], *, exported: bool,
) -> VotePlan:  # fmt: skip
    """The pairs of a judge: `votes` pairs of arms, and the checks among them.

    earlier: plans of this ablation, which count for the balance; first: pairs of arms that come before others where
    the number is no multiple. Raises ConfigError if no clip is there of two arms and of the real ones.
    """
    identity = secrets.token_hex(8)
    rng = random.Random(identity)
    drawn = list(_draw_arms(judge, votes, arms, clips, earlier, first, rng))
    if not drawn:
        raise ConfigError(
            f"arms={','.join(arms)}: there is no clip left that two of them have and {judge} has not seen"
        )
    rng.shuffle(drawn)
    places = [place for place, clip in clips[REAL].items() if not clip.gap]
    if not places:
        raise ConfigError("the checks need a real clip, and none is there; `make ablation` makes them again")
    kinds = [DEGRADED] * max(MIN_CHECKS, len(drawn) // CHECK_EVERY) + ["same"] * max(1, len(drawn) // SAME_EVERY)
    rng.shuffle(kinds)
    block = len(drawn) / len(kinds)
    for number, kind in reversed(list(enumerate(kinds))):
        sides = (REAL, REAL) if kind == "same" else tuple(rng.sample([REAL, DEGRADED], 2))
        drawn.insert(int((number + rng.random()) * block), (kind, rng.choice(places), sides))
    media: dict[tuple[str, Place], str] = {}

    def shown(kind: str, side: str, place: Place) -> str:
        return media.setdefault((side, place), secrets.token_hex(8)) if kind == "arms" else secrets.token_hex(8)

    pairs = tuple(
        ClipPair(secrets.token_hex(8), kind, *place, sides, tuple(_hash(clips, side, place) for side in sides),
             tuple(shown(kind, side, place) for side in sides))
        for kind, place, sides in drawn
    )  # fmt: skip
    return VotePlan(identity, judge, secrets.token_hex(16), exported, pairs)


def _hash(clips: Clips, side: str, place: Place) -> str:
    clip = clips.get(REAL if side == DEGRADED else side, {}).get(place)
    return clip.sha256 if clip else ""


def is_current(pair: ClipPair, clips: Clips) -> bool:
    """Whether its clips are those that the arms have now; trained or sampled again they are others."""
    return all(
        _hash(clips, side, (pair.seed, pair.name)) == of for side, of in zip(pair.sides, pair.clips, strict=True)
    )


def _draw_arms(
    judge: str, votes: int, arms: Sequence[str], clips: Clips, earlier: Sequence[VotePlan],
    first: Sequence[frozenset[str]], rng: random.Random,
) -> Iterator[tuple[str, Place, tuple[str, ...]]]:  # fmt: skip
    """Pairs of arms, each as often, on the clips on which they were least shown, each on the left half of the time."""
    places = {
        pair: [place for place in clips[pair[0]] if not any(clips[arm][place].gap for arm in pair)]
        for pair in combinations(arms, 2)
    }
    shown: Counter[Any] = Counter()
    seen = set()
    for plan in earlier:
        for pair in (pair for pair in plan.pairs if pair.kind == "arms" and is_current(pair, clips)):
            key, place = frozenset(pair.sides), (pair.seed, pair.name)
            shown.update([key, (key, place)])
            seen |= {(key, place)} if plan.judge == judge else set()
    open_places = {pair: [p for p in of if (frozenset(pair), p) not in seen] for pair, of in places.items()}
    own: Counter[Any] = Counter()
    turned = {pair: rng.randrange(2) for pair in places}
    for _ in range(votes):
        open_pairs = [pair for pair, of in open_places.items() if of]
        if not open_pairs:
            return
        pair = min(open_pairs, key=lambda p: (own[p], shown[frozenset(p)], frozenset(p) not in first, rng.random()))
        key = frozenset(pair)
        place = min(open_places[pair], key=lambda place: (shown[key, place], own[place], rng.random()))
        open_places[pair].remove(place)
        yield "arms", place, pair[:: 1 if (own[pair] + turned[pair]) % 2 else -1]
        own.update([pair, place])


def without_gaps(plan: VotePlan, gaps: Mapping[str, str]) -> VotePlan:
    """The plan without pairs of clips that cannot be shown. gaps: media id -> reason"""
    return replace(plan, pairs=tuple(pair for pair in plan.pairs if not set(pair.media) & gaps.keys()))


def degraded_clip(clip: Clip, folder: Path) -> Clip:
    """The clip in a few large noisy squares, written once. Raises OSError, and VideoError for a clip that is none."""
    path = folder / f"{clip.sha256}.mkv"
    if not path.is_file():
        import numpy as np
        from PIL import Image

        from pw.io.video import probe, read_video, write_video

        frames, rng = read_video(clip.path), np.random.default_rng(0)
        height, width = frames.shape[1:3]
        size = [max(1, round(side * GRID / min(height, width))) for side in (width, height)]
        for i, frame in enumerate(frames):
            small = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
            small = np.clip(small + rng.normal(0, 40, small.shape), 0, 255).astype(np.uint8)
            frames[i] = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST))
        write_video(path, frames, probe(clip.path).fps)
    return Clip(path)
