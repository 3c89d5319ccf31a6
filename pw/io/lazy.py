"""`from pw.io.lazy import Tensor, torch`: torch, imported at its first use, and the name of its tensors in annotations.

Importing torch takes about 5 s of CPU. A wrong key or value has to be reported sooner, so the strategies (small
dataclasses) must be importable, and their arguments checkable, without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _Lazy:
    """Stands in for a module until an attribute of it is asked for."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self.__dict__["_name"]), attribute)
        self.__dict__[attribute] = value
        return value


if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = _Lazy("torch")
    Tensor = object

__all__ = ["Tensor", "torch"]
