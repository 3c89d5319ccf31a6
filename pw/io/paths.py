"""Folders of the suite, of the user and of results; and how modules are imported.

In a checkout `conf/`, `experiments/` and `benchmarks/` are beside `pw/`; in a wheel they are in `pw/_suite/`.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pw.io.arguments import ConfigError

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or site-packages of an installed wheel
SUITE = packaged if (packaged := ROOT / "pw" / "_suite").is_dir() else ROOT
CONF = SUITE / "conf"
IS_CHECKOUT = SUITE == ROOT
# in the working directory; from anywhere in a checkout, in the checkout
OUTPUTS = (ROOT if IS_CHECKOUT and Path.cwd().is_relative_to(ROOT) else Path.cwd()) / "outputs"


def run_git(folder: Path, *words: str, seconds: float = 10) -> str:
    """The output of a call of git in a folder. Raises OSError without git, SubprocessError when the call fails."""
    import subprocess

    # set inside a hook of any repository; they would name that one
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    call = ["git", "-C", str(folder), *words]
    return subprocess.run(
        call, env=environment, capture_output=True, text=True, errors="replace", timeout=seconds, check=True
    ).stdout.strip()


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """(commit of a checkout, whether it has changes or code that are not committed); None for both without git.

    A repository around the folder does not count: it says nothing about the code in it.
    """
    import subprocess

    try:
        if run_git(folder, "rev-parse", "--show-cdup"):  # the way up to the top of the repository
            return None, None
        description = run_git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        commit, dirty, _ = description.partition("-dirty")
        untracked = run_git(folder, "ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml")
        return commit, bool(dirty or untracked)
    except (OSError, subprocess.SubprocessError):
        return None, None


def user_folder() -> Path | None:
    """The working directory, if it has a `conf/` or `experiments/` but no `pw/`; else None.

    Its config files and ablations extend those of the suite, and a `_target_` can name its modules.
    """
    folder = Path.cwd()
    has_user_files = any((folder / name).is_dir() for name in ("conf", "experiments"))
    return folder if has_user_files and not (folder / "pw" / "__init__.py").exists() and folder != SUITE else None


def import_suite_first() -> None:
    """Import `experiments` and `benchmarks` from the suite, whatever is in the working directory, and the modules of
    the user's folder last: a random.py there is not Python's."""
    folder = user_folder()
    last = [] if folder is None else [str(folder)]
    sys.path[:] = [str(SUITE), *(path for path in sys.path if path not in (str(SUITE), *last)), *last]


@contextmanager
def explain_import_errors(request: str, folder: Path) -> Generator[None]:
    """Turns an error in a file of the user, while it is imported, into a ConfigError with its file and line.

    request  the words that cause the import, e.g. `name=mine`
    folder   the folder of the user's files
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if isinstance(error, SyntaxError):
            places = [(error.filename or "", error.lineno)]
        else:
            places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        user_lines = [f"{file}:{line}: " for file, line in places if file and Path(file).is_relative_to(folder)]
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(
            f"{request}: {user_lines[-1] if user_lines else ''}{type(error).__name__}: {message}"
        ) from error


def import_without_gc(*modules: str) -> None:
    """Import modules with garbage collection off, and exclude their objects from later collections.

    The modules of a training create 900 000 permanent objects; scanning them takes a fifth of the import time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def silence_libraries() -> None:
    """Silence messages of libraries that do not concern the user: tips, hardware lists, data-loader advice."""
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec|isinstance\\(treespec).*")
    # the loss does not change the output of the network in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers.hooks.context_parallel")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
