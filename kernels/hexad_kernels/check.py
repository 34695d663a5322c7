"""One-line contracts. Every failure names the argument, what it got and what it wants."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from hexad_kernels import native

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def tensor(value: object, name: str, *, rank: int | None = None, dtypes: Sequence[torch.dtype] = FLOATS) -> Tensor:
    """`value` is a tensor of that rank and one of those dtypes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, wants a torch.Tensor")
    if rank is not None and value.ndim != rank:
        raise ValueError(f"{name}: got {value.ndim} dimensions {tuple(value.shape)}, wants {rank}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: got {names([value.dtype])}, wants {names(dtypes)}")
    return value


def shape(value: Tensor, name: str, want: tuple[int | None, ...], meaning: str = "") -> None:
    """`value` has the sizes `want` (None: any)."""
    if value.ndim != len(want) or any(w is not None and g != w for g, w in zip(value.shape, want)):
        wanted = "(" + ", ".join("any" if w is None else str(w) for w in want) + ")"
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, wants {wanted}{meaning and ' = ' + meaning}")


def like(value: Tensor, name: str, other: Tensor, other_name: str, *, dtype: bool = True) -> None:
    """`value` lives where `other` does, in the same dtype."""
    if not (value.is_cpu and other.is_cpu) and value.device != other.device:
        raise ValueError(f"{name}: is on {value.device}, wants {other_name}'s device {other.device}")
    if dtype and value.dtype != other.dtype:
        raise TypeError(f"{name}: got {names([value.dtype])}, wants {other_name}'s {names([other.dtype])}")


def operand(value: object, name: str, want: tuple[int, ...], other: Tensor, other_name: str, meaning: str = "") -> None:
    """`value` is a tensor of the sizes `want`, where `other` lives and in its dtype."""
    if native.C is not None and native.C.matches(value, want, other):
        return
    given = tensor(value, name)
    like(given, name, other, other_name)
    shape(given, name, want, meaning)


def described(value: object) -> str:
    """A wrong argument in an error's text: short, whatever it holds."""
    if isinstance(value, Tensor):
        return f"a {names([value.dtype])} tensor of shape {tuple(value.shape)}"
    return repr(value) if value is None or isinstance(value, (str, int, float, complex)) else type(value).__name__


def number(value: Any, name: str) -> float:
    """`value` as a float; text is not a number."""
    if not isinstance(value, (str, bytes, bytearray)):
        with suppress(TypeError, ValueError, OverflowError, RuntimeError):
            return float(value)
    raise TypeError(f"{name}: got {described(value)}, wants a number")


def integer(value: Any, name: str, wanted: str = "an integer") -> int:
    try:
        found = operator.index(value)
    except (TypeError, RuntimeError):
        raise TypeError(f"{name}: got {described(value)}, wants {wanted}") from None
    if not -(2**63) <= found < 2**63:
        raise ValueError(f"{name}: got {found}, wants {wanted} of 64 bits")
    return found


def _flag(value: object, name: str) -> None:
    integer(value, name, "True or False")


def dense(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, wants a torch.Tensor")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: got {value.layout}, wants a dense tensor")


def _integers(value: Any, name: str) -> None:
    for size in value:
        integer(size, name, "integers")


_KINDS: dict[str, tuple[tuple[type, ...], Callable[[Any, str], object]]] = {
    "Tensor": ((Tensor, torch.nn.Parameter), dense),
    "int": ((int, torch.SymInt), integer),
    "float": ((float, int, torch.SymFloat, torch.SymInt), number),
    "bool": ((bool, torch.SymBool), _flag),
    "List[int]": ((), _integers),
}


class Kinds:
    """What kind of value each argument of a schema takes."""

    def __init__(self, schema: torch.FunctionSchema, renamed: Mapping[str, str]) -> None:
        self.kinds = []
        for argument in schema.arguments:
            kind = str(argument.type)
            optional = kind.startswith("Optional[")
            known, refuse = _KINDS[kind[9:-1] if optional else kind]
            name = renamed.get(argument.name, argument.name)
            self.kinds.append((name, (*known, type(None)) if optional else known, refuse, optional))

    def check(self, args: Sequence[Any]) -> None:
        """TypeError or ValueError for the first value of another kind; quick for the usual types."""
        for value, (name, known, refuse, _) in zip(args, self.kinds):
            if type(value) not in known:
                refuse(value, name)

    def blame(self, args: Sequence[Any]) -> None:
        """The same, for a call that failed: whole, and with what `check` lets pass."""
        for value, (name, _, refuse, optional) in zip(args, self.kinds):
            if not (optional and value is None):
                refuse(value, name)


def own_memory(value: Tensor | None, name: str) -> None:
    """A write to one place changes no other: not so in what expand() gives."""
    if value is not None and 0 in value.stride():
        for i, (size, stride) in enumerate(zip(value.shape, value.stride())):
            if size > 1 and stride == 0:
                raise ValueError(
                    f"{name}: its {size} entries of dimension {i} are one in memory, wants memory of its own"
                )


def choice(value: object, name: str, options: Mapping[Any, int]) -> int:
    """The number of a named option."""
    try:
        return options[value]
    except (KeyError, TypeError):
        wanted = ", ".join(repr(o) for o in options)
        raise ValueError(f"{name}: got {value!r}, wants one of {wanted}") from None


def packed_rows(value: Tensor) -> Tensor:
    """`value` itself if each value[i] is contiguous (views over the first dimension are), else a contiguous copy."""
    if value.is_contiguous():
        return value
    return value if value.shape[0] and value[0].is_contiguous() else value.contiguous()


def matrix(value: Tensor) -> Tensor:
    """`value` contiguous, or a matrix with unit stride inside a row: itself where it can be, a copy where not."""
    if value.is_contiguous() or (value.ndim == 2 and value.stride(1) == 1):
        return value
    return value.contiguous()


def unit_stride(value: Tensor) -> Tensor:
    """`value` with stride 1 in its last dimension: itself where it can be, a copy where not."""
    if value.is_contiguous() or value.stride(-1) == 1 or value.shape[-1] <= 1:
        return value
    return value.contiguous()


def empty_like(value: Tensor) -> Tensor:
    """An empty contiguous tensor of `value`'s shape; the plain call is the quicker one."""
    if value.is_contiguous():
        return torch.empty_like(value)
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def empty_statistics(value: Tensor, *size: int) -> Tensor:
    """An empty tensor for statistics of `value`. Sizes one by one are half as costly as in a tuple."""
    dtype = value.dtype
    if dtype is torch.float32 or dtype is torch.float64:
        return value.new_empty(*size)
    return value.new_empty(*size, dtype=torch.float32)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Log-sum-exps and log-determinants are float32, float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32
