"""One-line contracts. Every failure names the argument, what it got and what it wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

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
    if value.device != other.device:
        raise ValueError(f"{name}: is on {value.device}, wants {other_name}'s device {other.device}")
    if dtype and value.dtype != other.dtype:
        raise TypeError(f"{name}: got {names([value.dtype])}, wants {other_name}'s {names([other.dtype])}")


def choice(value: object, name: str, options: Mapping[str, int]) -> int:
    """The number of a named option."""
    try:
        return options[value]  # type: ignore[index]
    except (KeyError, TypeError):
        wanted = ", ".join(repr(o) for o in options)
        raise ValueError(f"{name}: got {value!r}, wants one of {wanted}") from None


def rows(value: Tensor) -> Tensor:
    """`value` flattened to (batch, rest) with unit stride inside a row: a view where it can be, a copy where not."""
    flat = value.reshape(value.shape[0], -1) if value.shape[0] else value.reshape(0, value[:0].numel())
    return flat if flat.shape[1] <= 1 or flat.stride(1) == 1 else flat.contiguous()


def unit_stride(value: Tensor) -> Tensor:
    """`value` with stride 1 in its last dimension: itself where it can be, a copy where not."""
    return value if value.stride(-1) == 1 or value.shape[-1] <= 1 else value.contiguous()


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Log-sum-exps and log-determinants are float32, float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32
