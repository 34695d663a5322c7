"""What stands against hexad's own work or another library's, rather than torch's same op: attention's options per tile,
quantised against dense, caches on large pages against plain ones, the AVX2 level against its own roof, a Glow step
against normflows, a guided step against diffusers, and every shape of the tests against torch eager.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests import promises
from tests.cases import build, cases

import hexad_kernels as hk
from bench import eager as torch_side
from bench import peers
from bench.timing import interleaved, with_roofs
from hexad_kernels import memory, native
from hexad_kernels.invconv import fold_actnorm

TILE = 48, 64  # rows and keys of a tile


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def label(value):
    return str(value).removeprefix("torch.")


def checked(name, args, kwargs):
    call = promises.Call(args, kwargs)
    promises.accurate(name, call, call.map(lambda t: t.double() if t.is_floating_point() else t))


def find(op, name):
    return next(case for case in cases()[op] if case.name == name)


def report(benchmark, ours, mine, **info):
    benchmark.pedantic(ours, rounds=3, iterations=max(1, int(0.02 / mine)))
    benchmark.extra_info.update(seconds=mine, isa=hk.machine()["isa"], **info)


S, HEADS, DIM, BLOCK = 1024, 8, 64, 256
SLOPES = 2.0 ** -torch.linspace(1, 8, HEADS)
AHEAD = torch.arange(S) - torch.arange(S)[:, None]
BLOCKS = torch.arange(S) // BLOCK == (torch.arange(S) // BLOCK)[:, None]

# Options of attention, and what they leave visible (None: every tile is computed).
OPTIONS = {
    "mask_bool": (lambda dtype: {"mask": draw(S, S, seed=3) > 0}, None),
    "mask_bool_blocks": (lambda dtype: {"mask": BLOCKS}, BLOCKS),
    "mask_bias": (lambda dtype: {"mask": draw(1, HEADS, S, S, dtype=dtype, seed=3)}, None),
    "softcap": (lambda dtype: {"softcap": 30.0}, None),
    "alibi": (lambda dtype: {"alibi_slopes": SLOPES}, None),
    "sinks": (lambda dtype: {"sinks": draw(HEADS, seed=4)}, None),
    "window": (lambda dtype: {"causal": True, "window": BLOCK}, (AHEAD <= 0) & (AHEAD > -BLOCK)),
    "causal": (lambda dtype: {"causal": True}, AHEAD <= 0),
}


def tiles(visible: torch.Tensor) -> int:
    rows, keys = TILE
    return sum(bool(part.any()) for band in visible.split(rows) for part in band.split(keys, 1))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("option", [*OPTIONS, "grouped", "varlen"])
def test_attention_option(benchmark, option, dtype):
    """Its time per computed tile beside the plain call's."""
    q, k, v = (draw(1, HEADS, S, DIM, dtype=dtype, seed=i) for i in range(3))
    share = 1.0
    name, args, kwargs = "attention", (q, k, v), {}
    if option == "grouped":
        args = (q, k[:, :2].contiguous(), v[:, :2].contiguous())
    elif option == "varlen":
        one, all_ = torch.ones(BLOCK, BLOCK), torch.ones(S, S)
        name, share = "attention_varlen", S // BLOCK * tiles(one) / tiles(all_)
        at = torch.arange(0, S + 1, BLOCK, dtype=torch.int32)
        args = (*(t[0].transpose(0, 1).contiguous() for t in (q, k, v)), at, at)
    else:
        make, visible = OPTIONS[option]
        kwargs = make(dtype)
        share = 1.0 if visible is None else tiles(visible) / tiles(torch.ones(S, S))
    checked(name, args, kwargs)

    def ours():
        return getattr(hk, name)(*args, **kwargs)

    mine, plain = interleaved([ours, lambda: hk.attention(q, k, v)])
    report(benchmark, ours, mine, op="attention_option", case=option, dtype=label(dtype), vs_other=share * plain / mine)


@torch.no_grad()
def test_attention_in_float16(benchmark):
    half, wide = ([draw(1, HEADS, S, DIM, dtype=t, seed=i) for i in range(3)] for t in (torch.float16, torch.float32))
    checked("attention", tuple(half), {})
    mine, plain = interleaved([lambda: hk.attention(*half), lambda: hk.attention(*wide)])
    report(
        benchmark,
        lambda: hk.attention(*half),
        mine,
        op="attention_option",
        case="float16_against_float32",
        dtype="float16",
        vs_other=plain / mine,
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "form", "rows", "other_form", "other_rows", "dtype"),
    [
        ("int8_512_rows_against_bfloat16", "int8", 512, "bfloat16", 512, torch.bfloat16),
        ("int4_8_rows_against_1", "int4", 8, "int4", 1, torch.float32),
        ("int8_8_rows_against_1", "int8", 8, "int8", 1, torch.float32),
    ],
)
def test_linear_relation(benchmark, case, form, rows, other_form, other_rows, dtype):
    outputs, inputs = (3072, 768) if rows == 512 else (22016, 4096)  # int4: 56 MB, out of cache
    weight = draw(outputs, inputs) / inputs**0.5

    def packed(kind):
        return hk.pack(weight.to(dtype)) if kind == "bfloat16" else hk.quantize(weight, kind)

    x, y = draw(rows, inputs, dtype=dtype, seed=1), draw(other_rows, inputs, dtype=dtype, seed=2)
    w, other = packed(form), packed(other_form)
    for given, held in ((x, w), (y, other)):
        plain = given.double() @ held.unpack().double().T
        assert (hk.linear(given, held).double() - plain).norm() < 0.02 * plain.norm()
    mine, others = interleaved([lambda: hk.linear(x, w), lambda: hk.linear(y, other)])
    report(
        benchmark, lambda: hk.linear(x, w), mine, op="linear_relation", case=case, dtype=label(dtype),
        vs_other=others / mine,
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
@pytest.mark.parametrize("name", ["gpt", "llama_alone", "llama_paged"])
def test_decode_on_large_pages(benchmark, name, dtype):
    """A cache where the engine's lie, on large pages if the system has them, against the same in plain memory."""
    q, *caches, lengths, options = *(call := build(find("decode", name), dtype)).args, call.kwargs
    large = [memory.on_large_pages(cache) for cache in caches]

    def on(held):
        return hk.decode(q, *held, lengths, **options)

    checked("decode", (q, *large, lengths), options)
    assert torch.equal(on(large)[0], on(caches)[0])
    mine, plain = interleaved([lambda: on(large), lambda: on(caches)])
    report(
        benchmark, lambda: on(large), mine, op="decode_relation", case=f"{name}_large_pages", dtype=label(dtype),
        vs_other=plain / mine,
    )  # fmt: skip


AVX2 = [
    *(("attention", case) for case in ("gpt_prefill", "full_128", "llama_prefill")),
    ("attention_backward", "gpt"),
    ("linear", "prompt"),
    ("linear_packed", "float32_prompt"),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "case"), AVX2)
