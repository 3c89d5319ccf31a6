"""`from pw.io.lazy import Tensor, torch`: torch, imported at its first use, and `Tensor` for annotations.

The import of torch takes about 5 s of CPU. A wrong key or value is reported sooner, because the strategies (small
dataclasses) are imported, and their arguments checked, without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _Lazy:
    """A proxy that imports its module at the first access to an attribute."""

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
