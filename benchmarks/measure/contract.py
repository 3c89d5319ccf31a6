"""The measurement contract: what is stamped on every score, and which scores may stand in one table.

A contract is a dictionary. Free keys (signature, seed, git commit, ...) say where a score came from and may
differ between rows. All others say what was measured: `scale`, `data`, `sampling`, ... and `metrics`
(protocol and settings) must agree in the whole table, `clips` (names and content of the real clips) within
each seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FREE_KEYS = frozenset({
    "signature",
    "train_signature",
    "seed",
    "arm",
    "varied",
    "git_commit",
    "dirty",
    "lock_hash",
    "code",
    "host",
    "versions",
    "created",
    "n_videos",
})  # fmt: skip
SEED_KEYS = frozenset({"clips"})

Contracts = Mapping[str, Mapping[int, Mapping[str, Any]]]


class ClipHash:
    """Names, sizes and pixels (not file bytes) of the clips others are held against, as 16 hex digits."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.count = 0

    def add(self, name: str, shape: tuple[int, ...], pixels: bytes | memoryview) -> None:
        """One clip, in the order of the names; pixels: uint8 [F, H, W, 3]."""
        self._sha.update(f"{name}\0{shape}\0".encode())
        self._sha.update(pixels)
        self.count += 1

    def value(self) -> str:
        """Hash of all clips so far."""
        return self._sha.hexdigest()[:16]


def check_contracts(contracts: Contracts) -> None:
    """Refuse to put scores of different measurements in one table.

    contracts: row (arm, "floor", ...) -> seed -> the contract of its scores.
    Raises: ValueError naming the first key that differs, the rows, and both values.
    """
    first: dict[str, tuple[str, int, Any]] = {}
    first_of_seed: dict[tuple[int, str], tuple[str, int, Any]] = {}
    bound = {row: {s: _bound(c) for s, c in seeds.items()} for row, seeds in contracts.items()}
    keys = {k for seeds in bound.values() for contract in seeds.values() for k in contract}
    for row, seeds in bound.items():
        for seed, contract in seeds.items():
            for key in sorted(keys):
                if key.startswith("metrics.") and key not in contract:
                    continue
                value = contract.get(key)
                if key in SEED_KEYS:
                    seen = first_of_seed.setdefault((seed, key), (row, seed, value))
                else:
                    seen = first.setdefault(key, (row, seed, value))
                if seen[2] != value:
                    raise ValueError(_clash(key, seen, (row, seed, value)))


def table_contract(contracts: Contracts) -> dict[str, Any]:
    """One contract for the table: a value where all rows agree, else the list of the values met.

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


def _bound(contract: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree, metric by metric: rows may lack some (the floor has no solution)."""
    bound = {key: _plain(value) for key, value in contract.items() if key not in FREE_KEYS}
    return bound | {f"metrics.{name}": row for name, row in bound.pop("metrics", {}).items()}


def _plain(value: Any) -> Any:
    """As it comes back from JSON, so that a fresh contract equals one that was read."""
    return json.loads(json.dumps(value, sort_keys=True))


def _clash(key: str, a: tuple[str, int, Any], b: tuple[str, int, Any]) -> str:
    where = _first_difference(key, a[2], b[2])
    return (
        f"scores of different measurements cannot share a table: {where[0]} is {where[1]!r} in {a[0]!r} "
        f"(seed {a[1]}) and {where[2]!r} in {b[0]!r} (seed {b[1]}); score these rows again alike, or put "
        f"them in tables of their own"
    )


def _first_difference(key: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """Down to the innermost key that differs: ("metrics.psd.protocol", "psd/1", "psd/2")."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for inner in sorted({*a, *b}):
            if a.get(inner) != b.get(inner):
                return _first_difference(f"{key}.{inner}", a.get(inner), b.get(inner))
    return key, a, b
