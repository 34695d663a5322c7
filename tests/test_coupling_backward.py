"""coupling_backward beyond the promises: it is coupling's gradient, and its errors are clear."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import coupling, coupling_backward
from hexad_kernels.coupling import checkerboard
from tests.cases import build, cases

CASES = [case for case in cases()["coupling_backward"] if not case.bench_only and case.batch]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_the_gradient_of_coupling(case):
    call = build(case, torch.float64)
    options = dict(call.kwargs)
    from_input = options.pop("from_input", False)
    grad_y, grad_log_det, value, *params = call.args
    with hexad_kernels.backend("reference"):
        undo = options | {"inverse": not options.get("inverse", False)}
        x = value if from_input else coupling(value, *params, **undo)[0]
        leaves = [t.detach().requires_grad_() for t in (x, *params)]
        y, log_det = coupling(*leaves, **options)
        total = sum((o * g).sum() for o, g in ((y, grad_y), (log_det, grad_log_det)) if g is not None)
        wanted = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        found = coupling_backward(*call.args, **call.kwargs)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_passive_parameters_get_zero_whatever_they_hold():
    x, shift, log_scale = (torch.randn(2, 3, 4, 6) for _ in range(3))
    passive = checkerboard(x, False).bool().logical_not().expand_as(x)
    shift, log_scale = (t.masked_fill(passive, float("nan")) for t in (shift, log_scale))
    grad_x, grad_shift, grad_scale = coupling_backward(x, torch.ones(2), x, shift, log_scale, split="checkerboard")
    assert torch.equal(grad_x[passive], x[passive])
    assert not grad_shift[passive].any() and not grad_scale[passive].any()
    assert grad_shift.isfinite().all() and grad_scale.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"value": torch.zeros(3)}, ValueError, "value: got shape (3,)"),
        ({"grad_y": torch.zeros(2, 4, 3)}, ValueError, "grad_y: got shape (2, 4, 3), wants (2, 4, 5)"),
        ({"grad_log_det": torch.zeros(3)}, ValueError, "grad_log_det: got shape (3,), wants (2)"),
        ({"grad_log_det": torch.zeros(2).double()}, TypeError, "grad_log_det: got float64, wants float32"),
        ({"shift": torch.zeros(2, 4, 5)}, ValueError, "shift: got shape (2, 4, 5), wants (2, 2, 5)"),
        ({"scale_map": "tanh", "clamp": -1.0}, ValueError, "clamp: got -1.0"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change, error, text):
    half = torch.zeros(2, 2, 5)
    given = {"grad_y": torch.zeros(2, 4, 5), "grad_log_det": torch.zeros(2), "value": torch.zeros(2, 4, 5)}
    with pytest.raises(error) as caught:
        coupling_backward(**(given | {"shift": half, "log_scale": half} | change))
    assert text in str(caught.value)
