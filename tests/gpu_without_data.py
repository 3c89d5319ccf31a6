"""A GPU that is not there: the code for CUDA runs on tensors without data, and what is alive at once is counted.

Shapes, dtypes and devices are followed op by op as torch has them for CUDA (its fake tensors): a matrix product of bf16
with fp32, or of a tensor here with one there, is an error as it would be on a GPU. Numbers are not computed, but for a
handful (timesteps); what is copied to the CPU is zeros. Kernels do not run: no time, no workspace, and no backward.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

FEW = 64  # numbers of a tensor that are computed after all


class Gpu(TorchDispatchMode):
    """What is on it: bytes `now` and their `peak`, how often each operation `ran`, the `dtypes_of_attention`.

    Beyond `memory` it is out of it.
    """

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory = memory
        self.now = self.peak = 0
        self.ran: Counter[str] = Counter()
        self.dtypes_of_attention: set[torch.dtype] = set()
        self._sizes: dict[int, int] = {}
        self._known: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is torch.ops.aten.to:  # in inference mode alone; else it comes as `_to_copy`
            with self:
                return func.decompose(*args, **kwargs)
        if not any(map(_is_there, tree_leaves((args, kwargs)))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            return self._number(args[0])
        made = func(*args, **kwargs)
        self.ran[str(func)] += 1
        if "dot_product" in str(func):
            self.dtypes_of_attention |= {x.dtype for x in args[:3]}
        if func is torch.ops.aten._to_copy.default and made.device.type == "cpu":
            with unset_fake_temporarily():
                return torch.zeros(made.shape, dtype=made.dtype)
        for tensor in tree_leaves(made):
            if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                self._count(tensor.untyped_storage())
        self._compute(func, args, kwargs, made)
        return made

    def reset_peak(self, *_: Any) -> None:
        self.peak = self.now

    def _count(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self._sizes:
            if self.now + storage.nbytes() > self.memory:
                raise torch.OutOfMemoryError("CUDA out of memory, were there a GPU")
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def _number(self, tensor: torch.Tensor) -> Any:
        with unset_fake_temporarily():
            if tensor in self._known:
                return self._known[tensor].item()
            # what is not computed is 0, and the answer to "is all of it finite?" is yes
            return torch.full((), tensor.dtype == torch.bool, dtype=tensor.dtype).item()

    def _compute(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """The few numbers of a small tensor that is made of small tensors."""
        if not isinstance(made, FakeTensor) or made.numel() > FEW:
            return
        if any(isinstance(x, torch.Tensor) and x.numel() > FEW for x in tree_leaves((args, kwargs))):
            return

        def here(value: Any) -> Any:
            if isinstance(value, FakeTensor):
                return self._known[value]
            return torch.device("cpu") if isinstance(value, torch.device) else value

        try:
            known = tree_map(here, (args, kwargs))
        except KeyError:
            return
        with unset_fake_temporarily():
            self._known[made] = func(*known[0], **known[1])


def _is_there(value: Any) -> bool:
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == "cuda")


class _WithoutDriver(FakeTensorMode):
    avoid_device_init = True  # whatever `torch.cuda.is_available` answers


class _Attention(TorchFunctionMode):
    """Scaled dot product attention by a fused kernel's shapes: torch asks the driver which one it is to be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[n] for n in ("query", "key", "value") if n in kwargs))[:3]
            if _is_there(query):
                assert query.dtype == key.dtype == value.dtype
                if query.dtype == torch.float32:
                    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, False)[0]
                return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return func(*args, **kwargs)


def _moved(module: torch.nn.Module, move: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """`nn.Module._apply`, which would swap the insides of the old tensors and of the new: fake ones cannot be."""
    moved: dict[int, tuple[torch.Tensor, torch.nn.Parameter]] = {}  # what two modules share they go on sharing
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or (id(parameter) not in moved and (new := move(parameter)) is parameter):
                continue
            if id(parameter) not in moved:
                moved[id(parameter)] = parameter, torch.nn.Parameter(new.detach(), parameter.requires_grad)
            part._parameters[name] = moved[id(parameter)][1]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = move(buffer)
    return module


@contextmanager
def gpu_without_data(patch: pytest.MonkeyPatch, memory: int = 141 * 10**9) -> Iterator[Gpu]:
    """A device `cuda` for all that runs within it."""
    found = Gpu(memory)
    told: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_: True,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": found.reset_peak,
        "max_memory_allocated": lambda *_: found.peak,
        "mem_get_info": lambda *_: (found.memory - found.now, found.memory),
        "get_device_name": lambda *_: "a GPU without data",
    }
    for name, answer in told.items():
        patch.setattr(torch.cuda, name, answer)
    patch.setattr(fake_tensor, "init_gpu_context", lambda *_: None)  # it would look for a driver
    patch.setattr(torch.nn.Module, "_apply", _moved)
    with _WithoutDriver(allow_non_fake_inputs=True), found, _Attention():
        yield found
