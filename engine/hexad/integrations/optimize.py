"""optimize: a whole model's linear layers, norms, feed-forward blocks and attention on hexad's kernels, in place.

report = hexad.optimize(model)
print(report)        # what was replaced and what was left, with the reason
report.undo()        # the host's own layers again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import nn

from hexad.integrations import layers, matching
from hexad.integrations.layers import State


@dataclass
class Optimized:
    """What `optimize` did to a model.

    replaced   module name -> what computes it now
    left       module name -> why it stays the host's
    weights    the form of the linear layers' weights: "dense", "packed", "int8" or "int4"
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    weights: str = "dense"
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Give the model its own layers, attention and memory layout back."""
        while self._undo:
            self._undo.pop()()

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)} modules, weights {self.weights}"]
        lines += [f"  {count:4d} x {what}" for what, count in Counter(self.replaced.values()).most_common()]
        lines.append(f"left {len(self.left)} modules")
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.left.items()])


def _hooked(module: nn.Module) -> bool:
    return any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )  # fmt: skip


def _install(module: Any, state: State, report: Optimized) -> None:
    module._hexad = state
    module.forward = MethodType(state.forward, module)

    def undo() -> None:
        del module.forward, module._hexad

    report._undo.append(undo)


def _turn(module: Any, report: Optimized) -> None:
    """Store a Conv1D's weight as the kernels read it; the parameter keeps its shape and numbers."""
    module.weight.data = module.weight.data.t().contiguous().t()

    def undo() -> None:
        module.weight.data = module.weight.data.contiguous()

    report._undo.append(undo)


def _attention(model: Any, report: Optimized) -> None:
    """The model's attention, where its host lets it be chosen."""
    if not hasattr(model, "set_attn_implementation"):
        return
    from hexad.integrations import transformers

    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "set_attn_implementation")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    transformers.register()
    try:
        model.set_attn_implementation(transformers.NAME)
    except ValueError as error:
        report.left["attention"] = str(error)
        return
    report.replaced["attention"] = "attention"

    def undo() -> None:
        for config, implementation in before:
            config._attn_implementation = implementation

    report._undo.append(undo)


def _covered(name: str, names: Sequence[str]) -> bool:
    return any(name == n or name.startswith(f"{n}.") for n in names)


def _leaves(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules that hold parameters of their own."""
    for name, module in model.named_modules():
        if any(p is not None for p in module._parameters.values()):
            yield name, module


def _check(model: nn.Module, keep: Sequence[str]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, wants a torch.nn.Module")
    if isinstance(keep, str) or not isinstance(keep, Collection):
        raise TypeError(f"keep: got {keep!r}, wants a list of module names")
    names = {name for name, _ in model.named_modules()}
    for kept in keep:
        if kept not in names:
            raise ValueError(f"keep: got {kept!r}, wants names of the model's modules, such as {max(names)!r}")
    for name, module in model.named_modules():
        if hasattr(module, "_hexad"):
            raise ValueError(f"model: {name or 'it'} is optimized already; undo that first")
    for name, p in model.named_parameters():
        if not p.is_cpu:
            raise ValueError(f"model: {name} is on {p.device}, wants every parameter on the CPU")


def optimize(
    model: nn.Module, *, weights: str | None = None, attention: bool = True, keep: Sequence[str] = ()
) -> Optimized:
    """Let hexad compute a model's layers from now on, in place, for inference on the CPU.

    model      any torch module in float32 or bfloat16; layers are known by what they compute (matching.py)
    weights    None: the fastest exact form; "dense": parameters as they are; "packed": the same numbers rearranged,
               beside the parameters; "int8", "int4": rounded, beside the parameters
    attention  also choose hexad's attention in a transformers model
    keep       names of modules to leave alone, with all that is in them

    Classes, parameters, hooks and state_dict stay; so do values loaded later. In training mode, under autocast and
    where gradients are recorded the host's layers run. Returns an Optimized: what was replaced, what was left and why,
    and `undo()`. Raises TypeError or ValueError (arguments, parameters elsewhere than on the CPU, a model that is
    optimized already), and then the model is as it was.
    """
    form = layers.check_weights(weights)
    _check(model, keep)
    report = Optimized(weights=form)
    try:
        if attention:
            _attention(model, report)
        _replace(model, form, keep, report)
    except BaseException:
        report.undo()
        raise
    return report


def _replace(model: nn.Module, form: str, keep: Sequence[str], report: Optimized) -> None:
    linears: dict[int, Any] = {}
    for name, module in _leaves(model):
        dtype = next(p.dtype for p in module._parameters.values() if p is not None)
        state = None
        if _covered(name, keep):
            report.left[name] = "asked to be kept"
        elif dtype not in layers.DTYPES:
            report.left[name] = f"{dtype}, kernels are for float32 and bfloat16"
        elif "forward" in vars(module):
            report.left[name] = "its forward was replaced by somebody else"
        elif layers.is_linear(module):
            state = State("linear", layers.linear)
            linears[id(module)] = module
        else:
            state = matching.match_norm(module)
            if state is None:
                report.left[name] = f"{type(module).__name__}: nothing here computes it"
        if state is not None:
            _install(module, state, report)
            report.replaced[name] = state.what

    def usable(part: nn.Module) -> bool:
        return id(part) in linears and not _hooked(part)

    joined: list[tuple[State, list[Any]]] = []
    for name, whole in model.named_modules():
        if _covered(name, keep) or "forward" in vars(whole):
            continue
        state = matching.match_fused(whole, usable)
        if state is None:
            continue
        if matching.gate_as_one(whole, state, form):
            joined.append((state, [getattr(whole, part) for part in state.names[:2]]))
        _install(whole, state, report)
        report.replaced[name] = state.what
    for module in linears.values():
        module._hexad.weights = form
        if form == "dense" and layers.is_conv1d(module):
            _turn(module, report)
    if "attention" in report.replaced:
        joined += _blocks(model, form, keep, report)
    if form == "dense":
        return
    for state, parts in joined:
        layers.share(state, *parts)
    for module in linears.values():
        layers.operand(module._hexad, module)


def _blocks(model: nn.Module, form: str, keep: Sequence[str], report: Optimized) -> list[tuple[State, list[Any]]]:
    """Take the blocks of known models whole; the products that this joins."""
    from hexad.integrations import blocks

    found = []
    for name, block in model.named_modules():
        if "forward" in vars(block) or any(_covered(name, [k]) or _covered(k, [name]) for k in keep):
            continue
        match = blocks.match_block(block, _hooked)
        if match is None:
            continue
        state, parts = match
        state.weights = form
        if any(rows % layers.LANES for rows in (layers.rows_of(part).shape[0] for part in parts)):
            continue
        _install(block, state, report)
        report.replaced[name] = state.what
        if parts:
            found.append((state, parts))
    return found
