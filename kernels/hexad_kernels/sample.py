"""sample: logits to a token, per row.

    1. temperature T   w_i = exp((l_i - max l) / T); T = 0: greedy, the lowest index of max l, and done
    2. top_k           keep the k largest (0: all)
    3. top_p           keep the smallest set, largest first, whose share of the kept w is at least p
    4. min_p           keep w_i >= min_p max w
    5. draw            token = the first kept i with sum_{kept j <= i} w_j >= u sum_kept w

The order in 2 and 3 is by logit, largest first, then by index, so a tie is cut at the lower index; the
largest logit is always kept. u = (r + 1/2) 2^-52 in (0, 1), r = w0 2^20 + w1 >> 12 from the first two words of
Philox4x32-10(counter = (2^64 - 1, position), key = seed): a block that `randn` never reaches. A token's
chance of being drawn is thus its renormalised probability, and row b's token depends on its own logits,
parameters, seed and position only.

A logit of -inf is never drawn; where logits are +inf only those are, with equal weights. temperature, top_p
and min_p are rounded to float32. Sums are in float64; the kernel computes each w in float32, so a u within
about 1e-7 of the border between two tokens may fall on the other side of the float64 reference's.

Papers: Fan et al. 2018 (top-k, arXiv 1805.04833), Holtzman et al. 2019 (top-p, 1904.09751), Nguyen et al.
2024 (min-p, 2407.01082), Salmon et al. 2011 (Philox).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hexad_kernels import arrays, check, native
from hexad_kernels.op import CUDA_DTYPES, Op
from hexad_kernels.randn import WORD, as_seeds, philox, words

OWN_SCRATCH = 4096  # tokens: longer rows need a workspace
RANGES = {
    "temperature": "a finite number of at least 0",
    "top_k": "at least 0 (0: all tokens)",
    "top_p": "0 to 1",
    "min_p": "0 to 1",
}  # fmt: skip


def _ok(name: str, value: float) -> bool:
    return 0 <= value <= 1 if name.endswith("_p") else 0 <= value < math.inf


def contract(
    logits: Tensor, seeds: Tensor | None,
    position: int, positions: Tensor | None, temperature: float, temperatures: Tensor | None,
    top_k: int, top_ks: Tensor | None, top_p: float, top_ps: Tensor | None, min_p: float, min_ps: Tensor | None,
) -> tuple[Tensor]:  # fmt: skip
    check.tensor(logits, "logits", rank=2)
    batch, vocabulary = logits.shape
    if vocabulary == 0:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, wants at least one token")
    if not (0 <= temperature < math.inf and top_k >= 0 and 0 <= top_p <= 1 and 0 <= min_p <= 1):
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        name = next(name for name, value in given.items() if not _ok(name, value))
        raise ValueError(f"{name}: got {given[name]}, wants {RANGES[name]}")
    if position < 0:
        raise ValueError(f"position: got {position}, wants at least 0")
    if seeds is None:
        if temperature > 0 and temperatures is None:
            raise ValueError(f"seeds: missing, wants int64 ({batch},) for temperature {temperature} (0 is greedy)")
    else:
        _per_row(seeds, "seeds", logits, (torch.int64,))
    if positions is not None:
        _per_row(positions, "position", logits, (torch.int64,))
    if top_ks is not None:
        _per_row(top_ks, "top_k", logits, (torch.int64,))
    for per_row, name in ((temperatures, "temperature"), (top_ps, "top_p"), (min_ps, "min_p")):
        if per_row is not None:
            _per_row(per_row, name, logits, check.FLOATS)
    return (logits.new_empty(batch, dtype=torch.int64),)


def _per_row(value: Tensor, name: str, logits: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    check.tensor(value, name, dtypes=dtypes)
    if value.shape != logits.shape[:1] or value.device != logits.device:
        check.shape(value, name, (logits.shape[0],), "a value per row of logits")
        check.like(value, name, logits, "logits", dtype=False)


def kept_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps 1 to 4 in float64: which tokens stay (B, V) bool, and every token's w. Parameters are (B, 1);
    temperature is positive."""
    ranked, order = logits.double().sort(dim=1, descending=True, stable=True)
    top = ranked[:, :1]
    w = torch.exp(torch.where(ranked == top, 0.0, (ranked - top) / temperature))
    rank = torch.arange(logits.shape[1], device=logits.device)
    keep = (rank < top_k) | (top_k == 0)
    kept_w = torch.where(keep, w, 0.0)
    before = kept_w.cumsum(1) - kept_w
    keep &= (before < top_p * kept_w.sum(1, keepdim=True)) | (top_p == 1) | (rank == 0)
    keep &= w >= min_p
    there = torch.empty_like(order).scatter_(1, order, rank.expand_as(order))
    return keep.gather(1, there), w.gather(1, there)


def _uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    full = torch.full_like(seeds, WORD)
    w0, w1, _, _ = philox((full, full, *words(positions)), words(seeds))
    return ((w0 << 20 | w1 >> 12).double() + 0.5) * 2.0**-52


