"""Where a result comes from: commit, code, lock. Stamped on every training and score."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pw.io.paths import IS_CHECKOUT, ROOT, SUITE


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """{"git_commit", "dirty", "code" (hash of `pw` and `benchmarks`), "lock_hash"}; what is not known outside a
    checkout is None."""
    commit = _git("rev-parse", "HEAD")
    return {
        "git_commit": commit,
        "dirty": None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
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


def _git(*arguments: str) -> str | None:
    if not IS_CHECKOUT:  # an environment may lie in a repository of something else
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
