"""step beyond the promises: known samplers come out of the table, and its errors are clear."""

import math

import pytest
import torch

import hexad_kernels
from hexad_kernels import step

X, M, P, H1, H2, H3, LAST, Z = range(8)
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
AT, TO = ABAR[600].item(), ABAR[550].item()


def normal(seed, shape=(2, 3, 5, 7)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(head, *rows):
    t = torch.zeros(3, 4, 8, dtype=torch.float64)
    t[1, 0, :4] = torch.tensor(head, dtype=torch.float64)
    for k, row in enumerate(rows):
        for column, value in row.items():
            t[1, 1 + k, column] = value
    return t


def run(t, *tensors, **named):
    """In float32 by the kernel."""

    def cast(v):
        return v.float() if isinstance(v, torch.Tensor) else tuple(map(cast, v)) if isinstance(v, tuple) else v

    with hexad_kernels.backend("cpu"):
        return step(cast(t), 1, *map(cast, tensors), **{k: cast(v) for k, v in named.items()})


def close(got, want):
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=2e-6)


def test_guided_clipped_ddim():
    x, cond, uncond = normal(0), normal(1), normal(2)
    eps = uncond + 3.5 * (cond - uncond)
    clean = ((x - math.sqrt(1 - AT) * eps) / math.sqrt(AT)).clamp(-1, 1)
    eps = (x - math.sqrt(AT) * clean) / math.sqrt(1 - AT)
    want = math.sqrt(TO) * clean + math.sqrt(1 - TO) * eps
    ratio = math.sqrt((1 - TO) / (1 - AT))
    t = table(
        [1 / math.sqrt(AT), -math.sqrt(1 / AT - 1), 1.0, 3.5],
        {X: ratio, P: math.sqrt(TO) - ratio * math.sqrt(AT)},
    )
    close(run(t, x, cond, uncond)[0], want)


def test_ddpm():
    x, eps, noise = normal(0), normal(1), normal(2)
    beta = 1 - AT / TO
    clean = ((x - math.sqrt(1 - AT) * eps) / math.sqrt(AT)).clamp(-1, 1)
    mean = math.sqrt(TO) * beta / (1 - AT) * clean + math.sqrt(1 - beta) * (1 - TO) / (1 - AT) * x
    sigma = math.sqrt((1 - TO) / (1 - AT) * beta)
    t = table(
        [1 / math.sqrt(AT), -math.sqrt(1 / AT - 1), 1.0, 1.0],
        {X: math.sqrt(1 - beta) * (1 - TO) / (1 - AT), P: math.sqrt(TO) * beta / (1 - AT), Z: sigma},
    )
    close(run(t, x, eps, noise=noise)[0], mean + sigma * noise)


def test_euler_and_the_models_next_input():
    x, eps = 9 * normal(0), normal(1)
    sigma, following = 9.0, 6.5
    want = x + (following - sigma) * eps
    r = (following - sigma) / sigma
    scale = 1 / math.sqrt(following**2 + 1)
    t = table([1.0, -sigma, math.inf, 1.0], {X: 1 + r, P: -r}, {X: scale * (1 + r), P: -scale * r})
    state, seen = run(t, x, eps, outputs=2)
    close(state, want)
    close(seen, want / math.sqrt(following**2 + 1))


def test_dpm_solver_2m():
    x, eps, before = normal(0), normal(1), normal(2)

    def lam(abar):
        return 0.5 * math.log(abar / (1 - abar))

    h, h_before = lam(TO) - lam(AT), lam(AT) - lam(ABAR[650].item())
    clean = (x - math.sqrt(1 - AT) * eps) / math.sqrt(AT)
    slope = (clean - before) / (h_before / h)
    k = math.sqrt(TO) * -math.expm1(-h)
    want = math.sqrt((1 - TO) / (1 - AT)) * x + k * clean + 0.5 * k * slope
    t = table(
        [1 / math.sqrt(AT), -math.sqrt(1 / AT - 1), math.inf, 1.0],
        {X: math.sqrt((1 - TO) / (1 - AT)), P: k * (1 + h / (2 * h_before)), H1: -k * h / (2 * h_before)},
        {P: 1.0},
    )
    state, kept = run(t, x, eps, history=(before,), outputs=2)
    close(state, want)
    close(kept, clean)


