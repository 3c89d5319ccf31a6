"""Imports that take seconds, and libraries that talk too much."""

from __future__ import annotations

import gc
import importlib
import logging
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pw.io.arguments import ConfigError


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
