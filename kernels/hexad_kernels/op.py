"""The only dispatch: how a call of an op finds the kernel that serves it.

An op is a flat positional function with a torch.library schema. A call takes one of two lanes:

- eager, on plain tensors without gradients: contract (checks, allocates outputs), then a backend;
- anything else (torch.compile, FakeTensor, functorch, autograd, tensor subclasses): one
  `torch.ops.hexad.<op>`, whose implementation is the eager lane, whose fake kernel is the contract and
  whose gradient differentiates the reference.

A backend serves a call or says why not; the first of the device's list that does not refuse runs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from hexad_kernels import arrays, check, gradients, selection, transforms
from hexad_kernels import native as native_module

BACKENDS = ("reference", "cpu", "cuda", "triton", "triton-interpreted", "cuda-emulated")
NATIVE_DEVICES = {"cpu": "cpu", "cuda": "cuda", "cuda-emulated": "cpu"}
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
CUDA_DTYPES = (*NATIVE_DTYPES, torch.float16)
# What the fast lane takes besides an op's own dtypes, and each type's bit in bindings/lane.h.
_INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)
_DLPACK_CODES = {torch.bool: 6, torch.uint8: 1, torch.bfloat16: 4}


def _dtype_bit(dtype: torch.dtype) -> int:
    code = _DLPACK_CODES.get(dtype, 2 if dtype.is_floating_point else 0)
    return 1 << (code * 8 + dtype.itemsize.bit_length() - 1)


OPS: dict[str, Op] = {}

_library = torch.library.Library("hexad", "DEF")
_functorch_active = torch._C._functorch.peek_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_autocasting = torch._C._is_any_autocast_enabled
_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_AUTOCAST_CPU = torch._C.DispatchKey.AutocastCPU
_plain_on_cpu: Any = native_module.C and native_module.C.plain_on_cpu
_quick = native_module.C is not None and not native_module.emulated
_interpreting = os.environ.get("TRITON_INTERPRET") == "1"


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors among flat arguments, also those in lists."""
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from (b for b in a if isinstance(b, Tensor))


def _device(args: tuple[Any, ...]) -> str:
    return next((a.device.type for a in _tensors(args)), "cpu")


