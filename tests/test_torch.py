"""hexad's ops as plain torch has them: functional gradients, vmap, autocast, export, packages, CUDA graphs."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

import hexad_kernels as hk
from hexad_kernels import OPS
from tests import promises
from tests.cases import build, cases

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:hexad .*reference serves")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def same(got, want, tolerance=1e-4):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# Functional gradients

LOSSES = {
    "linear": lambda x: hk.linear(x, x.flatten(1)[:4, :3].contiguous(), activation="silu").pow(2).sum(),
    "norm": lambda x: hk.norm(x, kind="rms", scale=x[:, 0, 0], shift=x[:, 1, 1]).sin().sum(),
    "attention": lambda x: hk.attention(x, 2 * x, x.sin(), causal=True).pow(2).sum(),
    "coupling": lambda x: hk.coupling(x, x[:, :1], x[:, 1:].sin())[0].pow(2).sum(),
    "rope": lambda x: hk.rope(x[..., :2], torch.linspace(0, 1, 5)[:, None], torch.ones(5, 1)).pow(2).sum(),
    "invconv": lambda x: hk.invconv(x, x.flatten(1)[:2, :2].contiguous()).pow(2).sum(),
    "maskedconv": lambda x: hk.maskedconv(x, x[:2, :2, :3, :3].contiguous()).pow(2).sum(),
    "winograd": lambda x: hk.winograd(x, hk.pack_winograd(x[:2, :2, :3, :3]), outputs=2).pow(2).sum(),
}


def by_reference(function, *args):
    with hk.backend("reference"):
        return function(*args)


@pytest.mark.parametrize("name", LOSSES)
def test_functional_gradients(name):
    x, loss = torch.randn(3, 2, 5, 3), LOSSES[name]
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(loss(leaf), leaf)
    same(grad(loss)(x), plain)
    same(by_reference(grad(loss), x), plain)
    value, pull = vjp(loss, x)
    same(value, loss(x))
    same(pull(torch.tensor(2.0))[0], 2 * plain)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_gradients(name):
    x, loss = torch.randn(3, 2, 5, 3), LOSSES[name]

    def slope(x):
        return grad(loss)(x).pow(2).sum()

    same(grad(slope)(x), by_reference(grad(slope), x), 1e-3)


def test_jacobian_and_hessian():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    jacobian = jacrev(lambda x: hk.linear(x, weight, activation="tanh"))(x)
    same(jacobian, jacrev(lambda x: torch.tanh(x @ weight.T))(x))
    double = x.double()
    reverse = jacrev(jacrev(lambda x: hk.linear(x, weight.double(), activation="tanh").sum()))(double)
    same(reverse, hessian(lambda x: torch.tanh(x @ weight.double().T).sum())(double), 1e-6)


def test_forward_mode_is_refused_and_the_reference_has_it():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)

    def call(x):
        return hk.linear(x, weight, activation="relu")

    with pytest.raises(NotImplementedError, match=r'linear: has no forward-mode derivative.*backend\("reference"\)'):
        jvp(call, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            call(dual)
    value, tangent = by_reference(jvp, call, (x,), (x,))
    same(tangent, value)  # relu is homogeneous


def test_an_op_without_gradients_refuses_forward_mode_too():
    table = torch.zeros(1, 4, 8)
    with pytest.raises(NotImplementedError, match="step: has no forward-mode"):
        jvp(lambda x: hk.step(table, 0, x, x)[0], (torch.ones(3),), (torch.ones(3),))


def test_asking_an_op_for_gradients_that_it_has_not_is_an_error():
    x = torch.randn(3, 8, requires_grad=True)
    quantized, index = hk.vq(x, torch.randn(4, 8))
    assert not index.requires_grad
    (x + (quantized - x).detach()).sum().backward()
    with pytest.raises(RuntimeError, match="vq: has no gradient"):
        quantized.sum().backward()


# vmap


def every_case():
    for name in sorted(OPS):
        small = [case for case in cases()[name] if case.small and torch.float32 in case.dtypes]
        yield from ((name, case) for case in small[:6])


def flat_call(name, case):
    call = build(case, torch.float32)
    return OPS[name], list(promises.flat_arguments(name, call))


@pytest.mark.parametrize(("name", "case"), list(every_case()), ids=lambda value: getattr(value, "name", str(value)))
def test_vmap_over_the_batch_equals_call_by_call(name, case):
    """Three calls whose batched arguments differ, as one."""
    op, args = flat_call(name, case)
    tensors = {i for i, a in enumerate(args) if isinstance(a, torch.Tensor)}
    if op.mutates:
        with pytest.raises(NotImplementedError, match=f"{name}: writes in place"):
            vmap(lambda t: op(t, *args[1:]))(args[0].unsqueeze(0))
        return
    mapped = sorted(tensors & set(op.batch(*args) if op.batch else {min(tensors)}))
    stacked = [
        torch.stack([args[i]] * 3, 1) * (torch.tensor([1.0, 0.5, 0.25]).view(1, 3, *[1] * (args[i].ndim - 1)))
        if args[i].is_floating_point() and args[i].ndim
        else torch.stack([args[i]] * 3, 1)
        for i in mapped
    ]

    def one(*given):
        full = list(args)
        for i, value in zip(mapped, given):
            full[i] = value
        return op(*full)

    def listed(outputs):
        return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = listed(vmap(one, in_dims=1)(*stacked))
        apart = [listed(one(*(s.select(1, k) for s in stacked))) for k in range(3)]
    for o, whole in enumerate(together):
        same(whole, torch.stack([outputs[o] for outputs in apart]))


@pytest.mark.parametrize("shared", ["k", "q", "mask", "none"])
def test_vmap_of_attention_shares_what_is_not_mapped(shared):
    q, k, mask = torch.randn(3, 2, 4, 5, 8), torch.randn(3, 2, 2, 6, 8), torch.rand(3, 1, 1, 5, 6) < 0.7
    dims = {"q": 0, "k": 0, "mask": 0} | ({} if shared == "none" else {shared: None})
    given = [t if dims[n] == 0 else t[0] for n, t in (("q", q), ("k", k), ("mask", mask))]

    def one(q, k, mask):
        return hk.attention(q, k, k, mask=mask)

    want = torch.stack([one(*(t[i] if d == 0 else t for t, d in zip(given, dims.values()))) for i in range(3)])
    same(vmap(one, in_dims=tuple(dims.values()))(*given), want)


def test_vmap_of_single_rows():
    x, weight = torch.randn(5, 8), torch.randn(4, 8)
    same(vmap(lambda row: hk.linear(row, weight))(x), x @ weight.T)
    same(vmap(lambda row: hk.norm(row))(x), torch.nn.functional.layer_norm(x, (8,)))
    same(vmap(vmap(lambda row: hk.linear(row, weight)))(x[None]), (x @ weight.T)[None])


def test_vmap_over_a_weight_runs_call_by_call_and_says_so_once():
    x, weights = torch.randn(5, 8), torch.randn(3, 4, 8)
    OPS["linear"]._warned.clear()
    with pytest.warns(UserWarning, match="linear: vmap over weight runs call by call"):
        got = vmap(lambda w: hk.linear(x, w))(weights)
    same(got, torch.stack([x @ w.T for w in weights]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vmap(lambda w: hk.linear(x, w))(weights)


def test_gradients_of_each_sample():
    net = {"weight": torch.randn(4, 8), "bias": torch.randn(4)}
    x = torch.randn(5, 8)

    def loss(net, row):
        return hk.linear(row, net["weight"], net["bias"], activation="gelu").pow(2).sum()

    def theirs(net, row):
        return torch.nn.functional.gelu(row @ net["weight"].T + net["bias"]).pow(2).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = vmap(grad(loss), in_dims=(None, 0))(net, x)
    want = vmap(grad(theirs), in_dims=(None, 0))(net, x)
    for name in net:
        same(got[name], want[name])


def test_gradients_of_each_sample_of_attention_are_folded():
    q, k = torch.randn(3, 2, 4, 5, 8), torch.randn(3, 2, 2, 6, 8)

    def loss(q, k):
        return hk.attention(q, k, k).pow(2).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = vmap(grad(loss, argnums=(0, 1)))(q, k)
    for i in range(3):
        for g, w in zip(got, grad(loss, argnums=(0, 1))(q[i], k[i])):
            same(g[i], w)


def test_gradients_of_inputs_where_parameters_want_theirs_too():
    layer, x = nn.Linear(8, 4), torch.randn(5, 8)

    def loss(row):
        return hk.linear(row, layer.weight, layer.bias, activation="gelu").pow(2).sum()

    def theirs(row):
        return torch.nn.functional.gelu(layer(row)).pow(2).sum()

    same(vmap(grad(loss))(x), vmap(grad(theirs))(x))
    grad(loss)(x[0]).sum().backward()
    got, layer.weight.grad = layer.weight.grad, None
    grad(theirs)(x[0]).sum().backward()
    same(got, layer.weight.grad)


def test_an_ensemble_by_functional_call():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return hk.norm(x + hk.linear(x, self.weight, activation="silu"))

    block, x = Block(), torch.randn(5, 8)
    stacked = {"weight": torch.randn(3, 8, 8)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = vmap(lambda p: functional_call(block, p, (x,)))(stacked)
    for i in range(3):
        same(got[i], functional_call(block, {"weight": stacked["weight"][i]}, (x,)))


# Autocast

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


@pytest.mark.parametrize("lane", ["eager", "op", "compiled", "graded", "reference"])
def test_autocast_casts_the_tensors_of_a_product(lane):
    x, weight, bias = torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)

    def call():
        with torch.autocast("cpu", BF16):
            if lane == "op":
                return torch.ops.hexad.linear(x, weight, bias, 0, None)
            if lane == "compiled":
                torch._dynamo.reset()
                return torch.compile(hk.linear, fullgraph=True, backend="aot_eager")(x, weight, bias)
            if lane == "reference":
                with hk.backend("reference"):
                    return hk.linear(x, weight, bias)
            return hk.linear(x, weight.requires_grad_() if lane == "graded" else weight, bias)

    got = call()
    assert got.dtype == BF16
    want = hk.linear(x.bfloat16(), weight.detach().bfloat16(), bias.bfloat16())
    same(got, want, 0 if lane != "reference" else 1e-2)
    if lane == "graded":
        got.sum().backward()
        assert weight.grad.dtype == F32


def test_autocast_of_attention_and_of_mixed_dtypes():
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    x, shift = torch.randn(2, 4, 3), torch.randn(2, 2, 3, dtype=BF16)
    weight = torch.randn(8)
    sinks = torch.randn(2)
    with torch.autocast("cpu", BF16):
        assert hk.attention(q, k.bfloat16(), k, sinks=sinks).dtype == BF16
        assert hk.coupling(x, shift, shift)[0].dtype == F32  # the widest of its tensors
        assert hk.norm(q.bfloat16(), weight).dtype == F32
        assert hk.norm(q.bfloat16(), weight.bfloat16()).dtype == BF16
        assert hk.linear(q.double(), weight.double().expand(5, 8)).dtype == F64  # float64 stays
        with pytest.raises(TypeError, match="out_b: got float32, wants out_a's bfloat16"):
            hk.merge_attention(q.bfloat16(), q[..., 0], q, q[..., 0])
    with pytest.raises(TypeError, match="k: got bfloat16, wants q's float32"):
        hk.attention(q, k.bfloat16(), k)


def test_autocast_ends_at_the_op():
    """The reference of an op is not cast inside: float32 sums stay float32."""
    x, codebook = torch.randn(50, 8), torch.randn(9, 8)
    plain = hk.vq(x, codebook)[1]
    with torch.autocast("cpu", BF16):
        assert torch.equal(hk.vq(x, codebook)[1], plain)
        with hk.backend("reference"):
            y = hk.norm(x, torch.randn(8))
    assert y.dtype == F32


# Export and packages


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Parameter(torch.randn(48, 16) / 4), nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x):
        h = hk.norm(x, kind="rms")
        q, k, v = hk.linear(h, self.qkv).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = hk.attention(q, k, v, causal=True).transpose(1, 2).flatten(2)
        return hk.linear(mixed, self.out, activation="gelu", residual=x)


def exported():
    model, x = Net().eval(), torch.randn(3, 7, 16)
    batch, rows = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("rows", min=2, max=64)
    with torch.no_grad():
        return model, x, torch.export.export(model, (x,), dynamic_shapes=({0: batch, 1: rows},))


def elsewhere(code, folder):
    """What the code prints in a process of its own."""
    path = os.pathsep.join([str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_export_keeps_one_node_an_op():
    model, x, program = exported()
    calls = [str(node.target) for node in program.graph.nodes if "hexad" in str(node.target)]
    assert calls == ["hexad.norm.default", "hexad.linear.default", "hexad.attention.default", "hexad.linear.default"]
    other = torch.randn(5, 4, 16)
    with torch.no_grad():
        for given in (x, other):
            same(program.module()(given), model(given), 0)
            same(program.run_decompositions().module()(given), model(given), 0)


def test_a_saved_program_loads_in_another_process(tmp_path):
    model, x, program = exported()
    torch.export.save(program, tmp_path / "net.pt2")
    with torch.no_grad():
        torch.save((x, model(x)), tmp_path / "pair.pt")
    code = (
        "import torch, hexad_kernels; x, want = torch.load('pair.pt')\n"
        "got = torch.export.load('net.pt2').module()(x)\nprint((got - want).abs().max().item())"
    )
    assert float(elsewhere(code, tmp_path)) == 0


def test_an_aotinductor_package_is_built_loaded_and_run(tmp_path):
    """The compiled package calls the op through torch's dispatcher, so its process imports hexad_kernels."""
    model, x, program = exported()
    once = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
    made = str(tmp_path / "net.pt2")
    path = torch._inductor.aoti_compile_and_package(program, package_path=made, inductor_configs=once)
    other = torch.randn(5, 4, 16)
    with torch.no_grad():
        torch.save([(given, model(given)) for given in (x, other)], tmp_path / "pairs.pt")
    code = f"""
import torch, hexad_kernels
run = torch._inductor.aoti_load_package({path!r})
calls, op = [], hexad_kernels.OPS["attention"]
native, op.native = op.native, lambda *a: (calls.append(1), native(*a))
print(max((run(x) - want).abs().max().item() for x, want in torch.load("pairs.pt")), len(calls))
"""
    worst, calls = elsewhere(code, tmp_path).split()
    assert float(worst) < 1e-5 and calls == "2"


def test_compile_by_inductor_with_gradients():
    model, x = Net(), torch.randn(3, 7, 16)
    model(x).pow(2).sum().backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    compiled(x).pow(2).sum().backward()
    for name, p in model.named_parameters():
        same(p.grad, want[name])


def test_compiled_functional_gradients():
    x, weight = torch.randn(5, 8), torch.randn(4, 8)

    def slope(x):
        return grad(lambda x: hk.linear(x, weight, activation="silu").pow(2).sum())(x)

    torch._dynamo.reset()
    same(torch.compile(slope, fullgraph=True, backend="aot_eager")(x), slope(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_cuda_graph_replays_an_op():
    q = torch.randn(2, 4, 64, 64, device="cuda", dtype=BF16)
    x, t = torch.randn(8, 64, device="cuda"), torch.randn(8, 32, device="cuda")

    def call():
        return hk.attention(q, q, q, causal=True), hk.coupling(x, t, t)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    q.normal_()
    x.normal_()
    graph.replay()
    for got, want in zip(captured, call()):
        assert torch.equal(got, want)
