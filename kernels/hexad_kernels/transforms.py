"""What torch's transforms make of an op: gradients (also torch.func's), vmap, autocast, forward mode.

- Gradients are registered as a function of one level, as C++ operators have them, so torch.func.grad, vjp and jacrev
  compose with everything else. The gradients' own gradient is plain torch's, through the reference.
- vmap folds the mapped dimension into the op's batch where the mapped arguments have one (`Op(batch=)`). Where they
  have none (a weight, say) it runs call by call, and warns once. An op that writes in place refuses.
- Under autocast a product's tensors (`Op(cast="lower")`) are cast to autocast's dtype, as those of torch's own
  products are; where an op mixes what may differ (`"widest"`) they are cast to the widest among them; any other op
  computes in the dtypes that it is given. float64 stays what it is.
- Forward mode (torch.func.jvp, dual tensors) refuses: the reference, forced, has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function as _single_level
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from hexad_kernels.op import Op

_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}

# The level of torch.func whose gradients are being taken.
_differentiating: ContextVar[int | None] = ContextVar("hexad_differentiating", default=None)


def _level() -> int | None:
    top = torch._C._functorch.peek_interpreter_stack()
    return None if top is None else top.level()


def _flat(args: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for a in args:
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, (list, tuple)):
            found.extend(_flat(a))
    return found


def _asks_for_gradients(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in _flat(args))


def refuse_tangents(name: str, args: Sequence[Any]) -> None:
    """NotImplementedError for forward-mode derivatives, which would be lost in silence."""
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in _flat(args)):
        raise NotImplementedError(
            f"{name}: has no forward-mode derivative (jvp); take grad or vjp, or force hexad_kernels.backend"
            '("reference")'
        )


def leaf(value: Tensor) -> Tensor:
    """An alias that gradients of this level can be taken of, also inside torch.func."""
    before = torch._C._functorch.get_inplace_requires_grad_allowed()
    torch._C._functorch.set_inplace_requires_grad_allowed(True)
    try:
        return value.view_as(value).requires_grad_()
    finally:
        torch._C._functorch.set_inplace_requires_grad_allowed(before)


def below(op: Any, keyset: Any, args: Sequence[Any]) -> Any:
    """The op itself, under autograd of this level; levels below it may record what they like."""
    outer = torch._C._functorch.peek_interpreter_stack() is not None
    with (
        torch._C._AutoDispatchBelowAutograd(),
        torch.set_grad_enabled(torch.is_grad_enabled() or outer),
        forward_ad._set_fwd_grad_enabled(True),
    ):
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def recording() -> Any:
    """Lets autograd record, also inside a compiled graph, which runs under it."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView):
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def gradients(library: Any, name: str, op: Any, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Registers `backward(ctx, *grads)` as the gradient of `op`; `save(ctx, inputs, output)` keeps what it needs."""

    class Gradients(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
            output = below(op, keyset, args)
            save(ctx, args, output)
            ctx.level = _level()
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            token = _differentiating.set(ctx.level)
            try:
                return (None, *backward(ctx, *grads))
            finally:
                _differentiating.reset(token)

    Gradients.__name__ = f"hexad_{name}"
    run: Any = Gradients.apply  # type: ignore[attr-defined]

    def differentiable(keyset: Any, *args: Any) -> Any:
        refuse_tangents(name, args)
        if not _asks_for_gradients(args):
            return below(op, keyset, args)
        with _single_level():
            return run(keyset, *args)

    library.impl(name, differentiable, "Autograd", with_keyset=True)


def no_gradients(library: Any, name: str, op: Any) -> None:
    """For an op without gradients: its outputs have none, which asking for them says, in either mode."""

    class Gradients(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
            outputs = below(op, keyset, args)
            return tuple(outputs) if isinstance(outputs, list) else outputs

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(f"{name}: has no gradient; call it under torch.no_grad(), or on detached tensors")

    run: Any = Gradients.apply  # type: ignore[attr-defined]

    def differentiable(keyset: Any, *args: Any) -> Any:
        refuse_tangents(name, args)
        if not _asks_for_gradients(args) or op._schema.is_mutable:
            return below(op, keyset, args)
        with _single_level():
            outputs = run(keyset, *args)
        return list(outputs) if isinstance(outputs, tuple) and len(op._schema.returns) == 1 else outputs

    library.impl(name, differentiable, "Autograd", with_keyset=True)


def gradients_again(library: Any, name: str, op: Any, again: Callable[..., Any]) -> None:
    """Registers plain torch, `again(*args)`, for gradients that are to be differentiated themselves."""

    def differentiable(keyset: Any, *args: Any) -> Any:
        refuse_tangents(name, args)
        # torch.func always asks for a graph. The level that these gradients are of has no use for it, those around do.
        own = _level() is not None and _level() == _differentiating.get()
        if _asks_for_gradients(args) and not own:
            return again(*args)
        # Not under autograd: the reference's gradients are autograd's.
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    library.impl(name, differentiable, "Autograd", with_keyset=True)


# vmap


def _moved(tree: Any, dims: Any, i: int) -> Any:
    """Slice `i` of what is mapped."""
    if isinstance(tree, (list, tuple)):
        return [_moved(t, d, i) for t, d in zip(tree, dims)]
    return tree.select(dims, i) if dims is not None else tree


def _by_call(call: Callable[..., Any], size: int, dims: Sequence[Any], args: Sequence[Any]) -> tuple[Any, Any]:
    rounds = [call(*_moved(args, dims, i)) for i in range(size)]
    if isinstance(rounds[0], Tensor):
        return torch.stack(rounds), 0
    outputs = type(rounds[0])(torch.stack(parts) for parts in zip(*rounds))
    return outputs, type(rounds[0])(0 for _ in outputs)


class _Fold:
    """How a mapped dimension joins the batch: `lead` is an argument that always has the batch, of that rank with it."""

    def __init__(self, lead: Tensor, dim: int | None, rank: int, size: int) -> None:
        shape = lead.shape if dim is None else lead.movedim(dim, 0).shape[1:]
        self.size = size
        self.bare = len(shape) < rank  # one row, without a batch
        self.batch = 1 if self.bare else shape[0]

    def fold(self, t: Tensor, dim: int | None, rank: int) -> Tensor:
        """The mapped dimension in front of the batch; what is shared is repeated, or left to broadcast."""
        if dim is None:
            t = t.unsqueeze(0) if self.bare and t.ndim < rank else t
            if t.ndim < rank or (t.shape[0] == 1 and self.batch != 1):
                return t
            return t.expand(self.size, *t.shape).flatten(0, 1)
        t = t.movedim(dim, 0)
        while t.ndim <= rank:
            t = t.unsqueeze(1)
        if t.shape[1] == 1 and self.batch != 1:
            t = t.expand(self.size, self.batch, *t.shape[2:])
        return t.flatten(0, 1)

    def whole(self, t: Tensor, dim: int | None, rank: int) -> bool:
        """Whether `t` has a place for each row of the batch, so that its gradient has one too."""
        shape = t.shape if dim is None else t.movedim(dim, 0).shape[1:]
        return self.bare or (len(shape) >= rank and shape[0] == self.batch)

    def unfold(self, outputs: Any) -> tuple[Any, Any]:
        if isinstance(outputs, Tensor):
            return outputs if self.bare else outputs.unflatten(0, (self.size, self.batch)), 0
        pairs = [self.unfold(o) for o in outputs]
        return type(outputs)(o for o, _ in pairs), type(outputs)(0 for _ in pairs)


def vmap(library: Any, op: Op, qualified: str, call: Any) -> None:
    """Registers vmap of an op."""

    def rule(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        size = _size(op, info)
        batched = op.batch(*args) if op.batch else {}
        others = [i for i, d in enumerate(dims) if i not in batched and _mapped(d)]
        if not batched or others:
            _warn(op, call, [op.kinds.kinds[i][0] for i in others])
            return _by_call(call, size, dims, args)
        lead = next(iter(batched))
        way = _Fold(args[lead], dims[lead], batched[lead], size)
        folded = [
            way.fold(a, d, batched[i]) if i in batched and isinstance(a, Tensor) else a
            for i, (a, d) in enumerate(zip(args, dims))
        ]
        return way.unfold(call(*folded))

    torch.library.register_vmap(qualified, rule, lib=library)


def vmap_gradients(library: Any, op: Op, qualified: str, call: Any) -> None:
    """Registers vmap of an op's gradients: folded where each needed one belongs to a row of the batch."""

    def rule(info: Any, dims: tuple[Any, ...], *every: Any) -> tuple[Any, Any]:
        grads, needed, outputs, *args = every
        size, (grads_at, _, outputs_at, *at) = _size(op, info), dims
        batched = op.batch(*op.shaped(outputs, tuple(args))) if op.batch else {}
        others = [i for i, d in enumerate(at) if i not in batched and _mapped(d)]
        if batched and not others:
            lead = next(iter(batched))
            first, first_at = (args[lead], at[lead]) if args[lead] is not None else (outputs[0], outputs_at[0])
            way = _Fold(first, first_at, batched[lead], size)
            if all(i in batched and way.whole(args[i], at[i], batched[i]) for i, n in enumerate(needed) if n):
                folded = [
                    way.fold(a, d, batched[i]) if i in batched and isinstance(a, Tensor) else a
                    for i, (a, d) in enumerate(zip(args, at))
                ]
                lists = [
                    [t if t is None else way.fold(t, d, t.ndim - (d is not None) + way.bare) for t, d in zip(ts, ds)]
                    for ts, ds in ((grads, grads_at), (outputs, outputs_at))
                ]
                return way.unfold(call(lists[0], needed, lists[1], *folded))
        _warn(op, call, [op.kinds.kinds[i][0] for i, n in enumerate(needed) if n and i not in batched])
        return _by_call(call, size, dims, every)

    torch.library.register_vmap(qualified, rule, lib=library)


def _size(op: Op, info: Any) -> int:
    if op.mutates:
        raise NotImplementedError(f"{op.name}: writes in place, which vmap cannot follow; call it on the whole batch")
    if not info.batch_size:
        raise ValueError(f"{op.name}: vmap over an empty dimension")
    return info.batch_size


def _warn(op: Op, call: Any, names: list[str]) -> None:
    of = f" over {', '.join(names)}" if names else ""
    op.warn_once(f"hexad {call._opname}: vmap{of} runs call by call: a row of the batch has none of its own")


def _mapped(dims: Any) -> bool:
    return any(d is not None for d in _leaves(dims))


def _leaves(tree: Any) -> list[Any]:
    return [x for t in tree for x in _leaves(t)] if isinstance(tree, (list, tuple)) else [tree]


# Autocast


def cast(policy: str | None, indices: Sequence[int], args: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """The arguments as autocast wants them."""
    if policy is None:
        return args
    given = [args[i] for i in indices if isinstance(args[i], Tensor) and args[i].is_floating_point()]
    if not given or any(t.dtype == torch.float64 for t in given):
        return args
    if policy == "lower":
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = given[0].dtype
        for t in given:
            dtype = torch.promote_types(dtype, t.dtype)
    known = {id(t) for t in given}
    return tuple(a.to(dtype) if id(a) in known else a for a in args)


def autocast(library: Any, name: str, op: Any, policy: str | None, indices: Sequence[int]) -> None:
    """Registers what autocast does with `op`: it casts what the policy says, and then is off."""
    for device, key in _AUTOCAST.items():
        off = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def run(*args: Any, device: str = device, off: Any = off) -> Any:
            given = cast(policy, indices, args, device)
            with torch._C._ExcludeDispatchKeyGuard(off):
                return op(*given)

        library.impl(name, run, key)
