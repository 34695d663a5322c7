"""sample in Triton: a program per row finds the threshold that a sort would, without sorting.

What top_k and top_p keep are both beginnings of the same order (logit, largest first, then index), so the shorter one
is kept: every token above a key, and the first few equals of it. A first pass has the maximum, a second the mass and
the number of tokens above a few marks below it; tokens above the mark that suffices are listed in their order, and
on the list the key is found three bits a pass. min_p is a threshold on the weight. One more pass sums what is kept, in
float64 and in order, and a last one walks to the token. Weights depend on a row alone, and so does every sum.

No error can be raised without waiting for the device: a row with NaN gives -1, one that is -inf everywhere -2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton.common import exp, launch, philox, refuse_dtypes

LONG = 2048  # tokens of a tile, or fewer of a short row
TINY = tl.constexpr(2.2250738585072014e-308)
FAR = tl.constexpr(2147483647)


@triton.jit
def logits_at(ptr, i, n):
    return tl.load(ptr + i, mask=i < n, other=float("-inf")).to(tl.float32)


@triton.jit
def weight(logit, top, temperature):
    return exp(tl.where(logit == top, 0.0, tl.div_rn(logit - top, temperature)))


@triton.jit
def order_key(logit):
    """Unsigned, in an int64; orders as the float does; -0 is 0."""
    u = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(u < 0, -1 - u, u + 0x80000000) & 0xFFFFFFFF


@triton.jit
def find_peak(ptr, n, TILE: tl.constexpr):
    """The largest logit, its first index, and whether there is a NaN."""
    best = tl.full((TILE,), float("-inf"), tl.float32)
    at = tl.zeros((TILE,), tl.int32)
    wrong = tl.zeros((TILE,), tl.int32)
    for begin in range(0, n, TILE):
        i = begin + tl.arange(0, TILE)
        logit = logits_at(ptr, i, n)
        wrong += (logit != logit).to(tl.int32)
        at = tl.where(logit > best, i, at)
        best = tl.where(logit > best, logit, best)
    top = tl.max(best, 0)
    return top, tl.min(tl.where(best == top, at, FAR), 0), tl.max(wrong, 0) > 0


@triton.jit
def above_mark(logit, w, mark, by_count):
    return tl.where(logit >= mark, tl.where(by_count, 1.0, w), 0.0).to(tl.float64)


@triton.jit
def find_mark(ptr, n, top, temperature, k, p, TILE: tl.constexpr):
    """A logit that the k-th largest does not lie below; without k (0), that p of the mass does not. And the mass."""
    depth1, depth2, depth3 = top - temperature, top - 3.0 * temperature, top - 6.0 * temperature
    depth4 = top - 10.0 * temperature
    sum1 = tl.zeros((TILE,), tl.float64)
    sum2 = tl.zeros((TILE,), tl.float64)
    sum3 = tl.zeros((TILE,), tl.float64)
    sum4 = tl.zeros((TILE,), tl.float64)
    total = tl.zeros((TILE,), tl.float64)
    by_count = k > 0
    for begin in range(0, n, TILE):
        logit = logits_at(ptr, begin + tl.arange(0, TILE), n)
        w = weight(logit, top, temperature)
        total += w.to(tl.float64)
        sum1 += above_mark(logit, w, depth1, by_count)
        sum2 += above_mark(logit, w, depth2, by_count)
        sum3 += above_mark(logit, w, depth3, by_count)
        sum4 += above_mark(logit, w, depth4, by_count)
    # A little more than asked for: the list's sums round in another order than these.
    whole = tl.sum(total, 0)
    target = tl.where(by_count, k.to(tl.float64), tl.maximum(p * whole * (1.0 + 1e-12), TINY))
    mark = tl.where(tl.sum(sum4, 0) >= target, depth4, float("-inf"))
    mark = tl.where(tl.sum(sum3, 0) >= target, depth3, mark)
    mark = tl.where(tl.sum(sum2, 0) >= target, depth2, mark)
    return tl.where(tl.sum(sum1, 0) >= target, depth1, mark), whole


@triton.jit
def make_list(ptr, n, top, temperature, mark, listed_ptr, weights_ptr, index_ptr, TILE: tl.constexpr):
    """The tokens with logits from `mark` on, and how many."""
    count = 0
    for begin in range(0, n, TILE):
        i = begin + tl.arange(0, TILE)
        logit = logits_at(ptr, i, n)
        stays = (i < n) & (logit >= mark)
        place = count + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(listed_ptr + place, logit, mask=stays)
        tl.store(weights_ptr + place, weight(logit, top, temperature), mask=stays)
        tl.store(index_ptr + place, i, mask=stays)
        count += tl.sum(stays.to(tl.int32), 0)
    tl.debug_barrier()
    return count


@triton.jit
def find_cut(ptr, weights_ptr, n, mark, top, target, by_count, TILE: tl.constexpr):
    """The largest key from which on the mass, or number, reaches the target, and what lies above it."""
    cut = order_key(mark)
    span = order_key(top) - cut + 1
    above = tl.zeros((), tl.float64)
    while span > 1:
        span = (span + 7) // 8
        pivots = cut + span * (1 + tl.arange(0, 8)).to(tl.int64)
        mass = tl.zeros((8,), tl.float64)
        for begin in range(0, n, TILE):
            i = begin + tl.arange(0, TILE)
            key = order_key(logits_at(ptr, i, n))
            w = tl.load(weights_ptr + i, mask=i < n, other=0.0)
            w = tl.where(by_count & (i < n), 1.0, w).to(tl.float64)
            mass += tl.sum(tl.where(key[:, None] >= pivots[None, :], w[:, None], 0.0), 0)
        cut += span * tl.sum((mass >= target).to(tl.int64), 0)
        above = tl.max(tl.where(mass < target, mass, 0.0), 0)
    return cut, above


@triton.jit
def kept_weights(
    ptr, begin, n, top, temperature, floor, cut, equals, before, FILTERED: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Weights of a tile's tokens, 0 for those that go; `before` equals of the cut came before, now how many have."""
    i = begin + tl.arange(0, TILE)
    logit = logits_at(ptr, i, n)
    w = weight(logit, top, temperature)
    if not FILTERED:
        return tl.where(i < n, w, 0.0).to(tl.float64), before
    key = order_key(logit)
    equal = (i < n) & (key == cut)
    rank = before + tl.cumsum(equal.to(tl.int32), 0)
    stays = (i < n) & (w >= floor) & ((key > cut) | (equal & (rank <= equals)))
    return tl.where(stays, w, 0.0).to(tl.float64), before + tl.sum(equal.to(tl.int32), 0)


