"""nflows with hexad's kernels: `convert(flow)` gives the same samples and log-probabilities from the same weights.

nflows' `forward` runs from data to latent. Its conditioners give shifts first, then scales; its scale is
sigmoid(r + 2) + 0.001, which no map of hexad's is, so the layer itself computes it and the op takes its logarithm.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hexad.integrations.flows import Map, Parts, dtype_of, fold, probe, unknown
from hexad.integrations.host import check_version

LOWEST, BELOW = "0.14", "0.15"


def convert(flow: nn.Module) -> Any:
    """A copy of an nflows Flow (SimpleRealNVP too) or Transform whose layers run on hexad's kernels.

    The copy has the host's class and methods; its weights are folded, so convert again after training, and its
    state_dict is its own. Converted: AffineCouplingTransform, AdditiveCouplingTransform (without an unconditional
    transform), OneByOneConvolution, LULinear, QRLinear, SVDLinear, NaiveLinear, HouseholderSequence, ActNorm, BatchNorm
    (its running statistics); inside CompositeTransform and MultiscaleCompositeTransform. Kept: permutations,
    SqueezeTransform, IdentityTransform, PointwiseAffineTransform, Logit, Sigmoid, base distributions, embeddings.

    Raises UnknownLayer (a TypeError) that names the first other layer, and ValueError for an ActNorm in training mode
    that has not seen its first batch.
    """
    from nflows import flows, transforms

    check_version("nflows", LOWEST, BELOW)
    if not isinstance(flow, nn.Module):
        raise unknown("flow", flow, "wants a Flow or Transform")
    for place, layer in flow.named_modules():
        if isinstance(layer, transforms.ActNorm) and layer.training and not layer.initialized:
            raise ValueError(f"{place}: an ActNorm that has not seen its first batch; run one through the model first")
    dtype = dtype_of(flow)
    out: Any = copy.deepcopy(flow).eval().requires_grad_(False)
    if isinstance(out, flows.Flow):
        out._transform = _one(out._transform, "_transform", dtype)
        return out
    return _one(out, type(out).__name__, dtype)


def _one(layer: Any, place: str, dtype: torch.dtype) -> nn.Module:
    from nflows.transforms import CompositeTransform, MultiscaleCompositeTransform

    if type(layer) in (CompositeTransform, MultiscaleCompositeTransform):
        if type(layer) is MultiscaleCompositeTransform:
            parts = [_one(part, f"{place}.{i}", dtype) for i, part in enumerate(layer._transforms)]
            layer._transforms = nn.ModuleList(parts)
        else:
            found: list[nn.Module | Map] = []
            _flatten(layer, place, found, dtype)
            layer._transforms = fold(found, dtype)
        return layer
    (only,) = fold([_convert(layer, place, dtype)], dtype)
    return only


def _flatten(layer: Any, place: str, found: list[nn.Module | Map], dtype: torch.dtype) -> None:
    """The parts of nested composites, so that neighbours fold across them."""
    from nflows.transforms import CompositeTransform

    for i, part in enumerate(layer._transforms):
        if type(part) is CompositeTransform:
            _flatten(part, f"{place}.{i}", found, dtype)
        else:
            found.append(_convert(part, f"{place}.{i}", dtype))


def _convert(layer: Any, place: str, dtype: torch.dtype) -> nn.Module | Map:
    from nflows import transforms as t
    from nflows.transforms.linear import NaiveLinear
    from nflows.transforms.permutations import Permutation

    kind = type(layer)
    if kind is t.MultiscaleCompositeTransform:
        return _one(layer, place, dtype)
    if kind in (t.AffineCouplingTransform, t.AdditiveCouplingTransform):
        if layer.unconditional_transform is not None:
            raise unknown(place, layer, "its unconditional transform")
        return Coupling(layer, additive=kind is t.AdditiveCouplingTransform)
    if kind is t.OneByOneConvolution:
        return probe(copy.deepcopy(layer).double(), layer.features, space=2)
    if kind in (t.LULinear, t.QRLinear, t.SVDLinear, NaiveLinear, t.HouseholderSequence):
        return probe(copy.deepcopy(layer).double(), layer.features)
    if kind is t.ActNorm:
        return probe(copy.deepcopy(layer).double(), len(layer.log_scale))
    if kind is t.BatchNorm:
        return probe(copy.deepcopy(layer).double(), len(layer.bias))
    kept = (t.SqueezeTransform, t.IdentityTransform, t.PointwiseAffineTransform, t.Logit, t.Sigmoid)
    if kind in kept or isinstance(layer, Permutation):
        return layer
    raise unknown(place, layer)


class Coupling(nn.Module):
    """An affine or additive coupling over any set of channels."""

    def __init__(self, layer: Any, additive: bool) -> None:
        super().__init__()
        active = torch.zeros(layer.features)
        active[layer.transform_features.cpu()] = 1
        self.layer, self.additive, self.parts = layer, additive, Parts(active)

    def couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        ordered, passive = self.parts.split(x)
        scale, shift = self.layer._scale_and_shift(self.layer.transform_net(passive, context))
        return self.parts.couple(ordered, shift, None if self.additive else scale.log(), inverse)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.couple(x, context, False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.couple(x, context, True)
