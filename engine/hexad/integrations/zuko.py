"""zuko with hexad's kernels: `convert(flow)` gives the same samples and log-probabilities from the same weights.

zuko's transforms run from data to latent, over the last dimension of any batch. A coupling's mask is 1 where features
stay; its conditioner gives a feature's shift and scale side by side, and the log-scale is the raw scale r softly
clipped to r / (1 + |r / ln slope|), which no map of hexad's is: the layer computes it, and the op takes it as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.lazy import LazyTransform, UnconditionalTransform
from zuko.nn import MaskedLinear
from zuko.transforms import AdditiveTransform, MonotonicAffineTransform

from hexad.integrations.flows import Affine, Map, Parts, couple_all, dtype_of, probe, unknown
from hexad.integrations.host import check_version

LOWEST, BELOW = "1.6", "1.7"
Call = Callable[[Tensor, bool], tuple[Tensor, Tensor]]


def convert(flow: nn.Module) -> Any:
    """A copy of a zuko Flow (NICE, RealNVP, MAF ...) or LazyTransform whose transforms run on hexad's kernels.

    The copy has the host's class: `flow(c).sample()`, `log_prob`, `rsample_and_log_prob`. Its weights are folded, so
    convert again after training, and its state_dict is its own. Converted: GeneralCouplingTransform and
    MaskedAutoregressiveTransform of MonotonicAffineTransform (any slope) or AdditiveTransform, whose masked linear
    layers become plain ones; unconditional RotationTransform and LULinearTransform, neighbours folded into one matrix.
    Kept: ElementWiseTransform of those two, unconditional PermutationTransform, SoftclipTransform, IdentityTransform;
    base distributions.

    Raises UnknownLayer (a TypeError) that names the first other transform and its place: splines, polynomials, neural
    and continuous ones.
    """
    check_version("zuko", LOWEST, BELOW)
    if not isinstance(flow, (zuko.lazy.Flow, LazyTransform)):
        raise unknown("flow", flow, "wants a zuko Flow or LazyTransform")
    dtype = dtype_of(flow)
    out: Any = copy.deepcopy(flow).eval().requires_grad_(False)
    if isinstance(out, zuko.lazy.Flow):
        out.transform = _one(out.transform, "transform", dtype)
        return out
    return _one(out, type(out).__name__, dtype)


def _one(lazy: Any, place: str, dtype: torch.dtype) -> nn.Module:
    if type(lazy) is zuko.lazy.LazyComposedTransform:
        parts = [_convert(t, f"{place}.{i}") for i, t in enumerate(lazy.transforms)]
        lazy.transforms = nn.ModuleList(_fold(parts, dtype))
        return lazy
    (only,) = _fold([_convert(lazy, place)], dtype)
    return only


def _fold(parts: list[nn.Module | Map], dtype: torch.dtype) -> list[nn.Module]:
    found: list[nn.Module | Map] = []
    for part in parts:
        if isinstance(part, Map) and found and isinstance(found[-1], Map):
            found[-1] = found[-1].then(part)
        else:
            found.append(part)
    return [Fixed(part, dtype) if isinstance(part, Map) else part for part in found]


def _convert(lazy: Any, place: str) -> nn.Module | Map:
    kind = type(lazy)
    if kind is zuko.flows.GeneralCouplingTransform:
        return Coupling(lazy, *_univariate(lazy, place))
    if kind is zuko.flows.MaskedAutoregressiveTransform:
        return Autoregressive(lazy, *_univariate(lazy, place))
    if kind is zuko.flows.ElementWiseTransform:
        _univariate(lazy, place)
        return lazy
    if kind is UnconditionalTransform:
        t = zuko.transforms
        if lazy.f in (t.RotationTransform, t.LULinearTransform):
            exact = copy.deepcopy(lazy).double()()
            return probe(exact.call_and_ladj, _features(exact))
        if lazy.f in (t.PermutationTransform, t.SoftclipTransform, t.IdentityTransform):
            return lazy
        raise unknown(place, lazy, f"hexad does not know {getattr(lazy.f, '__name__', lazy.f)}")
    raise unknown(place, lazy)


def _features(transform: Any) -> int:
    return (transform.R if hasattr(transform, "R") else transform.L).shape[-1]


def _univariate(lazy: Any, place: str) -> tuple[bool, float]:
    """Whether the features move by a shift alone, and the least slope of those that scale."""
    made = lazy.univariate
    options = dict(made.keywords) if isinstance(made, partial) and not made.args else {}
    kind = made.func if isinstance(made, partial) else made
    if kind is AdditiveTransform and not options:
        return True, 0.0
    if kind is MonotonicAffineTransform and set(options) <= {"slope"}:
        return False, float(options.get("slope", 1e-3))
    raise unknown(place, lazy, f"univariate {getattr(kind, '__name__', kind)} {options or ''}".rstrip())


class Moves(Transform):
    """A transform of real vectors by a function of (x, inverse), which gives y and the log-determinant."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, run: Call) -> None:
        super().__init__()
        self.run = run

    def _call(self, x: Tensor) -> Tensor:
        return self.run(x, False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.run(y, True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(x, False)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(x, False)


class Fixed(LazyTransform):
    """A linear map, whatever the context."""

    def __init__(self, there: Map, dtype: torch.dtype) -> None:
        super().__init__()
        self.affine = Affine(there, dtype)

    def move(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        y, log_det = self.affine.apply_to(x.reshape(-1, x.shape[-1]), inverse)
        return y.view(x.shape), log_det.reshape(x.shape[:-1])

    def forward(self, c: Tensor | None = None) -> Transform:
        return Moves(self.move)


class Conditioned(LazyTransform):
    """Shifts and log-scales by the host's network, whose masks are multiplied in once."""

    def __init__(self, lazy: Any, additive: bool, slope: float) -> None:
        super().__init__()
        self.additive, self.slope = additive, slope
        for net in list(lazy.hyper.modules()):
            for name, child in list(net.named_children()):
                if type(child) is MaskedLinear:
                    setattr(net, name, _unmasked(child))
        self.hyper = lazy.hyper

    def shift_and_scale(self, given: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(..., F) -> of each moving feature, over any batch."""
        if c is not None:
            given = torch.cat(zuko.utils.broadcast(given, c, ignore=1), -1)
        phi = self.hyper(given)
        if self.additive:
            return phi, None
        raw = phi[..., 1::2]
        return phi[..., 0::2], raw / (1 + (raw / math.log(self.slope)).abs())

    def move(self, c: Tensor | None, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, c: Tensor | None = None) -> Transform:
        return Moves(partial(self.move, c))


def _unmasked(layer: Any) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    plain.weight = nn.Parameter(layer.mask * layer.weight, requires_grad=False)
    plain.bias = layer.bias
    return plain


def _rows(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.reshape(-1, t.shape[-1])


class Coupling(Conditioned):
    """GeneralCouplingTransform: the features that its mask leaves out move."""

    def __init__(self, lazy: Any, additive: bool, slope: float) -> None:
        super().__init__(lazy, additive, slope)
        self.parts = Parts(~lazy.mask)

    def move(self, c: Tensor | None, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        ordered, passive = self.parts.split(x.reshape(-1, x.shape[-1]))
        shift, log_scale = self.shift_and_scale(passive.reshape(*x.shape[:-1], -1), c)
        y, log_det = self.parts.couple(ordered, shift.reshape(-1, shift.shape[-1]), _rows(log_scale), inverse)
        return y.view(x.shape), log_det.view(x.shape[:-1])


class Autoregressive(Conditioned):
    """MaskedAutoregressiveTransform: each feature moves by those before it; back in as many passes."""

    def __init__(self, lazy: Any, additive: bool, slope: float) -> None:
        super().__init__(lazy, additive, slope)
        self.passes = lazy.passes

    def once(self, c: Tensor | None, known: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.shift_and_scale(known, c)
        flat = x.reshape(-1, x.shape[-1])
        y, log_det = couple_all(flat, shift.reshape(-1, shift.shape[-1]), _rows(log_scale), inverse=inverse)
        return y.view(x.shape), log_det.view(x.shape[:-1])

    def move(self, c: Tensor | None, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if not inverse:
            return self.once(c, x, x, False)
        known, log_det = torch.zeros_like(x), x.new_zeros(x.shape[:-1])
        for _ in range(self.passes):
            known, log_det = self.once(c, known, x, True)
        return known, log_det