@triton.jit
def draw(ptr, n, top, temperature, floor, cut, equals, u, FILTERED: tl.constexpr, TILE: tl.constexpr):
    """The place where the running sum of kept weights reaches u of the whole."""
    total = tl.zeros((), tl.float64)
    before = 0
    for begin in range(0, n, TILE):
        w, before = kept_weights(ptr, begin, n, top, temperature, floor, cut, equals, before, FILTERED, TILE)
        total += tl.sum(w, 0)
    target = u * total
    found = -1
    last = 0  # the last with a weight, where rounding leaves the running sum short
    running = tl.zeros((), tl.float64)
    before = 0
    begin = 0
    while (begin < n) & (found < 0):
        w, before = kept_weights(ptr, begin, n, top, temperature, floor, cut, equals, before, FILTERED, TILE)
        i = begin + tl.arange(0, TILE)
        reached = tl.min(tl.where((w > 0.0) & (running + tl.cumsum(w, 0) >= target), i, FAR), 0)
        found = tl.where(reached < FAR, reached, found)
        last = tl.maximum(last, tl.max(tl.where(w > 0.0, i, 0), 0))
        running += tl.sum(w, 0)
        begin += TILE
    return tl.where(found < 0, last, found)


@triton.jit
def uniform(seed, at):
    """In (0, 1), of 52 bits: the draw of a seed at a position."""
    ones = tl.full((), 0xFFFFFFFF, tl.uint32)
    at = tl.cast(at, tl.int64)
    w0, w1, _, _ = philox(ones, ones, (at & 0xFFFFFFFF).to(tl.uint32), (at >> 32).to(tl.uint32), seed)
    bits = (w0.to(tl.int64) << 20) | (w1.to(tl.int64) >> 12)
    return (bits.to(tl.float64) + 0.5) * (1.0 / 4503599627370496.0)


@triton.jit
def of_row(ptr, value, b, stride):
    if ptr is not None:
        value = tl.load(ptr + b * stride)
    return value


