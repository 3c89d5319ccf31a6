"""Where things lie: the suite's own files, the user's folder, and what runs write.

In a checkout `conf/`, `experiments/` and `benchmarks/` lie beside `pw/`; a wheel has them in `pw/_suite/`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout; of an installed wheel, the folder of packages."""

SUITE = packed if (packed := ROOT / "pw" / "_suite").is_dir() else ROOT
"""Where `conf/`, `experiments/` and `benchmarks/` are."""

CONF = SUITE / "conf"

IS_CHECKOUT = SUITE == ROOT

OUTPUTS = (ROOT if IS_CHECKOUT and Path.cwd().is_relative_to(ROOT) else Path.cwd()) / "outputs"
"""Of the working directory; anywhere in a checkout, of the checkout."""


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of a checkout and whether it was changed since; None where git cannot say."""
    commit = _git(folder, "rev-parse", "HEAD")
    return commit, None if commit is None else bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *words: str) -> str | None:
    import subprocess

    command = ["git", "-C", str(folder), *words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def own_folder() -> Path | None:
    """The working directory, where it is a user's: with a `conf/` or `experiments/` beside which there is no `pw/`.

    Its config files and ablations are found beside those of the suite, and its modules can be named in a `_target_`.
    """
    folder = Path.cwd()
    has_own = any((folder / name).is_dir() for name in ("conf", "experiments"))
    return folder if has_own and not (folder / "pw" / "__init__.py").exists() and folder != SUITE else None


def import_paths() -> list[str]:
    """Where modules are looked for first: the suite, then the user's folder, which may have an `experiments/` too."""
    own = own_folder()
    return [str(SUITE), *([] if own is None else [str(own)])]


def import_suite_first() -> None:
    """Have `experiments` and `benchmarks` be the suite's, whatever the working directory holds."""
    first = import_paths()
    sys.path[:] = [*first, *(path for path in sys.path if path not in first)]
