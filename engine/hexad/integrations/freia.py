"""FrEIA with hexad's kernels: `convert(model)` gives the same outputs and Jacobians from the same weights.

FrEIA's modules run from data to latent unless rev. Its GLOW blocks give scales first, then shifts; scales are
clamp * f(r) with f a tanh, an arctangent or a sigmoid; its two-sided blocks move the first half and then the second.
AllInOneBlock scales its conditioner's output by 0.1 first, and takes the transpose for the inverse of its permutation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hexad.integrations.flows import Affine, Map, Parts, dtype_of, probe, unknown
from hexad.integrations.host import check_version

LOWEST, BELOW = "0.2", "0.3"


def convert(model: nn.Module) -> Any:
    """A copy of a SequenceINN, GraphINN or ReversibleGraphNet whose modules run on hexad's kernels.

    The copy has the host's class and methods; its weights are folded, so convert again after training, and its
    state_dict is its own. Converted: NICE-, RNVP-, GLOW- and GINCouplingBlock, AffineCouplingOneSided, AllInOneBlock
    (without gin_block), ActNorm, Fixed1x1Conv, FixedLinearTransform. Kept: PermuteRandom, Split, Concat, Flatten,
    Reshape and the IRevNet and Haar down- and upsamplings.

    Raises UnknownLayer (a TypeError) that names the first other module, and ValueError for an ActNorm that has not
    seen its first batch.
    """
    from FrEIA import framework

    check_version("FrEIA", LOWEST, BELOW)
    if not isinstance(model, (framework.SequenceINN, framework.GraphINN)):
        raise unknown("model", model, "wants SequenceINN, GraphINN or ReversibleGraphNet")
    dtype = dtype_of(model)
    out = copy.deepcopy(model).eval().requires_grad_(False)
    for i, module in enumerate(out.module_list):
        replaced = _convert(module, f"module_list.{i}", dtype)
        out.module_list[i] = replaced
        for node in getattr(out, "node_list", ()):
            if getattr(node, "module", None) is module:
                node.module = replaced
    return out


def _convert(module: Any, place: str, dtype: torch.dtype) -> nn.Module:
    import FrEIA.modules as fm

    kind = type(module)
    if kind in (fm.NICECouplingBlock, fm.RNVPCouplingBlock, fm.GLOWCouplingBlock, fm.GINCouplingBlock):
        return TwoSided(module)
    if kind is fm.AffineCouplingOneSided:
        return OneSided(module)
    if kind is fm.AllInOneBlock:
        if module.GIN:
            raise unknown(place, module, "gin_block=True")
        return AllInOne(module, dtype)
    if kind in (fm.ActNorm, fm.Fixed1x1Conv, fm.FixedLinearTransform):
        if kind is fm.ActNorm and module.init_on_next_batch:
            raise ValueError(f"{place}: an ActNorm that has not seen its first batch; run one through the model first")
        return Fixed(module, dtype)
    kept = (
        fm.PermuteRandom, fm.Split, fm.Concat, fm.Flatten, fm.Reshape, fm.IRevNetDownsampling, fm.IRevNetUpsampling,
        fm.HaarDownsampling, fm.HaarUpsampling,
    )  # fmt: skip
    if kind in kept:
        return module
    raise unknown(place, module)


def _probed(run: Callable[[Tensor], tuple[Any, Any]], shape: tuple[int, ...]) -> Map:
    return probe(run, shape[0], len(shape) - 1)


class Fixed(nn.Module):
    """An affine module."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__()
        exact = copy.deepcopy(module).double()
        actnorm = hasattr(module, "init_on_next_batch")
        shape = tuple(module.dims_in if actnorm else module.dims_in[0])

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            (y,), jac = exact([x])
            return y, jac

        there = _probed(run, shape)
        if actnorm:  # it counts the pixels that it was built for, not those that it is given
            there.log_det /= math.prod(shape[1:])
        self.affine = Affine(there, dtype)

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> tuple[Any, Tensor]:
        y, log_det = self.affine.apply_to(x[0], rev)
        return (y,), log_det


