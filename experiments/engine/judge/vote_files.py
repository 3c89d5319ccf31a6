"""The answers of a judge: a line of `votes-<plan>.jsonl` each, on the disk before the next pair is shown.

Every line has a checksum over it, the line before and the key of the plan, so a line that is changed, added or taken
out of the middle by hand is found. Who has the plan can compute them again, and a checksum says nothing of whether
somebody looked (D107). An exported page writes a file with all answers, and a checksum of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.engine.judge.vote_plan import VotePlan
from pw.io.arguments import ConfigError
from pw.io.files import digest, os_reason, parse_json

SCORES = {"left": 1.0, "right": 0.0, "tie": 0.5}
CHOICES = (*SCORES, "gap")
"""What can be answered; "gap": a clip could not be shown."""

MOST_BYTES = 2**24
LONGEST_MS = 2**53

Answers = dict[str, tuple[str, int]]
"""ClipPair -> (choice, milliseconds), in the order of the answers."""


class VoteFile:
    """The answers to a plan. Raises ConfigError for a file that is not as it was written."""

    def __init__(self, plan: VotePlan, folder: Path) -> None:
        self.plan, self.path = plan, folder / f"votes-{plan.id}.jsonl"
        self.answers: Answers = {}
        self._last = ""
        self._pairs = {pair.id for pair in plan.pairs}
        text = self.path.read_bytes() if self.path.exists() else b""
        self._whole = text.rfind(b"\n") + 1  # a call that was killed may leave a part of a line
        for number, line in enumerate(text[: self._whole].splitlines(), 1):
            try:
                entry = parse_json(line)
                check = entry.pop("check")
                self._take(entry, check)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ConfigError(f"{self.path}: line {number} is not as it was written; put the file back") from error

    def add(self, pair: str, choice: str, milliseconds: int = 0) -> None:
        """Store an answer; "undo" takes the last one back. Raises ValueError for one that was not asked for."""
        entry = {"pair": pair, "choice": choice, "ms": milliseconds}
        check = self._check(entry)
        self._test(entry)
        with self.path.open("r+b" if self.path.exists() else "xb") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            file.write(json.dumps({**entry, "check": check}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()
        self._take(entry, check)

    def _test(self, entry: Mapping[str, Any]) -> None:
        pair, choice, milliseconds = entry["pair"], entry["choice"], entry["ms"]
        if pair not in self._pairs:
            raise ValueError(f"pair {pair!r} was not asked")
        if type(milliseconds) is not int or not 0 <= milliseconds < LONGEST_MS:
            raise ValueError(f"pair {pair}: {milliseconds!r} is no time in milliseconds")
        if choice == "undo":
            if not self.answers or pair != [*self.answers][-1]:
                raise ValueError(f"pair {pair} is not the last that was answered")
        elif choice not in CHOICES:
            raise ValueError(f"pair {pair}: {choice!r} is none of {', '.join(CHOICES)}")
        elif pair in self.answers:
            raise ValueError(f"pair {pair} is answered already")

    def _take(self, entry: Mapping[str, Any], check: str) -> None:
        if check != self._check(entry):
            raise ValueError("checksum")
        self._test(entry)
        if entry["choice"] == "undo":
            del self.answers[entry["pair"]]
        else:
            self.answers[entry["pair"]] = entry["choice"], entry["ms"]
        self._last = check

    def _check(self, entry: Mapping[str, Any]) -> str:
        return digest([self.plan.key, self._last, entry], 16)


def read_answers(path: Path) -> dict[str, Any]:
    """The content of a file that an exported page saved. Raises ConfigError for any other file."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ValueError("is no file of answers that the page saved")
        try:
            values = parse_json(path.read_bytes())
        except ValueError:
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("votes"), list):
            raise ValueError("is no file of answers that the page saved")
        content = [values.get(key) for key in ("plan", "judge", "shown", "votes")]
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        if values.get("checksum") != hashlib.sha256(text.encode()).hexdigest():
            raise ValueError("is not as the page saved it, its checksum differs; ask for the file again")
        for vote in values["votes"]:
            if not isinstance(vote, list) or [type(item) for item in vote] != [str, str, int]:
                raise ValueError(f"{vote!r} is no answer")
    except OSError as error:
        raise ConfigError(f"add={path}: {os_reason(error)}") from error
    except ValueError as error:
        raise ConfigError(f"add={path}: {error}") from error
    return values


def take_answers(path: Path, plans: Sequence[VotePlan], folder: Path) -> tuple[VotePlan, int]:
    """Store the answers of a file; returns its plan and how many were new. Stores none if it raises ConfigError."""
    values = read_answers(path)
    plan = next((plan for plan in plans if plan.id == values["plan"]), None)
    if plan is None:
        raise ConfigError(f"add={path}: answers to plan {values['plan']!r}, which is not in {folder}")
    if (values["judge"], values["shown"]) != (plan.judge, plan.shown):
        raise ConfigError(f"add={path}: answers of {values['judge']!r} to other clips than those of plan {plan.id}")
    file, new = VoteFile(plan, folder), {}
    asked = {pair.id for pair in plan.pairs}
    for pair, choice, milliseconds in values["votes"]:
        known = file.answers.get(pair) or new.get(pair)
        if pair not in asked or choice not in CHOICES or not 0 <= milliseconds < LONGEST_MS:
            raise ConfigError(f"add={path}: pair {pair!r}, {choice!r}: was not asked")
        if pair in new or (known is not None and known != (choice, milliseconds)):
            raise ConfigError(f"add={path}: pair {pair} is answered twice")
        if known is None:
            new[pair] = choice, milliseconds
    for pair, (choice, milliseconds) in new.items():
        file.add(pair, choice, milliseconds)
    return plan, len(new)
