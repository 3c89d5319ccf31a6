"""Results that were made elsewhere: the record beside them, what a table says of them, and what they spare."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pw.io.files import read_json

RECORD = "adopted.json"
KINDS = {"train": "trainings", "sample": "samplings", "score": "scores"}


class _Task(Protocol):
    """A job, or its outline."""

    @property
    def key(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...


Task = TypeVar("Task", bound=_Task)


def adoption(folder: Path) -> dict[str, Any] | None:
    """The record of a result that `pw adopt` put there; None for one that was made, or made again, here.

    Clips that were added or replaced here leave a sampling adopted: the others were not made here.
    """
    record = read_json(folder / RECORD)
    if record is None or folder.parent.name == "videos":
        return record
    mark = read_json(folder / "done.json") or read_json(folder / "scores.json") or {}
    return record if mark.get("checksum") == record.get("checksum") else None


def short_commits(text: str) -> str:
    """`text` with 12 of the 40 digits of each commit in it."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", text)


def adopted_notes(folders: Sequence[tuple[str, Path]]) -> list[str]:
    """A note per file that results were adopted from. folders: (kind of job, folder) of every job of a plan"""
    counts: dict[str, dict[str, int]] = {}
    for kind, folder in folders:
        if record := adoption(folder):
            file = f"{record['file']} (sha256 {record['sha256'][:12]}, commit {short_commits(record['commit'])})"
            counts.setdefault(file, dict.fromkeys(KINDS, 0))[kind] += 1
    totals = {kind: sum(other == kind for other, _ in folders) for kind in KINDS}
    return [
        f"adopted from {file}, so made elsewhere: "
        + ", ".join(f"{count} of {totals[kind]} {KINDS[kind]}" for kind, count in of.items() if count)
        for file, of in counts.items()
    ]


def spared(tasks: Sequence[Task], missing: Collection[str], is_adopted: Callable[[Task], bool]) -> set[str]:
    """The keys of missing results that nothing has to read: whatever is made from them is there, and was adopted.

    tasks: each after those that it needs
    """
    users: dict[str, list[Task]] = {}
    for task in tasks:
        for key in task.needs:
            users.setdefault(key, []).append(task)
    keys: set[str] = set()
    for task in reversed(tasks):
        of = users.get(task.key, ()) if task.key in missing else ()
        if of and all(user.key in keys or (user.key not in missing and is_adopted(user)) for user in of):
            keys.add(task.key)
    return keys
