"""A simulated GPU: the code for CUDA runs on tensors without data, and the bytes of live tensors are counted.

Torch's fake tensors check shapes, dtypes and devices of each operation: a matrix product of bf16 and fp32, or of two
devices, is an error as on a GPU. Only tensors with few numbers (timesteps) are computed; other copies to the CPU
are zeros. Kernels do not run, so there is no time, no workspace and no backward.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
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

FEW = 64  # tensors with at most so many numbers are computed


class Gpu(TorchDispatchMode):
    """Counts allocated bytes (`now`, `peak`), calls of each operation (`operations`), and `dtypes_of_attention`.

    memory: bytes beyond which torch.OutOfMemoryError is raised.
    """

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory = memory
        self.now = self.peak = 0
        self.operations: Counter[str] = Counter()
        self.dtypes_of_attention: set[torch.dtype] = set()
        self._sizes: dict[int, int] = {}
        self._values: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is torch.ops.aten.to:  # only in inference mode; otherwise it is `_to_copy`
            with self:
                return func.decompose(*args, **kwargs)
        if not any(map(_is_on_gpu, tree_leaves((args, kwargs)))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            return self._number(args[0])
        result = func(*args, **kwargs)
        self.operations[str(func)] += 1
        if "dot_product" in str(func):
            self.dtypes_of_attention |= {x.dtype for x in args[:3]}
        if func is torch.ops.aten._to_copy.default and result.device.type == "cpu":
            with unset_fake_temporarily():
                return torch.zeros(result.shape, dtype=result.dtype)
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                self._count(tensor.untyped_storage())
        self._compute(func, args, kwargs, result)
        return result

    def forget(self, tensor: torch.Tensor) -> None:
        """Compute nothing more from the numbers of a tensor."""
        self._values.pop(tensor, None)

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
            if tensor in self._values:
                return self._values[tensor].item()
            # a tensor that is not computed is 0, and True for `isfinite().all()`
            return torch.full((), tensor.dtype == torch.bool, dtype=tensor.dtype).item()

    def _compute(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Compute the numbers of a small tensor from small tensors."""
        if not isinstance(result, FakeTensor) or result.numel() > FEW:
            return
        if any(isinstance(x, torch.Tensor) and x.numel() > FEW for x in tree_leaves((args, kwargs))):
            return

        def value_of(value: Any) -> Any:
            if isinstance(value, FakeTensor):
                return self._values[value]
            return torch.device("cpu") if isinstance(value, torch.device) else value

        try:
            values = tree_map(value_of, (args, kwargs))
        except KeyError:
            return
        with unset_fake_temporarily():
            self._values[result] = func(*values[0], **values[1])


def _is_on_gpu(value: Any) -> bool:
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == "cuda")


class _Stream:
    """A queue of copies, each of which is done when it is asked for."""

    def __init__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _WithoutDriver(FakeTensorMode):
    avoid_device_init = True  # whatever `torch.cuda.is_available` answers


class _Functions(TorchFunctionMode):
    """Scaled dot product attention with the shapes of a fused kernel, as torch would ask the driver which one to use;
    and `parameter.data = …` with a copy on the other device, which is another class of tensor."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.data.__set__ and isinstance(args[0], FakeTensor) != isinstance(args[1], FakeTensor):
            other = torch.nn.Parameter(args[1], False)
            for tensor in (args[0], other):  # what has a weak reference cannot be swapped
                self.gpu.forget(tensor)
            return torch.utils.swap_tensors(args[0], other)
        if func is F.scaled_dot_product_attention and not hasattr(kwargs.get("attn_mask"), "attend"):
            query, key, value = (*args, *(kwargs[n] for n in ("query", "key", "value") if n in kwargs))[:3]
            if _is_on_gpu(query):
                assert query.dtype == key.dtype == value.dtype
                if query.dtype == torch.float32:
                    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, False)[0]
                return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return func(*args, **kwargs)


def _apply(module: torch.nn.Module, move: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """Replaces `nn.Module._apply`, which swaps the contents of old and new tensors; fake tensors cannot be swapped."""
    parameters: dict[int, tuple[torch.Tensor, torch.nn.Parameter]] = {}  # modules keep sharing a parameter
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or (id(parameter) not in parameters and (new := move(parameter)) is parameter):
                continue
            if id(parameter) not in parameters and isinstance(parameter, FakeTensor) == isinstance(new, FakeTensor):
                parameter.data = new  # a cast, after which it is the same tensor
                continue
            if id(parameter) not in parameters:
                parameters[id(parameter)] = parameter, torch.nn.Parameter(new.detach(), parameter.requires_grad)
            part._parameters[name] = parameters[id(parameter)][1]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = move(buffer)
    return module


@contextmanager
def gpu_without_data(patch: pytest.MonkeyPatch, memory: int = 141 * 10**9) -> Iterator[Gpu]:
    """Context with a simulated device `cuda`."""
    gpu = Gpu(memory)
    functions: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_: True,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": gpu.reset_peak,
        "max_memory_allocated": lambda *_: gpu.peak,
        "max_memory_reserved": lambda *_: gpu.peak,
        "mem_get_info": lambda *_: (gpu.memory - gpu.now, gpu.memory),
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=gpu.memory),
        "get_device_name": lambda *_: "a GPU without data",
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": nullcontext,
    }
    for name, function in functions.items():
        patch.setattr(torch.cuda, name, function)
    patch.setattr(fake_tensor, "init_gpu_context", lambda *_: None)  # it needs a driver
    patch.setattr(torch.nn.Module, "_apply", _apply)
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    patch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    with _WithoutDriver(allow_non_fake_inputs=True), gpu, _Functions(gpu):
        yield gpu
