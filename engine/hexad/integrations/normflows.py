"""normflows with hexad's kernels: `convert(model)` gives the same samples and log-probabilities from the same weights.

normflows' `forward` runs from latent to data. Its conditioners interleave shift and scale along the channels; its
"sigmoid" map divides by sigmoid(r + 2) on the way to data, "sigmoid_inv" multiplies. A chunk of odd channels gives
the larger half to z1.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hexad_kernels as hk
from hexad.integrations.convolutions import ChannelsLast
from hexad.integrations.flows import Map, Parts, couple_all, dtype_of, fold, probe, unknown
from hexad.integrations.host import check_version

LOWEST, BELOW = "1.7", "1.8"


def convert(model: nn.Module) -> Any:
    """A copy of a NormalizingFlow, ClassCondFlow or MultiscaleFlow whose layers run on hexad's kernels.

    The copy has the host's class and methods (sample, log_prob, forward, inverse ...); its weights are folded, so
    convert again after training, and its state_dict is its own. Converted: GlowBlock, AffineCouplingBlock,
    AffineCoupling, MaskedAffineFlow, Invertible1x1Conv, InvertibleAffine, LULinearPermute, ActNorm, AffineConstFlow.
    Kept: Squeeze, Split, Merge, Permute, the base distributions and a MultiscaleFlow's transform.

    Raises UnknownLayer (a TypeError) that names the first other layer, and ValueError for an ActNorm that has not
    seen its first batch.
    """
    import normflows as nf

    check_version("normflows", LOWEST, BELOW)
    if type(model) not in (nf.NormalizingFlow, nf.ClassCondFlow, nf.MultiscaleFlow):
        raise unknown("model", model, "wants NormalizingFlow, ClassCondFlow or MultiscaleFlow")
    for place, layer in model.named_modules():
        if isinstance(layer, nf.flows.ActNorm) and not layer.data_dep_init_done:
            raise ValueError(f"{place}: an ActNorm that has not seen its first batch; run one through the model first")
    dtype = dtype_of(model)
    out: Any = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(out, nf.MultiscaleFlow):
        levels = (_layers(level, f"flows.{i}", dtype) for i, level in enumerate(out.flows))
        out.flows = nn.ModuleList(levels)
    else:
        out.flows = _layers(out.flows, "flows", dtype)
    return out


def _layers(layers: nn.ModuleList, place: str, dtype: torch.dtype) -> nn.ModuleList:
    found: list[nn.Module | Map] = []
    for i, layer in enumerate(layers):
        _convert(layer, f"{place}.{i}", found)
    return fold(found, dtype)


def _convert(layer: Any, place: str, found: list[nn.Module | Map]) -> None:
    import normflows as nf

    flows, kind = nf.flows, type(layer)
    if kind is flows.GlowBlock:
        for i, part in enumerate(layer.flows):
            _convert(part, f"{place}.flows.{i}", found)
    elif kind is flows.AffineCouplingBlock:
        found.append(Coupling(layer))
    elif kind is flows.AffineCoupling:
        found.append(SplitCoupling(layer))
    elif kind is flows.MaskedAffineFlow:
        found.append(Masked(layer))
    elif kind is flows.Invertible1x1Conv:
        found.append(probe(copy.deepcopy(layer).double(), layer.num_channels, space=2))
    elif kind in (flows.InvertibleAffine, flows.LULinearPermute):
        channels = layer.num_channels if kind is flows.InvertibleAffine else layer.linear.features
        found.append(probe(copy.deepcopy(layer).double(), channels))
    elif kind in (flows.ActNorm, flows.affine.coupling.AffineConstFlow) and layer.s[0, 0].numel() == 1:
        scale, bias = layer.s.detach().double().flatten(), layer.t.detach().double().flatten()
        found.append(Map(scale.exp().diag(), bias.expand_as(scale).clone(), scale.sum()))
    elif kind in (flows.Squeeze, flows.Split, flows.Merge, flows.Permute, flows.affine.coupling.AffineConstFlow):
        found.append(layer)
    else:
        raise unknown(place, layer)


class Conditioner(nn.Module):
    """A conditioner's output as (shift, log_scale) for `hexad_kernels.coupling`, which wants each in one piece.

    Where its last layer is a convolution or a linear map, the rows of that are sorted once instead of each output.
    """

    def __init__(self, coupling: Any) -> None:
        super().__init__()
        import normflows as nf

        self.net, self.scale, self.map = coupling.param_map, coupling.scale, coupling.scale_map
        if self.scale and self.map not in ("exp", "sigmoid", "sigmoid_inv"):
            raise unknown("scale_map", coupling, f"scale_map {self.map!r}")
        self.scale_map = "sigmoid" if self.map == "sigmoid_inv" else "exp"
        sequence = self.net.net if type(self.net) in (nf.nets.ConvNet2d, nf.nets.MLP) else None
        self.sequence = ChannelsLast.of(sequence) if isinstance(sequence, nn.Sequential) else None
        for module in sequence or ():
            if type(module) is nn.LeakyReLU:  # of a convolution's output, which nobody else holds
                module.inplace = True
        last: Any = sequence[-1] if sequence is not None else None
        self.sorted = self.scale and type(last) in (nn.Conv2d, nn.Linear)
        if self.sorted:
            order = torch.cat((torch.arange(0, len(last.weight), 2), torch.arange(1, len(last.weight), 2)))
            last.weight.copy_(last.weight[order].clone())
            if last.bias is not None:
                last.bias.copy_(last.bias[order].clone())

    def forward(self, passive: Tensor) -> tuple[Tensor, Tensor | None]:
        out = (
            self.sequence(passive) if self.sequence is not None and self.sequence.serves(passive) else self.net(passive)
        )
        if not self.scale:
            return out, None
        shift, log_scale = out.chunk(2, 1) if self.sorted else (out[:, 0::2], out[:, 1::2])
        return shift, -F.logsigmoid(log_scale + 2) if self.map == "sigmoid" else log_scale


class Coupling(nn.Module):
    """AffineCouplingBlock: split, couple and merge as one op for channels; checkerboards are packed side by side."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        split, coupling, _ = block.flows
        self.mode = split.mode
        self.conditioner = Conditioner(coupling)

    def couple(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"inverse": inverse, "scale_map": self.conditioner.scale_map}
        larger = z.shape[1] - z.shape[1] // 2
        if self.mode == "channel":
            return hk.coupling(z, *self.conditioner(z[:, :larger]), **options)
        if self.mode == "channel_inv":
            return hk.coupling(z, *self.conditioner(z[:, larger:]), flip=True, **options)
        even, odd = _pack(z)
        passive, active = (even, odd) if "inv" in self.mode else (odd, even)
        active, log_det = couple_all(active, *self.conditioner(passive), **options)
        return (_unpack(passive, active) if "inv" in self.mode else _unpack(active, passive)), log_det

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.couple(z, False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.couple(z, True)


def _shifted(z: Tensor) -> Tensor:
    """(1, ..., 1) True where a row of the last dimension starts with an odd place, over (B, ..., W)."""
    place = torch.zeros((), dtype=torch.long, device=z.device)
    for d in range(1, z.ndim - 1):
        place = place + torch.arange(z.shape[d], device=z.device).view(-1, *[1] * (z.ndim - 1 - d))
    return (place % 2).bool()


def _pack(z: Tensor) -> tuple[Tensor, Tensor]:
    """The even and the odd places of (B, ..., W), each (B, ..., W / 2); parity counts all dimensions but the first."""
    first, second, shifted = z[..., 0::2], z[..., 1::2], _shifted(z)
    return torch.where(shifted, second, first), torch.where(shifted, first, second)


def _unpack(even: Tensor, odd: Tensor) -> Tensor:
    shifted = _shifted(even)
    return torch.stack((torch.where(shifted, odd, even), torch.where(shifted, even, odd)), -1).flatten(-2)


class SplitCoupling(nn.Module):
    """AffineCoupling between a Split and a Merge of its own."""

    def __init__(self, coupling: Any) -> None:
        super().__init__()
        self.conditioner = Conditioner(coupling)

    def couple(self, z: list[Tensor], inverse: bool) -> tuple[list[Tensor], Tensor]:
        active, log_det = couple_all(
            z[1], *self.conditioner(z[0]), inverse=inverse, scale_map=self.conditioner.scale_map
        )
        return [z[0], active], log_det

    def forward(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self.couple(z, False)

    def inverse(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return self.couple(z, True)


class Masked(nn.Module):
    """MaskedAffineFlow: every second feature as a checkerboard, any other mask by its list of features."""

    b: Tensor
    active: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        passive = layer.b.bool().flatten().cpu()
        self.s, self.t = layer.s, layer.t
        self.register_buffer("b", layer.b)
        odd = torch.arange(len(passive)) % 2 == 1
        self.flip = bool((passive == odd).all())
        self.alternates = self.flip or bool((passive == ~odd).all())
        self.parts = None if self.alternates else Parts(~passive)
        self.register_buffer("active", (~passive).nonzero().flatten())

    def couple(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        masked = self.b * z
        shift = self.t(masked).flatten(1)
        log_scale = None if self.s is torch.zeros_like else self.s(masked).flatten(1)
        flat = z.flatten(1)
        if self.parts is None:
            y, log_det = hk.coupling(flat, shift, log_scale, inverse=inverse, split="checkerboard", flip=self.flip)
        else:
            ordered, _ = self.parts.split(flat)
            log_scale = None if log_scale is None else log_scale[:, self.active]
            y, log_det = self.parts.couple(ordered, shift[:, self.active], log_scale, inverse)
        return y.view(z.shape), log_det

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.couple(z, False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.couple(z, True)