@triton.jit(do_not_specialize=["position", "top_k"])
def sample_kernel(
    logits_ptr, seeds_ptr, positions_ptr, temperatures_ptr, top_ks_ptr, top_ps_ptr, min_ps_ptr, out_ptr,
    listed_ptr, weights_ptr, index_ptr, vocabulary, row_stride, seed_stride, position_stride, temperature_stride,
    k_stride, p_stride, floor_stride, position, temperature, top_k, top_p, min_p,
    FILTERS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    logits_ptr += b * row_stride
    top, token, wrong = find_peak(logits_ptr, vocabulary, TILE)
    heat = tl.cast(of_row(temperatures_ptr, temperature, b, temperature_stride), tl.float32)
    token = token.to(tl.int64)
    if seeds_ptr is not None:  # noqa: SIM102 - known when the kernel is compiled, the other when it runs
        if (heat > 0.0) & (top > float("-inf")) & (wrong == 0):
            at = of_row(positions_ptr, position, b, position_stride)
            u = uniform(tl.load(seeds_ptr + b * seed_stride), at)
            if FILTERS:
                k = tl.cast(of_row(top_ks_ptr, top_k, b, k_stride), tl.int64)
                k = tl.where(k >= vocabulary, 0, k)
                p = tl.cast(tl.cast(of_row(top_ps_ptr, top_p, b, p_stride), tl.float32), tl.float64)
                floor = tl.cast(of_row(min_ps_ptr, min_p, b, floor_stride), tl.float32)
                listed_ptr += b * vocabulary
                weights_ptr += b * vocabulary
                index_ptr += b * vocabulary
                mark = tl.full((), float("-inf"), tl.float32)
                mass = tl.zeros((), tl.float64)
                if (k > 0) | (p < 1.0):
                    mark, mass = find_mark(logits_ptr, vocabulary, top, heat, k, p, TILE)
                n = make_list(logits_ptr, vocabulary, top, heat, mark, listed_ptr, weights_ptr, index_ptr, TILE)
                cut = tl.full((), -1, tl.int64)
                equals = tl.zeros((), tl.int64)
                if k > 0:
                    cut, above = find_cut(listed_ptr, weights_ptr, n, mark, top, k.to(tl.float64), True, 1024)
                    equals = k - above.to(tl.int64)
                    mass = tl.zeros((), tl.float64)
                    before = 0
                    for begin in range(0, n, TILE):
                        w, before = kept_weights(listed_ptr, begin, n, top, heat, 0.0, cut, equals, before, True, TILE)
                        mass += tl.sum(w, 0)
                if p < 1.0:
                    target = tl.maximum(p * mass, TINY)
                    cut_p, above = find_cut(listed_ptr, weights_ptr, n, mark, top, target, False, 1024)
                    # Its equals weigh the same: as many as it takes.
                    u32 = tl.where(cut_p >= 0x80000000, cut_p - 0x80000000, -1 - cut_p)
                    logit = u32.to(tl.int32).to(tl.float32, bitcast=True)
                    each = weight(logit, top, heat).to(tl.float64)
                    equals_p = tl.maximum(tl.ceil((target - above) / each), 1.0).to(tl.int64)
                    shorter = (cut_p > cut) | ((cut_p == cut) & (equals_p < equals))
                    equals = tl.where(shorter, equals_p, equals)
                    cut = tl.where(shorter, cut_p, cut)
                place = draw(listed_ptr, n, top, heat, floor, cut, equals, u, True, TILE)
                token = tl.load(index_ptr + place).to(tl.int64)
            else:
                place = draw(logits_ptr, vocabulary, top, heat, 0.0, 0, 0, u, False, TILE)
                token = place.to(tl.int64)
    token = tl.where(wrong, -1, tl.where(top == float("-inf"), -2, token))
    tl.store(out_ptr + b, token)


def refuses(logits: Tensor, *_: object) -> str | None:
    if logits.shape[1] >= 2**31 - LONG:
        return "a row of 2^31 logits or more"
    return refuse_dtypes(logits)


def run(
    outputs: tuple[Tensor], logits: Tensor, seeds: Tensor | None,
    position: int, positions: Tensor | None, temperature: float, temperatures: Tensor | None,
    top_k: int, top_ks: Tensor | None, top_p: float, top_ps: Tensor | None, min_p: float, min_ps: Tensor | None,
) -> None:  # fmt: skip
    batch, vocabulary = logits.shape
    if logits.stride(1) != 1 and vocabulary > 1:
        logits = logits.contiguous()
    filters = top_k > 0 or top_p < 1 or min_p > 0 or any(t is not None for t in (top_ks, top_ps, min_ps))
    listed = weights = index = None
    if filters and seeds is not None:
        listed = torch.empty(batch * vocabulary, dtype=torch.float32, device=logits.device)
        weights = torch.empty_like(listed)
        index = torch.empty(batch * vocabulary, dtype=torch.int32, device=logits.device)
    tile = min(LONG, max(256, triton.next_power_of_2(vocabulary)))
    rows = (seeds, positions, temperatures, top_ks, top_ps, min_ps)
    launch(
        sample_kernel, (batch,), logits.device, logits, *rows, outputs[0], listed, weights, index,
        vocabulary, logits.stride(0),
        *(0 if t is None else t.stride(0) for t in rows), position, float(temperature), min(top_k, vocabulary),
        float(top_p), float(min_p), filters, tile, num_warps=max(4, tile // 256),
    )  # fmt: skip


BUDGET = {
    "vocabulary float32": {"sm_80": (192, 5120), "sm_90": (192, 5120), "sm_100": (184, 5120), "gfx942": (120, 5120)},
}