def test_heun_second_stage_reads_the_saved_state():
    x, eps, slope, saved = normal(0), normal(1), normal(2), normal(3)
    sigma, following = 3.0, 2.0
    t = table(
        [1.0, -following, math.inf, 1.0],
        {
            LAST: 1.0,
            H1: (following - sigma) / 2,
            X: (following - sigma) / (2 * following),
            P: -(following - sigma) / (2 * following),
        },
    )
    close(run(t, x, eps, history=(slope,), last=saved)[0], saved + (following - sigma) / 2 * (slope + eps))


def test_bfloat16_model_output():
    x, cond, uncond = normal(0), normal(1).bfloat16(), normal(2).bfloat16()
    t = table([1.1, -0.6, 0.9, 2.0], {X: 0.5, P: 0.75})
    with hexad_kernels.backend("cpu"):
        (got,) = step(t.float(), 1, x.float(), cond, uncond)
    want = run(t, x, cond.double(), uncond.double())[0]
    assert torch.equal(got, want)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_inputs_without_a_coefficient_do_not_matter(backend):
    x, eps, junk = normal(0).float(), normal(1).float(), torch.full((2, 3, 5, 7), math.nan)
    t = table([0.0, 1.0, math.inf, 1.0], {P: 0.5}).float()
    with hexad_kernels.backend(backend):
        plain = step(t, 1, x, eps)[0]
        assert torch.equal(step(t, 1, junk, eps, history=(junk, junk, junk), last=junk, noise=junk)[0], plain)
        assert plain.isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nan_and_inf_pass_where_they_count(backend):
    x = torch.tensor([math.nan, math.inf, -math.inf, 2.0])
    t = table([1.0, 0.0, 1.0, 1.0], {P: 1.0}).float()
    with hexad_kernels.backend(backend):
        (y,) = step(t, 1, x, torch.zeros(4))
    assert y[0].isnan()
    assert y[1:].tolist() == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("column", "name"), [(H1, "history[0]"), (H2, "history[1]"), (H3, "history[2]"), (LAST, "last"), (Z, "noise")]
)
def test_an_absent_input_with_a_coefficient(backend, column, name):
    x = torch.zeros(2, 3)
    t = table([1.0, 0.0, 1.0, 1.0], {P: 1.0}, {P: 1.0, column: 0.5}).float()
    with hexad_kernels.backend(backend):
        step(t, 1, x, x)
        with pytest.raises(ValueError) as caught:
            step(t, 1, x, x, outputs=2)
    assert f"{name}: missing, but output 1 of this step takes it times 0.5" in str(caught.value)


def test_gradients():
    t, x, output = table([1.0, -0.5, math.inf, 1.0], {X: 0.5, P: 0.5}).float(), torch.ones(3), torch.ones(3)
    output.requires_grad_()
    with pytest.raises(RuntimeError, match="step: has no gradient"):
        step(t, 1, x, output)[0].sum().backward()
    with torch.no_grad():
        plain = step(t, 1, x, output)[0]
    with hexad_kernels.backend("reference"):
        (y,) = step(t, 1, x, output)
    assert torch.equal(y, plain)
    assert torch.autograd.grad(y.sum(), output)[0].tolist() == [-0.25] * 3


