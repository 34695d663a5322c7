"""The rows of the target table: what is timed, against what, and the figure each has to reach.

A row checks its result before it is timed: `excess` is the error as a share of what is allowed, which is twice that of
the anchor (or of plain torch) in the same dtype plus one ulp of the result, both against float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from tests import promises
from tests.cases import Call
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hexad_kernels as hk
from bench import eager as torch_side
from bench.gpu_device import Device

BF16 = torch.bfloat16


class NoKernel(Exception):
    """No GPU backend takes the call; the text says why."""


@dataclass(frozen=True)
class Target:
    figure: str
    bound: float
    upper: bool = False

    def met(self, value: float) -> bool:
        return value <= self.bound if self.upper else value >= self.bound


@dataclass
class Measured:
    """`figures` are what the targets name; `seconds` are the op's, by backend, and the anchors'."""

    figures: dict[str, float]
    seconds: dict[str, float]
    anchors: dict[str, float] = field(default_factory=dict)
    excess: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Row:
    work: str
    anchor: str
    targets: tuple[Target, ...]
    measure: Callable[[Device], Measured]
    quick: bool = True
    cost: float = 5.0  # seconds, about: a row that no longer fits is skipped
    compiles: bool = False

    def needs(self, quick: bool) -> float:
        return self.cost + (10.0 if self.compiles and not quick else 0.0)


def backends_of(d: Device, name: str, call: Call) -> list[str]:
    op, flat = hk.OPS[name], hk.explain(name, *call.args, **call.kwargs).arguments
    refusals = {backend: op.refusal(backend, flat) for backend in d.backends}
    found = [backend for backend, reason in refusals.items() if reason is None]
    if not found:
        raise NoKernel("; ".join(f"{backend}: {reason}" for backend, reason in refusals.items()))
    return found


def ours(d: Device, name: str, call: Call, **options: Any) -> dict[str, float]:
    """Seconds of the op by each backend that takes the call."""
    found = {}
    for backend in backends_of(d, name, call):
        with hk.backend(backend):
            found[backend] = d.seconds(lambda: getattr(hk, name)(*call.args, **call.kwargs), **options)
    return found


def excess_of(found: Tensor, plain: Tensor, exact: Tensor) -> float:
    eps = promises.EPS[found.dtype]
    f, p, e = found.double(), plain.double(), exact.double()
    if not torch.isfinite(f).all():
        return float("inf")
    return float(((f - e).abs() / (2 * (p - e).abs().max() + eps * e.abs() + 1e-38)).max())


def checked(d: Device, name: str, call: Call) -> None:
    """Every backend that takes the call keeps the promise of accuracy on it."""
    double = call.map(lambda t: t.double() if t.is_floating_point() else t)
    for backend in backends_of(d, name, call):
        with hk.backend(backend):
            promises.accurate(name, call, double)


# Attention


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def torch_backends(run: Callable[[], Callable[[], Any]], d: Device) -> dict[str, float]:
    """Seconds of what `run` prepares, by each of torch's attention kernels that takes it."""
    found = {}
    for kernel in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        with suppress(RuntimeError), sdpa_kernel(kernel):
            found[kernel.name.lower()] = d.seconds(run())
    if not found:
        raise RuntimeError("none of torch's attention kernels takes the call")
    return found