def reference(
    logits: Tensor, seeds: Tensor | None,
    position: int, positions: Tensor | None, temperature: float, temperatures: Tensor | None,
    top_k: int, top_ks: Tensor | None, top_p: float, top_ps: Tensor | None, min_p: float, min_ps: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, device = logits.shape[0], logits.device

    def column(name: str, value: float, values: Tensor | None) -> Tensor:
        if values is None:
            values = torch.full((batch,), value, dtype=torch.float32, device=device)
        for i, v in enumerate(values.tolist()):
            if not _ok(name, v):
                raise ValueError(f"{name}: got {v} in row {i}, wants {RANGES[name]}")
        return values.float().double()[:, None]

    t = column("temperature", temperature, temperatures)
    k = torch.full((batch, 1), top_k, device=device) if top_ks is None else top_ks[:, None]
    if (k < 0).any():
        raise ValueError(f"top_k: got {int(k.min())} in row {int(k.argmin())}, wants {RANGES['top_k']}")
    p, floor = column("top_p", top_p, top_ps), column("min_p", min_p, min_ps)
    where = torch.full((batch,), position, device=device) if positions is None else positions
    if (where < 0).any():
        raise ValueError(f"position: got {int(where.min())} in row {int(where.argmin())}, wants at least 0")
    for bad, text in ((logits.isnan().any(1), "has NaN"), ((logits == -math.inf).all(1), "is -inf everywhere")):
        if bad.any():
            raise ValueError(f"logits: row {int(bad.int().argmax())} {text}")
    greedy = t[:, 0] == 0
    if seeds is None and not greedy.all():
        row = int((~greedy).int().argmax())
        raise ValueError(f"seeds: missing, wants int64 ({batch},) for the temperature of row {row} (0 is greedy)")
    best = (logits == logits.amax(1, keepdim=True)).int().argmax(1)
    if seeds is None:
        return best
    keep, w = kept_tokens(logits, torch.where(t == 0, 1.0, t), k, p, floor)
    running = torch.where(keep, w, 0.0).cumsum(1)
    target = _uniform(seeds, where)[:, None] * running[:, -1:]
    return torch.where(greedy, best, (running < target).sum(1))


def _native(
    outputs: tuple[Tensor], logits: Tensor, seeds: Tensor | None,
    position: int, positions: Tensor | None, temperature: float, temperatures: Tensor | None,
    top_k: int, top_ks: Tensor | None, top_p: float, top_ps: Tensor | None, min_p: float, min_ps: Tensor | None,
) -> None:  # fmt: skip
    batch, vocabulary = logits.shape
    if batch == 0:
        return
    if logits.stride(1) != 1 and vocabulary > 1:
        logits = logits.contiguous()
    workspace = None
    if vocabulary > OWN_SCRATCH and logits.is_cpu and not native.emulated and (temperature or temperatures is not None):
        # A row being drawn needs its weights, and of the tokens still in play the logits and indices.
        workspace = logits.new_empty((min(batch, torch.get_num_threads()), 4 * vocabulary), dtype=torch.int32)
    integers = [v if v is None else v.contiguous() for v in (seeds, positions, top_ks)]
    floats = [v if v is None else v.float().contiguous() for v in (temperatures, top_ps, min_ps)]
    native.C.sample(
        logits, *integers, *floats, outputs[0], workspace,
        position, temperature, min(top_k, vocabulary), top_p, min_p,
    )  # fmt: skip


def _cuda_refuses(logits: Tensor, seeds: Tensor | None, *rest: Any) -> str | None:
    if seeds is None and rest[3] is not None:
        return "temperatures in a tensor without seeds (whether all are 0 would take waiting for them)"
    return None


_op = Op(
    "sample",
    "(Tensor logits, Tensor? seeds, SymInt position, Tensor? positions, float temperature, Tensor? temperatures,"
    " SymInt top_k, Tensor? top_ks, float top_p, Tensor? top_ps, float min_p, Tensor? min_ps) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    batch=lambda *_: {0: 2, 1: 1, 3: 1, 5: 1, 7: 1, 9: 1, 11: 1},
    cuda=CUDA_DTYPES,
    cuda_refuses=_cuda_refuses,
)


def sample(
    logits: Tensor,
    seeds: Tensor | Sequence[int] | None = None,
    *,
    position: int | Tensor = 0,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
) -> Tensor:
    """Draws a token per row.

    logits       (B, V), V >= 1; float32, bfloat16, on CUDA float16 (else through the reference, as float64)
    seeds        (B,) int64, or a sequence of integers; may be left out where every temperature is 0
    position     which draw of the seed's this is, 0 to 2^63 - 1
    temperature  0: greedy.  top_k  0: off.  top_p  1: off.  min_p  0: off.  They apply in this order.
    position and the parameters are numbers for all rows or tensors (B,): position and top_k int64, the rest
    floating.
    Returns (B,) int64. It has no gradient.

    Raises ValueError, and returns nothing, for a row that has NaN or is -inf everywhere (naming it) and for a
    parameter out of range. A GPU's kernel cannot wait to raise: there such a row's token is -1 (NaN), -2 (-inf
    everywhere) or, in CUDA, -3 (a parameter in a tensor out of range; in Triton the caller's care), and the other rows
    have theirs.
    """
    if arrays.foreign(logits):
        options = {"position": position, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        names = ["logits", "seeds", *options]
        return arrays.serve(
            lambda logits, seeds, *rest: sample(logits, seeds, **dict(zip(options, rest))),
            [logits, seeds, *options.values()], names, [False] * len(names),
        )  # fmt: skip
    scalar: list[Any] = []
    rows: list[Tensor | None] = []
    for value, off in ((position, 0), (temperature, 0.0), (top_k, 0), (top_p, 1.0), (min_p, 0.0)):
        given = isinstance(value, Tensor)
        scalar.append(off if given else float(value) if type(value) is int and type(off) is float else value)
        rows.append(value if isinstance(value, Tensor) else None)
    if seeds is not None and not isinstance(seeds, Tensor):
        seeds = as_seeds(seeds).to(check.tensor(logits, "logits", rank=2).device)
    for i in (1, 3, 4):
        v = rows[i]
        if v is not None and v.dtype == torch.float64 and logits.dtype != torch.float64:
            rows[i] = v.float()
    return _op(
        logits, seeds, scalar[0], rows[0], scalar[1], rows[1], scalar[2], rows[2], scalar[3], rows[3], scalar[4],
        rows[4],
    )  # fmt: skip
