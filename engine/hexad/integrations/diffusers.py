"""diffusers with hexad's kernels.

    hexad.integrations.diffusers.register()         then model.set_attention_backend("hexad")
    pipe = hexad.accelerate(pipe)                   attention and scheduler of a whole pipeline

`report(pipe)` lists what `accelerate` replaced and what it left, with the reason; `restore(pipe)` undoes it. Weights,
configuration and `state_dict` stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, TypeVar

from torch import nn

from hexad.integrations import diffusers_attention as attention
from hexad.integrations import diffusers_layers
from hexad.integrations import diffusers_schedulers as schedulers
from hexad.integrations.host import check_version
from hexad.integrations.layers import State, check_weights

LOWEST, BELOW = "0.42", "0.43"
_KEY = "_hexad_report"
Host = TypeVar("Host")


@dataclass
class Report:
    """What `accelerate` did, by the module's place in the pipeline.

    replaced  place of an attention or a scheduler -> what serves it now
    left      the same -> why the host's own code stays
    layers    place of a layer or block -> what computes it now
    kept      the same -> why it stays the host's
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    before: list[tuple[Any, str, bool, Any]] = field(default_factory=list, repr=False)

    def set(self, owner: Any, attribute: str, value: object) -> None:
        """Set an attribute of one object and remember what it held. A copy of the pipeline copies this too."""
        own = vars(owner)
        self.before.append((owner, attribute, attribute in own, own.get(attribute)))
        setattr(owner, attribute, value)

    def put(self, place: str, owner: Any, attribute: str, value: object, what: str) -> None:
        self.set(owner, attribute, value)
        self.replaced[place] = what

    def __str__(self) -> str:
        lines = [f"replaced {where}: {what}" for where, what in self.replaced.items()]
        lines += [f"replaced {n} x {what}" for what, n in Counter(self.layers.values()).most_common()]
        lines += [f"left {where}: {why}" for where, why in self.left.items()]
        return "\n".join(lines + [f"left {n} x {why}" for why, n in Counter(self.kept.values()).most_common()])


def register() -> None:
    """Make "hexad" a name for `model.set_attention_backend(...)` and `attention_backend(...)`. Idempotent.

    The backend serves float32, bfloat16 and, on the CPU, float16 (others through the reference), masks, causality,
    grouped heads. It raises ValueError for dropout and for context parallelism.
    """
    check_version("diffusers", LOWEST, BELOW)
    attention.register()


def accelerate(pipe: Host, *, weights: str | None = None, winograd: bool = True) -> Host:
    """Put hexad's attention, layers and scheduler steps into a pipeline, model or scheduler, in place; returns it.

    weights   of linear layers, as in `hexad.optimize`: None takes "packed", a second copy beside the parameters;
              "dense" the parameters as they are; "int8", "int4" rounded ones
    winograd  3 x 3 convolutions in float32 of more than a hundred pixels take a quarter of the multiplications, at a
              rounding error of 4e-5 for outputs of size 1 and with four times their weights in memory; False: direct
    Again: what has been replaced stays, what is new is replaced too (after `pipe.scheduler = ...`).
    Raises TypeError for an object that is none of the three, ValueError for other weights.
    """
    form = check_weights(weights)
    register()
    parts = dict(_parts(pipe))
    found = vars(pipe).setdefault(_KEY, Report())
    found.left.clear()
    found.kept.clear()
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            _accelerate_model(name, part, form, winograd, found)
        else:
            _accelerate_scheduler(name, part, found)
    return pipe


def report(pipe: object) -> Report:
    """What `accelerate(pipe)` replaced and left; empty when it was not called."""
    return getattr(pipe, "__dict__", {}).get(_KEY, Report())


def restore(pipe: Host) -> Host:
    """Undo `accelerate(pipe)`; returns it."""
    for owner, attribute, present, value in reversed(getattr(pipe, "__dict__", {}).pop(_KEY, Report()).before):
        if present:
            setattr(owner, attribute, value)
        else:
            vars(owner).pop(attribute, None)
    return pipe


def _parts(pipe: Any) -> Iterator[tuple[str, Any]]:
    """The named models and schedulers of a pipeline; a model or scheduler alone."""
    from diffusers import DiffusionPipeline, SchedulerMixin

    if isinstance(pipe, (nn.Module, SchedulerMixin)):
        yield type(pipe).__name__, pipe
    elif isinstance(pipe, DiffusionPipeline):
        for name, part in vars(pipe).items():
            if isinstance(part, (nn.Module, SchedulerMixin)):
                yield name, part
    else:
        raise TypeError(f"pipe: got {type(pipe).__name__}, wants a diffusers pipeline, model or scheduler")


def _accelerate_model(name: str, model: nn.Module, form: str, winograd: bool, found: Report) -> None:
    from diffusers import ModelMixin
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    if not isinstance(model, ModelMixin):
        found.left[name] = f"{type(model).__name__} is not a model of diffusers"
        return
    for place, module in model.named_modules():
        if isinstance(module, (Attention, AttentionModuleMixin)):
            _accelerate_attention(f"{name}.{place}", module, found)
        elif hasattr(module, "processor") and hasattr(module, "set_processor"):
            found.left[f"{name}.{place}"] = f"hexad does not know {type(module).__name__}"

    def put(place: str, module: Any, state: State) -> None:
        found.set(module, "_hexad", state)
        found.set(module, "forward", MethodType(state.forward, module))
        found.layers[f"{name}.{place}"] = state.what

    def keep(place: str, why: str) -> None:
        found.kept[f"{name}.{place}"] = why

    diffusers_layers.replace(model, form, winograd, put, keep)


def _accelerate_attention(place: str, module: Any, found: Report) -> None:
    processor = module.processor
    kind = type(processor).__name__
    if type(processor).__module__ == attention.__name__:
        return
    if hasattr(processor, "_attention_backend"):
        ours = attention.register()
        if getattr(processor, "_parallel_config", None) is not None:
            found.left[place] = "context parallelism"
        elif processor._attention_backend is not ours:
            found.put(place, processor, "_attention_backend", ours, f"{kind} through the backend hexad")
    elif kind in attention.PROCESSORS and type(processor).__module__ == "diffusers.models.attention_processor":
        ours = attention.PROCESSORS[kind]
        found.put(place, module, "processor", ours(), f"{kind} by {ours.__name__}")
    else:
        found.left[place] = f"hexad has no processor in place of {kind}"


def _accelerate_scheduler(name: str, scheduler: Any, found: Report) -> None:
    reason = schedulers.refusal(scheduler)
    if reason is not None:
        found.left[name] = reason
    elif "step" not in vars(scheduler):
        # On the instance: pipelines rebuild a scheduler of another class from its configuration, and save its class.
        ours = MethodType(schedulers.STEPS[type(scheduler).__name__], scheduler)
        found.put(name, scheduler, "step", ours, f"{type(scheduler).__name__}.step by hexad_kernels.step")