def slice_excess(q: Tensor, k: Tensor, v: Tensor, found: Tensor, plain: Tensor, causal: bool) -> float:
    """The worst over three runs of 32 queries: all of them in float64 would not fit."""
    worst = 0.0
    for start in (0, q.shape[2] // 2, q.shape[2] - 32):
        rows = slice(start, start + 32)
        keys = start + 32 if causal else k.shape[2]
        with hk.backend("reference"):
            exact = hk.attention(*(t.double() for t in (q[:, :, rows], k[:, :, :keys], v[:, :, :keys])), causal=causal)
        worst = max(worst, excess_of(found[:, :, rows], plain[:, :, rows], exact))
    return worst


def attention_forward(dim: int, causal: bool) -> Callable[[Device], Measured]:
    def measure(d: Device) -> Measured:
        heads, tokens = d.size(2048, 256) // dim, d.size(16384, 96)
        q, k, v = (d.draw(1, heads, tokens, dim) for _ in range(3))
        call = Call((q, k, v), {"causal": causal})
        plain = sdpa(q, k, v, causal)
        excess = 0.0
        for backend in backends_of(d, "attention", call):
            with hk.backend(backend):
                excess = max(excess, slice_excess(q, k, v, hk.attention(q, k, v, causal=causal), plain, causal))
        seconds = ours(d, "attention", call, cold=False)
        anchors = torch_backends(lambda: lambda: sdpa(q, k, v, causal), d)
        rate = 4 * heads * tokens**2 * dim / (2 if causal else 1) / min(seconds.values()) / 1e12
        note = f"{rate:.0f} TFLOP/s, {100 * rate / d.ceilings['matmul_tflops']:.0f} % of the large product"
        return Measured({"x torch": min(anchors.values()) / min(seconds.values())}, seconds, anchors, excess, note)

    return measure


def attention_gradients(causal: bool) -> Callable[[Device], Measured]:
    def measure(d: Device) -> Measured:
        heads, tokens, dim = d.size(16, 2), d.size(16384, 96), 128
        q, k, v, g = (d.draw(1, heads, tokens, dim) for _ in range(4))
        with hk.backend(backends_of(d, "attention", Call((q, k, v), {"causal": causal}))[0]):
            out, lse = hk.attention(q, k, v, causal=causal, return_lse=True)
        call = Call((g, q, k, v, out, lse), {"causal": causal})
        part = [t[:, :2, :512].contiguous() for t in (g, q, k, v)]
        saved = hk.attention(*part[1:], causal=causal, return_lse=True)
        checked(d, "attention_backward", Call((*part, *saved), {"causal": causal}))

        def prepared() -> Callable[[], Any]:
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            graph = sdpa(*leaves, causal=causal)
            return lambda: torch.autograd.grad(graph, leaves, g, retain_graph=True)

        seconds = ours(d, "attention_backward", call, cold=False)
        anchors = torch_backends(prepared, d)
        rate = 10 * heads * tokens**2 * dim / (2 if causal else 1) / min(seconds.values()) / 1e12
        return Measured(
            {"x torch": min(anchors.values()) / min(seconds.values())}, seconds, anchors, note=f"{rate:.0f} TFLOP/s"
        )

    return measure


def attention_masked(kind: str) -> Callable[[Device], Measured]:
    def measure(d: Device) -> Measured:
        heads, tokens, dim = d.size(16, 2), d.size(8192, 96), 128
        q, k, v = (d.draw(1, heads, tokens, dim) for _ in range(3))
        bias = d.draw(1, 1, tokens, tokens)
        mask = bias > -1 if kind == "bool" else bias
        call, free = Call((q, k, v), {"mask": mask}), Call((q, k, v))
        part = [t[:, :2, :512].contiguous() for t in (q, k, v)]
        checked(d, "attention", Call(tuple(part), {"mask": mask[:, :, :512, :512].contiguous()}))
        seconds, unmasked = ours(d, "attention", call, cold=False), ours(d, "attention", free, cold=False)
        anchors = {"unmasked": min(unmasked.values())}
        with suppress(RuntimeError):
            anchors |= torch_backends(lambda: lambda: sdpa(q, k, v, mask=mask), d)
        ratio = min(seconds.values()) / anchors["unmasked"]
        return Measured({"x unmasked time": ratio}, seconds, anchors)

    return measure


# Decoding


def paged_decode(rows: int, length: int) -> Callable[[Device], Measured]:
    def measure(d: Device) -> Measured:
        batch, longest = d.size(rows, min(rows, 2)), d.size(length, 96)
        heads, kv_heads, dim, page = d.size(32, 8), d.size(8, 2), 128, d.size(64, 16)
        pages = batch * longest // page
        q, k, v = d.draw(batch, heads, dim), d.draw(pages, kv_heads, page, dim), d.draw(pages, kv_heads, page, dim)
        table = torch.randperm(pages, device=d.where).to(torch.int32).view(batch, -1)
        lengths = torch.full((batch,), longest, dtype=torch.int32, device=d.where)
        call = Call((q, k, v, lengths), {"block_table": table})
        excess = 0.0
        for backend in backends_of(d, "decode", call):
            with hk.backend(backend):
                found = hk.decode(*call.args, **call.kwargs)
            for row in (0, batch - 1):
                mine = [t[table[row].long()].transpose(0, 1).flatten(1, 2).unsqueeze(0) for t in (k, v)]
                query = q[row, :, None].unsqueeze(0)
                plain = sdpa(query, *mine)
                with hk.backend("reference"):
                    exact = hk.attention(*(t.double() for t in (query, *mine)))
                excess = max(excess, excess_of(found[row : row + 1, :, None], plain, exact))
        seconds = ours(d, "decode", call)
        rate = (k.nbytes + v.nbytes) / min(seconds.values()) / 1e9
        note = f"{rate:.0f} GB/s read"
        return Measured({"of copy": rate / d.ceilings["copy_gbs"]}, seconds, excess=excess, note=note)

    return measure


def int4_product(rows: int) -> Callable[[Device], Measured]:
    def measure(d: Device) -> Measured:
        inputs, outputs = d.size(4096, 256), d.size(rows, 64)
        weight = torch.randn(outputs, inputs, dtype=torch.float32) / 64
        packed = hk.quantize(weight, "int4")
        panels, x = packed.panels.to(d.where), d.draw(1, inputs)
        call = Call((x, panels), {"form": "int4", "rows": outputs})
        checked(d, "linear_packed", call)
        seconds = ours(d, "linear_packed", call)
        dense = weight.to(d.where, BF16)
        anchors = {"dense bfloat16": d.seconds(lambda: F.linear(x, dense))}
        rate = packed.nbytes / min(seconds.values()) / 1e9
        return Measured({"of copy": rate / d.ceilings["copy_gbs"]}, seconds, anchors, note=f"{rate:.0f} GB/s read")

    return measure


# Memory-bound ops, out of L2


def streaming(name: str, make: Callable[[Device], tuple[Call, int]]) -> Callable[[Device], Measured]:
    """`make` gives the call and the bytes that it must move."""

    def measure(d: Device) -> Measured:
        call, moved = make(d)
        checked(d, name, call.map(lambda t: t[:2] if t.shape[:1] == call.args[0].shape[:1] else t))
        seconds = ours(d, name, call)
        plain = torch_side.eager(name, call.args, call.kwargs)
        anchors = {"eager": d.seconds(plain, rounds=5)} if plain else {}
        compiled = None if d.quick else torch_side.compiled(name, call.args, call.kwargs)
        if compiled:
            anchors["torch.compile"] = d.seconds(compiled)
        best = min(seconds.values())
        figures = {"of copy": moved / best / 1e9 / d.ceilings["copy_gbs"]}
        figures |= {f"x {anchor}": theirs / best for anchor, theirs in anchors.items()}
        return Measured(figures, seconds, anchors, note=f"{moved / best / 1e9:.0f} GB/s")

    return measure


def coupled(dtype: torch.dtype, inverse: bool = False) -> Callable[[Device], tuple[Call, int]]:
    def make(d: Device) -> tuple[Call, int]:
        x = d.draw(d.size(64, 2), 48, *d.image, dtype=dtype)
        shift, scale = (d.draw(len(x), 24, *d.image, dtype=dtype) for _ in range(2))
        return Call((x, shift, scale), {"scale_map": "sigmoid", "inverse": inverse}), 3 * x.nbytes

    return make


def coupled_backward(d: Device) -> tuple[Call, int]:
    (x, shift, scale), options = coupled(torch.float32)(d)[0].args, {"scale_map": "sigmoid"}
    return Call((torch.randn_like(x), d.draw(len(x), dtype=torch.float32), x, shift, scale), options), 5 * x.nbytes


def guided_step(d: Device) -> tuple[Call, int]:
    x = d.draw(d.size(64, 2), 16, *d.image, dtype=torch.float32)
    table = torch.zeros(1, 4, 8, device=d.where)
    table[0, 0, :4] = torch.tensor([1.2, -0.7, 3.0, 7.5])
    table[0, 1, 1:3] = torch.tensor([0.4, 0.9])
    m, u = torch.randn_like(x), torch.randn_like(x)
    return Call((table, 0, x, m, u)), 4 * x.nbytes


def layer_modulated(d: Device) -> tuple[Call, int]:
    x = d.draw(d.size(64, 2), d.size(2048, 8), 1152)
    return Call((x,), {"scale": d.draw(len(x), 1152), "shift": d.draw(len(x), 1152), "eps": 1e-6}), 2 * x.nbytes


def rms(d: Device) -> tuple[Call, int]:
    x = d.draw(d.size(32768, 8), 4096)
    return Call((x, d.draw(4096)), {"kind": "rms"}), 2 * x.nbytes


def group_silu(d: Device) -> tuple[Call, int]:
    x = d.draw(d.size(32, 2), 320, *d.image)
    options = {"kind": "group", "num_groups": 32, "activation": "silu"}
    return Call((x, d.draw(320), d.draw(320)), options), 2 * x.nbytes


# Sampling


def drawn_tokens(d: Device) -> Measured:
    rows, vocabulary = d.size(256, 4), d.size(131072, 512)
    logits = 3 * d.draw(rows, vocabulary, dtype=torch.float32)
    call = Call((logits, torch.arange(rows, device=d.where)), {"temperature": 0.8, "top_k": 50, "top_p": 0.9})
    with hk.backend("reference"):
        wanted = hk.sample(*call.args, **call.kwargs)
    excess = 0.0
    for backend in backends_of(d, "sample", call):
        with hk.backend(backend):
            same = float((hk.sample(*call.args, **call.kwargs) == wanted).float().mean())
        # A draw within 1e-7 of the border between two tokens may fall on its other side.
        excess = max(excess, (1 - same) * rows / 2)
    seconds = ours(d, "sample", call)
    plain = torch_side.eager("sample", (logits,), {k: v for k, v in call.kwargs.items() if k != "top_k"})
    anchors = {"softmax + sort": d.seconds(plain, rounds=5)}
    return Measured({"x softmax + sort": anchors["softmax + sort"] / min(seconds.values())}, seconds, anchors, excess)


def ddim_loop(d: Device) -> Measured:
    """50 steps of DDIM on a stand-in for a model, some products that take 1 ms, captured as one graph."""
    steps = d.size(50, 3)
    x0 = d.draw(d.size(4, 1), 4, *d.image, dtype=torch.float32)
    signal = torch.linspace(0.02, 0.999, steps + 1, dtype=torch.float64)
    table = torch.zeros(steps, 4, 8, dtype=torch.float64)
    for i, (a, after) in enumerate(zip(signal.tolist(), signal.tolist()[1:])):
        table[i, 0, :4] = torch.tensor([a**-0.5, -((1 - a) ** 0.5) * a**-0.5, float("inf"), 3.0])
        table[i, 1, 1:3] = torch.tensor([(1 - after) ** 0.5, after**0.5])
    table = table.float().to(d.where)
    a, product = d.draw(d.size(4096, 8), d.size(4096, 8)), d.draw(d.size(4096, 8), d.size(4096, 8))
    once = d.seconds(lambda: torch.mm(a, a, out=product), cold=False)
    m, u = torch.randn_like(x0), torch.randn_like(x0)

    def model() -> None:
        for _ in range(max(1, round(1e-3 / once) if d.timed else 1)):
            torch.mm(a, a, out=product)

    def loop(stepping: bool) -> Tensor:
        x = x0
        for i in range(steps):
            model()
            if stepping:
                x = hk.step(table, i, x, m, u)[0]
        return x

    def eager_loop() -> Tensor:
        x = x0
        for i in range(steps):
            model()
            x = torch_side.step(table_rows, i, x, m, u)()[0]
        return x

    table_rows = table.cpu()
    seconds, excess = {}, 0.0
    bare = d.seconds(d.captured(lambda: loop(False)), rounds=5, cold=False)
    with hk.backend("reference"):
        plain = loop(True)
    exact = x0.double()
    with hk.backend("reference"):
        for i in range(steps):
            exact = hk.step(table.double(), i, exact, m.double(), u.double())[0]
    for backend in backends_of(d, "step", Call((table, 0, x0, m, u))):
        with hk.backend(backend):
            excess = max(excess, excess_of(loop(True), plain, exact))
            seconds[backend] = d.seconds(d.captured(lambda: loop(True)), rounds=5, cold=False)
    anchors = {"model alone": bare, "eager loop": d.seconds(eager_loop, rounds=3, cold=False)}
    overhead = (min(seconds.values()) - bare) / steps
    note = f"eager: {1e6 * (anchors['eager loop'] - bare) / steps:.1f} us a step"
    return Measured({"us a step": 1e6 * overhead}, seconds, anchors, excess, note)


LEAST, MOST = (lambda f, b: Target(f, b)), (lambda f, b: Target(f, b, upper=True))
STREAMED = (LEAST("of copy", 0.9), LEAST("x torch.compile", 1.0), LEAST("x eager", 4.0))


def table() -> Sequence[Row]:
    """Most telling first: what comes late is skipped first when time runs out."""
    best = "torch's best attention kernel"
    both = "eager, torch.compile"
    rows = [
        *(Row(f"attention d128, 16 k tokens, {word}", best, (LEAST("x torch", 1.0),), attention_forward(128, causal))
          for word, causal in (("full", False), ("causal", True))),
        Row("decode paged GQA, 32 rows x 32 k", "copy bandwidth", (LEAST("of copy", 0.88),), paged_decode(32, 32768)),
        Row("decode paged GQA, 1 row x 128 k", "copy bandwidth", (LEAST("of copy", 0.88),), paged_decode(1, 131072)),
        Row("coupling float32", both, STREAMED, streaming("coupling", coupled(torch.float32)), compiles=True),
        Row("step, guided", both, STREAMED, streaming("step", guided_step), compiles=True),
        Row("norm layer, modulated", both, STREAMED, streaming("norm", layer_modulated), compiles=True),
        Row("50 steps of DDIM, one graph", "the model alone", (MOST("us a step", 5.0),), ddim_loop, cost=10),
        Row("sample 256 x 128 k", "softmax + sort", (LEAST("x softmax + sort", 10.0),), drawn_tokens),
        Row("int4 product 4096 to 28672, 1 row", "copy bandwidth", (LEAST("of copy", 0.75),), int4_product(28672)),
        *(Row(f"attention backward d128, {word}", best, (LEAST("x torch", 0.9),), attention_gradients(causal))
          for word, causal in (("full", False), ("causal", True))),
        *(Row(f"attention d64, 16 k tokens, {word}", best, (LEAST("x torch", 1.0),), attention_forward(64, causal),
              quick=False) for word, causal in (("full", False), ("causal", True))),
        *(Row(f"attention d128, {kind} mask", "our own without", (MOST("x unmasked time", 1.2),),
              attention_masked(kind)) for kind in ("bool", "additive")),
        Row("int4 product 4096 to 4096, 1 row", "copy bandwidth", (LEAST("of copy", 0.75),), int4_product(4096), False),
        Row("norm rms", both, STREAMED, streaming("norm", rms), False, compiles=True),
        Row("norm group + SiLU", both, STREAMED, streaming("norm", group_silu), False, compiles=True),
        Row("coupling bfloat16", both, STREAMED, streaming("coupling", coupled(BF16)), False, compiles=True),
        Row("coupling float32, inverse", both, STREAMED, streaming("coupling", coupled(torch.float32, True)), False,
            compiles=True),
        Row("coupling backward", both, STREAMED, streaming("coupling_backward", coupled_backward), False,
            compiles=True),
    ]  # fmt: skip
    return rows
