"""Where things lie: the suite's own files, the user's folder, and what runs write; and how modules are imported.

In a checkout `conf/`, `experiments/` and `benchmarks/` lie beside `pw/`; a wheel has them in `pw/_suite/`.
"""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pw.io.arguments import ConfigError

ROOT = Path(__file__).resolve().parents[2]  # the checkout; of an installed wheel, the folder of packages
SUITE = packed if (packed := ROOT / "pw" / "_suite").is_dir() else ROOT
CONF = SUITE / "conf"
IS_CHECKOUT = SUITE == ROOT
# of the working directory; anywhere in a checkout, of the checkout
OUTPUTS = (ROOT if IS_CHECKOUT and Path.cwd().is_relative_to(ROOT) else Path.cwd()) / "outputs"


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of a checkout and whether it was changed since; None where git cannot say."""
    import subprocess

    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, None
    commit, changed, _ = answer.stdout.strip().partition("-dirty")
    return commit, bool(changed)


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


@contextmanager
def explained(about: str, folder: Path) -> Generator[None]:
    """While a user's file is imported: raises ConfigError naming the line of theirs at which it failed.

    about   what was asked for, e.g. `name=mine`
    folder  where the user's files are
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
        own = [f"{file}:{line}: " for file, line in places if file and Path(file).is_relative_to(folder)]
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"{about}: {own[-1] if own else ''}{type(error).__name__}: {why}") from error


def import_for_good(*modules: str) -> None:
    """Import modules, and meanwhile collect no garbage.

    Those of a training make 900 000 objects, which stay: to look through them again and again takes a fifth of the time
    to import them. They are never looked through again.
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


def quiet() -> None:
    """Silence what Lightning says to nobody: tips, hardware lists, data-loader advice."""
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec|isinstance\\(treespec).*")
    # the loss does nothing in place to what the network returns
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers.hooks.context_parallel")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