def test_avx2(benchmark, name, case):
    """float32 on the AVX2 level, against the arithmetic roof of that level."""
    if "avx2" not in native.C.isa_available().split(","):
        pytest.skip("this machine has no AVX2")
    found = find(name, case)
    call, usual = build(found, torch.float32), native.C.isa()
    native.C.set_isa("avx2")
    try:
        checked(name, call.args, call.kwargs)

        def ours():
            return getattr(hk, name)(*call.args, **call.kwargs)

        (mine,), roofs = with_roofs([ours], found.work.bytes / 2**20)
        gflops = found.work.flops / mine / 1e9
        report(
            benchmark, ours, mine, op="avx2", case=f"{name}_{case}", dtype="float32", gflops=gflops,
            roof_fraction=gflops / roofs.fma_fp32,
        )  # fmt: skip
    finally:
        native.C.set_isa(usual)


NORMFLOWS, NO_NORMFLOWS = peers.load("normflows")
DIFFUSERS, NO_DIFFUSERS = peers.load("diffusers")


@torch.no_grad()
@pytest.mark.skipif(NORMFLOWS is None, reason=NO_NORMFLOWS)
@pytest.mark.parametrize("shape", [(16, 12, 16, 16), (16, 48, 32, 32), (16, 12, 64, 64)], ids=str)
def test_glow_step(benchmark, shape):
    """Actnorm, 1x1 convolution and coupling, the conditioner's output given."""
    x = draw(*shape)
    channels = shape[1]
    half = (shape[0], channels // 2, *shape[2:])
    shift, raw = draw(*half, seed=1), draw(*half, seed=2)
    weight = torch.linalg.qr(draw(channels, channels, seed=3))[0].contiguous()
    log_scale, offset = draw(channels, seed=4) / 4, draw(channels, seed=5)
    theirs = NORMFLOWS.glow_step(x, shift, raw, weight, log_scale, offset)
    folded, bias_, per_pixel = fold_actnorm(weight, log_scale, offset)

    def ours():
        y, log_det = hk.coupling(hk.invconv(x, folded, bias_), shift, raw, scale_map="sigmoid")
        return y, log_det + per_pixel * (shape[2] * shape[3])

    for a, b in zip(ours(), theirs()):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-3)
    mine, other = interleaved([ours, theirs])
    case = "x".join(map(str, shape))
    report(benchmark, ours, mine, op="glow_step", case=case, dtype="float32", vs_other=other / mine)


@torch.no_grad()
@pytest.mark.skipif(DIFFUSERS is None, reason=NO_DIFFUSERS)
def test_guided_step(benchmark):
    """Guidance and a DDIM step at a million elements, against diffusers' arithmetic and scheduler."""
    x, output, uncond = (draw(4, 4, 256, 256, seed=i) for i in range(3))
    theirs, table = DIFFUSERS.ddim(x, output, uncond, 4.0)

    def ours():
        return hk.step(table, 0, x, output, uncond)

    torch.testing.assert_close(ours()[0], theirs(), rtol=2e-4, atol=2e-4)
    mine, other = interleaved([ours, theirs])
    report(benchmark, ours, mine, op="guided_step", case="million", dtype="float32", vs_other=other / mine)


@torch.no_grad()
def test_no_shape_of_the_tests_is_slower_than_eager(benchmark):
    """Every float32 case of tests/cases that torch has a form of; the worst ratio is the figure."""
    ratios, total = {}, 0.0
    for name, found in cases().items():
        for case in found:
            call = build(case, torch.float32)
            empty = any(a.numel() == 0 for a in call.args if isinstance(a, torch.Tensor))
            if case.bench_only or empty or torch.float32 not in case.dtypes or not hasattr(torch_side, name):
                continue
            plain = torch_side.eager(name, call.args, call.kwargs)
            if plain is None:
                continue
            checked(name, call.args, call.kwargs)
            ours = partial(getattr(hk, name), *call.args, **call.kwargs)
            mine, theirs = interleaved([ours, plain], seconds=0.03, rounds=5)
            ratios[f"{name}-{case.name}"], total = theirs / mine, total + mine
    worst = sorted(ratios, key=ratios.__getitem__)
    slower = [f"{k} {ratios[k]:.2f}" for k in worst if ratios[k] < 1]
    print(f"\n{len(slower)} of {len(ratios)} shapes slower than eager: {', '.join(slower)}")
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info.update(
        seconds=total, op="overhead", case="every_shape", dtype="float32",
        vs_eager=ratios[worst[0]], slower=slower, shapes=len(ratios),
    )  # fmt: skip
