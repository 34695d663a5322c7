"""An op's gradients by plain torch: through its reference, once, or as a graph that can be differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hexad_kernels import transforms

Grads = Sequence[Tensor | None]


def _of(made: Any, grads: Grads, wanted: list[Tensor], again: bool) -> Sequence[Tensor]:
    outputs = (made,) if isinstance(made, Tensor) else made
    pairs = [(o, g) for o, g in zip(outputs, grads) if g is not None and o.requires_grad]
    if not pairs:
        return [torch.zeros_like(a) for a in wanted]
    return torch.autograd.grad(
        [o for o, _ in pairs],
        wanted,
        [g for _, g in pairs],
        create_graph=again,
        allow_unused=True,
        materialize_grads=True,
    )


def through(reference: Callable[..., Any], grads: Grads, needed: Sequence[bool], args: Sequence[Any]) -> list[Tensor]:
    """Of the arguments that `needed` marks, on a graph made for it."""
    with transforms.recording(), torch.enable_grad():
        leaves = [a.detach().requires_grad_(need) if isinstance(a, Tensor) else a for a, need in zip(args, needed)]
        found = _of(reference(*leaves), grads, [a for a, need in zip(leaves, needed) if need], False)
    return [g.contiguous() for g in found]


def differentiable(
    reference: Callable[..., Any], grads: Grads, needed: Sequence[bool], args: Sequence[Any]
) -> Sequence[Tensor]:
    """The same on the graph at hand."""
    # Aliases: a recovered argument depends on the others, and that is no path of the reference's.
    seen = [a.view_as(a) if isinstance(a, Tensor) and a.requires_grad else a for a in args]
    for i, need in enumerate(needed):
        if need and not seen[i].requires_grad:  # wanted by a level of torch.func above this one
            seen[i] = transforms.leaf(seen[i])
    return _of(reference(*seen), grads, [a for a, need in zip(seen, needed) if need], True)
