"""Where a result comes from: commit, code, lock. Stamped on every training and score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pw.io.paths import IS_CHECKOUT, ROOT, SUITE, commit_of


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """{"git_commit", "dirty", "code" (hash of `pw` and `benchmarks`), "lock_hash"}; what is not known outside a
    checkout is None."""
    # an environment may lie in a repository of something else
    commit, is_dirty = commit_of(ROOT) if IS_CHECKOUT else (None, None)
    return {
        "git_commit": commit,
        "dirty": is_dirty,
        "code": _hash([*_python_files(ROOT / "pw"), *_python_files(SUITE / "benchmarks")]),
        "lock_hash": _hash([lock]) if (lock := ROOT / "requirements" / "dev.lock").exists() else None,
    }


def _python_files(folder: Path) -> list[Path]:
    """But not those that a wheel has in `pw/_suite`."""
    return sorted(path for path in folder.rglob("*.py") if "_suite" not in path.relative_to(folder).parts)


def _hash(paths: Iterable[Path]) -> str:
    sha = hashlib.sha256()
    for path in paths:
        sha.update(path.read_bytes())
    return sha.hexdigest()[:12]