def _scaled(block: Any, raw: Tensor) -> tuple[Tensor, str]:
    """The log-scale for `hexad_kernels.coupling`, and its map. tanh is in the op: clamp * tanh(clamp r / clamp)."""
    if block.f_clamp is torch.tanh:
        return block.clamp * raw, "tanh"
    return block.clamp * block.f_clamp(raw), "exp"


class OneSided(nn.Module):
    """AffineCouplingOneSided: the second part moves."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block, self.parts = block, _part(block, second=True)

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> tuple[Any, Tensor]:
        ordered, passive = self.parts.split(x[0])
        raw, shift = self.block.subnet(_with(passive, c)).split(self.parts.count, 1)
        log_scale, scale_map = _scaled(self.block, raw)
        y, log_det = self.parts.couple(ordered, shift, log_scale, rev, scale_map, self.block.clamp)
        return (y,), log_det


class TwoSided(nn.Module):
    """The first part moves by the second, then the second by the first; in the other order for rev."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.first, self.second = _part(block, second=False), _part(block, second=True)
        self.kind = type(block).__name__

    def shift_and_scale(self, second: bool, passive: Tensor, count: int) -> tuple[Tensor, Tensor | None, str]:
        block = self.block
        if self.kind == "NICECouplingBlock":
            return (block.G if second else block.F)(passive), None, "exp"
        if self.kind == "RNVPCouplingBlock":
            s, t = (block.subnet_s1, block.subnet_t1) if second else (block.subnet_s2, block.subnet_t2)
            raw, shift = s(passive), t(passive)
        else:
            raw, shift = (block.subnet1 if second else block.subnet2)(passive).split(count, 1)
        if self.kind == "GINCouplingBlock":
            log_scale = block.clamp * block.f_clamp(raw)
            return shift, log_scale - log_scale.mean(1, keepdim=True), "exp"
        log_scale, scale_map = _scaled(block, raw)
        return shift, log_scale, scale_map

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> tuple[Any, Tensor]:
        y, total = x[0], x[0].new_zeros(len(x[0]))
        for second in (rev, not rev):
            parts = self.second if second else self.first
            ordered, passive = parts.split(y)
            shift, log_scale, scale_map = self.shift_and_scale(second, _with(passive, c), parts.count)
            y, log_det = parts.couple(ordered, shift, log_scale, rev, scale_map, self.block.clamp or 1.0)
            total = total + log_det
        return (y,), total * 0 if self.kind == "GINCouplingBlock" else total


class AllInOne(nn.Module):
    """A coupling of the second half, then a scale, offset and permutation as one matrix."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.block, self.parts = block, Parts(torch.arange(block.in_channels) >= block.splits[0])
        exact, shape = copy.deepcopy(block).double(), (block.in_channels, *[1] * block.input_rank)
        if block.householder:
            exact.w_perm = exact._construct_householder_permutation()
            exact.w_perm_inv = exact.w_perm.transpose(0, 1).contiguous()
        self.after = Affine(_probed(exact._permute, shape), dtype, _probed(lambda x: exact._permute(x, True), shape))
        self.before = None
        if block.reverse_pre_permute:
            there = _probed(lambda x: (exact._pre_permute(x), 0.0), shape)
            self.before = Affine(there, dtype, _probed(lambda x: (exact._pre_permute(x, True), 0.0), shape))

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> tuple[Any, Tensor]:
        y, total = x[0], x[0].new_zeros(())
        if rev:
            y, total = self.after.apply_to(y, True)
        elif self.before is not None:
            y, _ = self.before.apply_to(y, False)
        ordered, passive = self.parts.split(y)
        raw, shift = (0.1 * self.block.subnet(_with(passive, c))).split(self.parts.count, 1)
        y, log_det = self.parts.couple(ordered, shift, self.block.clamp * raw, rev, "tanh", self.block.clamp)
        if not rev:
            y, total = self.after.apply_to(y, False)
        elif self.before is not None:
            y, _ = self.before.apply_to(y, True)
        return (y,), log_det + total


def _part(block: Any, second: bool) -> Parts:
    return Parts((torch.arange(block.channels) >= block.split_len1) == second)


def _with(passive: Tensor, conditions: Any) -> Tensor:
    return torch.cat((passive, *conditions), 1) if conditions is not None and len(conditions) else passive
