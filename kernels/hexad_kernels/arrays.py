"""Arrays of numpy, jax, cupy and whoever else speaks DLPack, in place of tensors.

An op refuses what is no tensor; only then does it ask here, so that tensors pay nothing. Arrays go in without a copy
(numpy's with a negative stride, which no tensor has, are copied) and results come back as the caller's kind, by its
own `from_dlpack`. The array API's `__array_namespace__` says which module that is, else the array's type does.

An op that writes in place writes into the caller's memory, and refuses an array that is read-only; it never writes to
any other. Gradients are torch's: arrays have none.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_CPU, _CUDA, _ROCM = 1, 2, 10
_DEVICES = {_CPU: "cpu", _CUDA: "cuda", _ROCM: "cuda"}
_READ_ONLY = 1  # the flag of DLPack 1.0


def foreign(value: object) -> bool:
    """Whether `value` is an array that is no tensor."""
    return not isinstance(value, Tensor) and hasattr(type(value), "__dlpack__")


def _leaves(args: Sequence[Any]) -> Iterator[Any]:
    for a in args:
        if isinstance(a, (list, tuple)):
            yield from _leaves(a)
        else:
            yield a


def instead(args: Sequence[Any]) -> bool:
    """Whether a call has arrays and no tensor. Of a call that has both, the array is what is wrong."""
    found = list(_leaves(args))
    return any(map(foreign, found)) and not any(isinstance(a, Tensor) for a in found)


def kind(value: object) -> str:
    """numpy, jax, cupy, ...: the package of an array's type."""
    package = type(value).__module__.partition(".")[0]
    return {"jaxlib": "jax"}.get(package, package)


def serve(call: Callable[..., Any], args: Sequence[Any], names: Sequence[str], written: Sequence[bool]) -> Any:
    """`call(*args)` with tensors in place of arrays, and its outputs as arrays of that kind."""
    first = next(a for a in _leaves(args) if foreign(a))
    tensors = []
    for a, name, write in zip(args, names, written):
        if isinstance(a, (list, tuple)):
            tensors.append([tensor(b, f"{name}[{i}]", first, write) for i, b in enumerate(a)])
        else:
            tensors.append(tensor(a, name, first, write))
    return like(call(*tensors), first)


def tensor(value: Any, name: str, first: object = None, write: bool = False) -> Any:
    """The tensor on an array's memory; what is no array as it is. TypeError or ValueError names the argument."""
    if isinstance(value, Tensor) and first is not None:
        raise TypeError(f"{name}: got a torch.Tensor among arrays of {kind(first)}, wants one kind")
    if not foreign(value):
        return value
    if first is not None and kind(value) != kind(first):
        raise TypeError(f"{name}: got an array of {kind(value)} among arrays of {kind(first)}, wants one kind")
    device = _device(value, name)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}: is on a GPU, and this torch has none")
    if write and _read_only(value):
        raise ValueError(f"{name}: is read-only, and this function writes to it")
    if any(stride < 0 for stride in getattr(value, "strides", None) or ()):
        if write:
            raise ValueError(f"{name}: has a negative stride, wants one that can be written in place")
        value = value.copy()
    if kind(value) == "numpy" and value.dtype.name == "bfloat16":  # ml_dtypes', which numpy does not export
        return torch.from_dlpack(value.view("int16")).view(torch.bfloat16)
    try:
        return torch.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        dtype = getattr(value, "dtype", "unknown")
        raise TypeError(f"{name}: got an array of dtype {dtype}, which cannot be a tensor ({error})") from None


def like(outputs: Any, first: Any) -> Any:
    """Tensors as arrays of `first`'s kind."""
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(like(o, first) for o in outputs)
    if not isinstance(outputs, Tensor):
        return outputs
    if kind(first) == "numpy":
        if outputs.dtype == torch.bfloat16:
            return outputs.view(torch.int16).numpy().view(_bfloat16(first))
        return outputs.numpy()
    home = first.__array_namespace__() if hasattr(first, "__array_namespace__") else sys.modules[kind(first)]
    return home.from_dlpack(outputs)


def _bfloat16(first: Any) -> Any:
    if first.dtype.name == "bfloat16":
        return first.dtype
    import ml_dtypes

    return ml_dtypes.bfloat16


def _device(value: Any, name: str) -> str:
    number = int(value.__dlpack_device__()[0])
    if number not in _DEVICES:
        raise ValueError(f"{name}: is on a device of DLPack's type {number}, wants the CPU or a GPU of CUDA or ROCm")
    return _DEVICES[number]


def _read_only(value: Any) -> bool:
    if kind(value) == "jax":  # its arrays never change
        return True
    flags: Any = getattr(value, "flags", None)
    if hasattr(flags, "writeable"):
        return not flags.writeable
    try:
        capsule = value.__dlpack__(max_version=(1, 0))
    except (TypeError, BufferError):  # from before DLPack 1.0, which had no flag
        return False
    name = b"dltensor_versioned"
    valid, pointer = ctypes.pythonapi.PyCapsule_IsValid, ctypes.pythonapi.PyCapsule_GetPointer
    valid.argtypes, pointer.argtypes = [ctypes.py_object, ctypes.c_char_p], [ctypes.py_object, ctypes.c_char_p]
    pointer.restype = ctypes.c_void_p
    if not valid(capsule, name):
        return False
    # uint32 major, minor; void* context; void* deleter; uint64 flags
    at = pointer(capsule, name) + 8 + 2 * ctypes.sizeof(ctypes.c_void_p)
    return bool(ctypes.c_uint64.from_address(at).value & _READ_ONLY)