def test_compiles_without_graph_breaks():
    t = table([1.1, -0.6, 0.9, 2.0], {X: 0.5, H1: 0.75}, {P: 1.0}).float()
    x, output, before = normal(0).float(), normal(1).float(), normal(2).float()

    def update(*a):
        return sum(step(t, 1, *a, history=(before,), outputs=2)) + 1

    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, output), update(x, output))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [1.0]}, TypeError, "x: got list, wants a torch.Tensor"),
        ({"x": torch.zeros(2, 3, dtype=torch.bfloat16)}, TypeError, "x: got bfloat16, wants float32 or float64"),
        ({"table": torch.zeros(3, 4, 10)}, ValueError, "table: got shape (3, 4, 10), wants (any, 4, 8)"),
        ({"table": torch.zeros(3, 4, 8).double()}, TypeError, "table: got float64, wants x's float32"),
        ({"index": 3}, ValueError, "index: got 3, wants 0 to 2"),
        ({"index": -1}, ValueError, "index: got -1"),
        ({"outputs": 0}, ValueError, "outputs: got 0, wants 1, 2 or 3"),
        ({"outputs": 4}, ValueError, "outputs: got 4"),
        ({"model_output": torch.zeros(2, 6)}, ValueError, "model_output: got shape (2, 6), wants (2, 3)"),
        ({"model_output": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "model_output: got int64"),
        ({"model_output": torch.zeros(2, 3, device="meta")}, ValueError, "model_output: is on meta"),
        ({"uncond": torch.zeros(2, 3).bfloat16()}, TypeError, "uncond: got bfloat16, wants model_output's float32"),
        ({"noise": torch.zeros(3)}, ValueError, "noise: got shape (3,), wants (2, 3)"),
        ({"history": (torch.zeros(2, 3).double(),)}, TypeError, "history[0]: got float64, wants x's float32"),
        ({"history": [torch.zeros(2, 3)] * 4}, ValueError, "history: got 4 tensors"),
        ({"history": torch.zeros(2, 3)}, TypeError, "history: got"),
        ({"last": 1.0}, TypeError, "last: got float"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change, error, text):
    arguments = {"table": torch.zeros(3, 4, 8), "index": 0, "x": torch.zeros(2, 3), "model_output": torch.zeros(2, 3)}
    with pytest.raises(error) as caught:
        step(**arguments | change)
    assert text in str(caught.value)


def test_an_index_in_a_tensor_and_seeds_in_place_of_noise():
    table = torch.zeros(3, 4, 8)
    table[:, 1, 0], table[:, 1, 7] = 1.0, torch.tensor([0.0, 0.5, 2.0])
    x, seeds = torch.randn(2, 3, 5), torch.tensor([7, -9])
    for index in range(3):
        noise = hexad_kernels.randn(seeds, (3, 5), offset=index + 1)
        (wanted,) = step(table, index, x, x, noise=noise)
        for place in (index, torch.tensor(index), torch.tensor([index], dtype=torch.int32)):
            for backend in ("cpu", "reference"):
                with hexad_kernels.backend(backend):
                    torch.testing.assert_close(step(table, place, x, x, seeds=seeds)[0], wanted, rtol=1e-6, atol=1e-6)
        assert torch.equal(step(table, torch.tensor(index), x, x, seeds=seeds)[0], wanted)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"index": torch.tensor(3)}, ValueError, "index: got 3, wants 0 to 2"),
        ({"index": torch.tensor([0, 1])}, ValueError, "index: got shape (2,), wants one number"),
        ({"index": torch.tensor(0.0)}, TypeError, "index: got float32"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, ValueError, "seeds: got shape (3,), wants (2)"),
        ({"seeds": torch.zeros(2, dtype=torch.int32)}, TypeError, "seeds: got int32"),
        ({"seeds": torch.zeros(2, dtype=torch.int64), "noise": torch.zeros(2, 4)}, ValueError, "both seeds and noise"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_index_and_seeds(change, error, text):
    given = {"table": torch.zeros(3, 4, 8), "index": 0, "x": torch.zeros(2, 4), "model_output": torch.zeros(2, 4)}
    with pytest.raises(error) as caught:
        step(**(given | change))
    assert text in str(caught.value)