def _preferred(name: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    """The backends for a call, the first to ask first."""
    return ("cpu",) if _device(args) == "cpu" else selection.order(name, args)


class BackendError(RuntimeError):
    """A forced backend cannot serve the call; the text says why."""


def _known(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where}: got {name!r}, wants one of {', '.join(BACKENDS)}")
    return name


_environment = os.environ.get("HEXAD_BACKEND") or None
_forced: ContextVar[str | None] = ContextVar(
    "hexad_backend", default=_known(_environment, "HEXAD_BACKEND") if _environment else None
)

if _quick:
    _guards = (_forced, _dispatch_modes, _functorch_active, _autocasting, _is_grad_enabled, vars(forward_ad))
    native_module.C.quick_guards(_guards)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend inside the block. A call it cannot serve raises BackendError with the reason."""
    token = _forced.set(_known(name, "backend"))
    try:
        yield
    finally:
        _forced.reset(token)


@dataclass(frozen=True)
class Explanation:
    """Who serves a call, and why the others don't."""

    op: str
    served_by: str
    refusals: dict[str, str] = field(default_factory=dict)
    arguments: tuple[Any, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        lines = [f"{self.op}: served by {self.served_by}"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.refusals.items()])


class _Explained(Exception):
    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation


_EXPLAIN = "<explain>"


class Op:
    """One op: its contract, its reference, and the backends that serve it.

    schema      torch.library arguments and returns, e.g. "(Tensor x, float eps) -> Tensor"; in place:
                "(Tensor x, Tensor(a!) cache) -> ()", where contract and reference return ()
    contract    checks shapes, dtypes, devices; returns the tuple of empty outputs
    reference   plain torch: the same arguments, returns the outputs
    native      (outputs, *args): calls the compiled kernel; None if there is none
    cuda        floating dtypes of the native CUDA kernels; () if there are none
    gradients   indices of the arguments that get gradients (through the reference, or by `backward`)
    refuses     (*args) -> reason the CPU's native kernel can't serve these arguments, or None
    cuda_refuses  the same of the CUDA kernels
    dtypes      floating dtypes of the CPU's native kernel
    backward    (grads, needed, args, outputs) -> gradients of the needed arguments, by kernels; outputs are saved
                for it
    backward_on  the backends that have those kernels
    recover     (args, outputs) -> args, for an op that can be inverted: where nothing is lost to rounding, output 0
                is saved in place of argument 0, which is like it, and `backward` is given None for that
    renamed     schema name -> what errors call that argument
    batch       (*args) -> {index: rank} of the arguments whose dimension 0 is the batch, for vmap
    cast        what autocast does to the tensors at `cast_at`: "lower", "widest" or None, nothing
    torch_on_gpu  the same as reference, in the tensors' own dtype: what serves a GPU by design, without a warning,
                where its kernels refuse
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        contract: Callable[..., tuple[Tensor, ...]],
        reference: Callable[..., Any],
        native: Callable[..., None] | None = None,
        cuda: tuple[torch.dtype, ...] = (),
        gradients: Sequence[int] = (),
        refuses: Callable[..., str | None] | None = None,
        cuda_refuses: Callable[..., str | None] | None = None,
        dtypes: tuple[torch.dtype, ...] = NATIVE_DTYPES,
        backward: Callable[..., list[Tensor]] | None = None,
        backward_on: tuple[str, ...] = ("cpu",),
        recover: Callable[..., tuple[Any, ...]] | None = None,
        renamed: Mapping[str, str] | None = None,
        batch: Callable[..., Mapping[int, int]] | None = None,
        cast: str | None = None,
        cast_at: Sequence[int] = (),
        torch_on_gpu: Callable[..., Any] | None = None,
    ) -> None:
        self.name = name
        self.contract = contract
        self.reference = reference
        self.native = native
        self.cuda = cuda
        self.gradients = tuple(gradients)
        self.refuses = refuses
        self.cuda_refuses = cuda_refuses
        self.dtypes = dtypes
        self._accepted = sum(map(_dtype_bit, (*dtypes, *_INTEGERS)))
        self.backward = backward
        self.backward_on = backward_on
        self.recover = recover
        self.batch = batch
        self.cast, self.cast_at = cast, tuple(cast_at)
        self.torch_on_gpu = torch_on_gpu
        parsed = torch._C.parse_schema(f"{name}{schema}")
        self.kinds = check.Kinds(parsed, renamed or {})
        self.single = [str(r.type) for r in parsed.returns] == ["Tensor"]
        self.in_place = not parsed.returns
        self.mutates = parsed.is_mutable
        self.written = [a.alias_info is not None and a.alias_info.is_write for a in parsed.arguments]
        self._native_here = native is not None and native_module.C is not None and not native_module.emulated
        # The common eager call whole, in C (bindings/quick.h); None: not that, or not right.
        self._quick = getattr(native_module.C, f"quick_{name}", None) if _quick else None
        self._triton: Any = None
        self._warned: set[str] = set()
        self._register(schema)
        OPS[name] = self

    # The call

    def __call__(self, *args: Any) -> Any:
        if _is_compiling():
            return self.torch_op(*args)
        if self._quick is not None:
            result = self._quick(*args)
            if result is not None:
                return result
        forced = _forced.get()
        try:
            # The common case, decided in some 300 ns: plain CPU tensors that the native kernel takes.
            if (
                forced is None
                and self._native_here
                and not _dispatch_modes()
                and _functorch_active() is None
                and _excluded(_AUTOCAST_CPU)
                and forward_ad._current_level < 0
                and _plain_on_cpu(args, self._accepted, _is_grad_enabled())
            ):
                # The kernel's door refuses a value of the wrong kind.
                outputs = self.contract(*args)
                if self.refuses is None or self.refuses(*args) is None:
                    self.native(outputs, *args)  # type: ignore[misc]
                    return outputs[0] if self.single else outputs
            self.kinds.check(args)
            if forced == _EXPLAIN or self._eager(args):
                return self.run(*args)
            if forced == "reference":
                # Plain autograd through plain torch: the forced reference is the whole computation.
                if _autocasting():
                    args = transforms.cast(self.cast, self.cast_at, args, _device(args))
                with torch._C._DisableAutocast():
                    self.contract(*args)
                    return self.reference(*args)
            return self.torch_op(*args)
        except (TypeError, ValueError, OverflowError, AttributeError, RuntimeError):
            if not arrays.instead(args):
                self.kinds.blame(args)
                raise
        # Not inside the except clause: what is wrong with the call then has nothing to do with tensors.
        return arrays.serve(self, args, [name for name, *_ in self.kinds.kinds], self.written)

    @staticmethod
    def _eager(args: tuple[Any, ...]) -> bool:
        if _dispatch_modes() or _functorch_active() is not None or _autocasting() or forward_ad._current_level >= 0:
            return False
        grad = torch.is_grad_enabled()
        for a in _tensors(args):
            kind = type(a)
            if (kind is not Tensor and kind is not Parameter) or (grad and a.requires_grad):
                return False
        return True

    def run(self, *args: Any) -> Any:
        """The eager lane."""
        if any(t.is_neg() for t in _tensors(args)):  # views that negate lazily, whose memory kernels would misread
            args = self._resolved(args)
        outputs = self.contract(*args)
        chosen = self._choose(args)
        if chosen == "reference":
            if self.torch_on_gpu is not None and _forced.get() is None and _device(args) == "cuda":
                return self.torch_on_gpu(*args)
            return self.reference(*args)
        if chosen in NATIVE_DEVICES:
            self.native(outputs, *args)  # type: ignore[misc]
        else:
            self._triton_module().run(outputs, *args)
        return outputs[0] if self.single else outputs

    def _resolved(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.in_place:
            raise ValueError(f"{self.name}: got a lazily negated view, wants its resolve_neg()")
        return tuple(
            a.resolve_neg() if isinstance(a, Tensor) else [t.resolve_neg() for t in a] if isinstance(a, list) else a
            for a in args
        )

    # Choosing a backend

    def _choose(self, args: tuple[Any, ...]) -> str:
        forced = _forced.get()
        kind = _device(args)
        if forced is not None and forced != _EXPLAIN:
            reason = self.refusal(forced, args)
            if reason:
                raise BackendError(f"{self.name}: backend {forced!r} can't serve this call: {reason}")
            return forced
        refusals: dict[str, str] = {}
        chosen = "reference"
        for name in _preferred(self.name, args):
            reason = self.refusal(name, args)
            if reason is None:
                chosen = name
                break
            refusals[name] = reason
        if forced == _EXPLAIN:
            for name in BACKENDS:
                if name != chosen and name not in refusals and name != "reference":
                    refusals[name] = self.refusal(name, args) or f"{chosen} comes first on {kind}"
            raise _Explained(Explanation(self.name, chosen, refusals, args))
        if chosen == "reference" and (self.torch_on_gpu is None or kind != "cuda"):
            self._warn(refusals)
        return chosen

    def refusal(self, name: str, args: tuple[Any, ...]) -> str | None:
        """Why backend `name` cannot serve these arguments; None if it can."""
        if name == "reference":
            return None
        kind = _device(args)
        if name in NATIVE_DEVICES:
            if self.native is None or (name != "cpu" and not self.cuda):
                return f"{self.name} has no {name} kernel"
            if kind != NATIVE_DEVICES[name]:
                return f"the tensors are on {kind}"
            if native_module.C is None:
                return native_module.missing
            if native_module.emulated != (name == "cuda-emulated"):
                return f"HEXAD_CUDA_EMULATED was {'' if native_module.emulated else 'not '}set when the process started"
            if name == "cuda" and native_module.C.cuda_missing():
                return native_module.C.cuda_missing()
            dtypes, refuses = (self.dtypes, self.refuses) if name == "cpu" else (self.cuda, self.cuda_refuses)
            for a in _tensors(args):
                if a.dtype.is_floating_point and a.dtype not in dtypes:
                    known = " and ".join(str(d).removeprefix("torch.") for d in dtypes)
                    return f"{a.dtype} (its kernels are for {known})"
            return refuses(*args) if refuses else None
        if name == "triton" and _interpreting:
            return "TRITON_INTERPRET=1 is set: the backend is triton-interpreted"
        if name == "triton-interpreted" and not _interpreting:
            return "TRITON_INTERPRET=1 was not set when the process started"
        if find_spec(f"hexad_kernels.triton.{self.name}") is None:
            return f"{self.name} has no Triton kernel"
        if name == "triton" and kind != "cuda":
            return f"the tensors are on {kind}"
        if find_spec("triton") is None:
            return "triton is not installed"
        return self._triton_module().refuses(*args)

    def has_kernel(self, args: tuple[Any, ...]) -> bool:
        """Whether a kernel, not only the reference, serves these arguments."""
        return any(name != "reference" and self.refusal(name, args) is None for name in self._asked(args))

    def _asked(self, args: tuple[Any, ...]) -> tuple[str, ...]:
        """The backends that may serve a call: the forced one, or those for its device."""
        forced = _forced.get()
        return _preferred(self.name, args) if forced is None else (forced,)

    def _triton_module(self) -> Any:
        if self._triton is None:
            self._triton = import_module(f"hexad_kernels.triton.{self.name}")
        return self._triton

    def _warn(self, refusals: dict[str, str]) -> None:
        text = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
        self.warn_once(f"hexad {self.name}: the plain torch reference serves this call ({text})")

    def warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=5)

    # The torch.library lane

    def _register(self, schema: str) -> None:
        qualified = f"hexad::{self.name}"
        _library.define(f"{self.name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(self.name, self._dispatched, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, self._fake, lib=_library)
        self.torch_op = getattr(torch.ops.hexad, self.name).default
        transforms.vmap(_library, self, qualified, self.torch_op)
        transforms.autocast(_library, self.name, self.torch_op, self.cast, self.cast_at)
        if self.gradients:
            arguments = schema.rsplit("->", 1)[0].strip()[1:-1].replace("Tensor ", "Tensor? ")
            _library.define(
                f"{self.name}_gradients(Tensor?[] grads, bool[] needed, Tensor[] outputs, {arguments}) -> Tensor[]",
                tags=(torch.Tag.pt2_compliant_tag,),
            )
            _library.impl(f"{self.name}_gradients", self._backward, "CompositeExplicitAutograd")
            torch.library.register_fake(f"{qualified}_gradients", self._fake_backward, lib=_library)
            backward_op = getattr(torch.ops.hexad, f"{self.name}_gradients").default
            tensor_at = self.gradients

            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                outputs, inputs = self._saved(inputs, output)
                where = [i for i, a in enumerate(inputs) if isinstance(a, Tensor)]
                ctx.save_for_backward(*outputs, *(inputs[i] for i in where))
                ctx.where = where
                ctx.outputs = len(outputs)
                ctx.rest = [None if isinstance(a, Tensor) else a for a in inputs]

            def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
                args = list(ctx.rest)
                saved_tensors = ctx.saved_tensors  # once: a checkpoint unpacks them no second time
                outputs, inputs = saved_tensors[: ctx.outputs], saved_tensors[ctx.outputs :]
                for i, saved in zip(ctx.where, inputs):
                    args[i] = saved
                needed = [i in tensor_at and ctx.needs_input_grad[i + 1] for i in range(len(args))]
                found = iter(backward_op(list(grads), needed, list(outputs), *args))
                return tuple(next(found) if need else None for need in needed)

            transforms.gradients(_library, self.name, self.torch_op, setup_context, backward)
            transforms.gradients_again(_library, f"{self.name}_gradients", backward_op, self._differentiable_backward)
            transforms.vmap_gradients(_library, self, f"{qualified}_gradients", backward_op)
            transforms.autocast(_library, f"{self.name}_gradients", backward_op, None, ())
        else:
            transforms.no_gradients(_library, self.name, self.torch_op)

    def _dispatched(self, *args: Any) -> Any:
        outputs = self.run(*args)
        return None if self.in_place else outputs

    def _fake(self, *args: Any) -> Any:
        outputs = self.contract(*args)
        if self.in_place:
            return None
        return outputs[0] if self.single else outputs

    def _saved(self, inputs: tuple[Any, ...], output: Any) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """The outputs and the inputs that the backward needs."""
        if self.backward is None:
            return (), inputs
        outputs = (output,) if self.single else tuple(output)
        if self.recover is None:
            return outputs, inputs
        if inputs[0].dtype in (torch.float32, torch.float64):
            return outputs, (None, *inputs[1:])
        return (), inputs

    def _backward(
        self, grads: list[Tensor | None], needed: list[bool], outputs: list[Tensor], *args: Any
    ) -> list[Tensor]:
        # The dispatcher resolves what it finds in arguments and in lists, but not in lists of optional tensors.
        grads = [None if g is None else g.resolve_neg() for g in grads]
        if self.backward is not None:
            if self._serves_backward(self.shaped(outputs, args)):
                return self.backward(grads, needed, args, outputs)
            if args[0] is None and self.recover is not None:
                args = self.recover(args, outputs)
        return gradients.through(self.reference, grads, needed, args)

    def _serves_backward(self, args: tuple[Any, ...]) -> bool:
        return any(name in self.backward_on and self.refusal(name, args) is None for name in self._asked(args))

    def _differentiable_backward(
        self, grads: Sequence[Tensor | None], needed: list[bool], outputs: Sequence[Tensor], *args: Any
    ) -> Sequence[Tensor]:
        if args[0] is None and self.recover is not None:
            args = self.recover(args, list(outputs))
        return gradients.differentiable(self.reference, grads, needed, args)

    @staticmethod
    def shaped(outputs: list[Tensor], args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, output 0 standing in for the one that was not saved."""
        return (outputs[0], *args[1:]) if args[0] is None else args

    def _fake_backward(
        self, grads: list[Tensor | None], needed: list[bool], outputs: list[Tensor], *args: Any
    ) -> list[Tensor]:
        like = (a for a, n in zip(self.shaped(outputs, args), needed) if n)
        return [torch.empty_like(a, memory_format=torch.contiguous_format) for a in like]


def explain(name: str, *args: Any, **kwargs: Any) -> Explanation:
    """Which backend serves `name(*args, **kwargs)`, and why the others refuse. Nothing is computed."""
    if not isinstance(name, str) or name not in OPS:
        raise ValueError(f"name: got {name!r}, wants one of {', '.join(sorted(OPS))}")
    public = getattr(import_module("hexad_kernels"), name)
    token = _forced.set(_EXPLAIN)
    try:
        public(*args, **kwargs)
    except _Explained as answer:
        return answer.explanation
    finally:
        _forced.reset(token)
    raise AssertionError(f"{name} returned without choosing a backend")
