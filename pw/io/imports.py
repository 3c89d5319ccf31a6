"""Imports that take seconds, and libraries that talk too much."""

from __future__ import annotations

import gc
import importlib
import logging
import warnings


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
