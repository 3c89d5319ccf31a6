"""Memory that ran out under a metric: told in one line with what would do, and given back for the next video."""

from __future__ import annotations

import math
import re
import sys

_SAYS_SO = re.compile(r"out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED", re.IGNORECASE)
_OF_A_GPU = re.compile(r"cuda|cublas|cudnn|gpu", re.IGNORECASE)
_LINE = 200  # characters of an allocator's story


def shortage(error: BaseException) -> str:
    """What an error says of memory that ran out, in one line; nothing for any other error.

    numpy raises MemoryError; torch a RuntimeError: of its own kind where its CUDA allocator ran out, of any where the
    driver, cuBLAS or the CPU did.
    """
    is_torchs = type(error).__name__ == "OutOfMemoryError" or _SAYS_SO.search(str(error))
    if not (isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_torchs)):
        return ""
    # torch goes on with who holds how much, and with advice about its allocator
    line = " ".join(str(error).split()).partition(" Process ")[0].partition(" Including ")[0].rstrip(". ")
    return (line if len(line) <= _LINE else f"{line[:_LINE]} …") or "out of memory"


def remedy(why: str, *, at_once: int = 1, need: int = 0) -> str:
    """What would do against a `shortage`, as keys of `benchmarks.measure.score`.

    at_once: frames that were given to the metric together; need: bytes of one.
    """
    fewer = f"memory={math.ceil(need / 1e6)}MB hands it one frame at a time" if at_once > 1 else ""
    elsewhere = "device=cpu takes the machine's memory instead" if _OF_A_GPU.search(why) else ""
    return ", ".join(filter(None, (fewer, elsewhere))) or "it takes a machine with more memory, or a smaller video"


def give_back() -> None:
    """Return what torch keeps of the GPUs' memory for later; to be called when no error holds tensors any more."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
