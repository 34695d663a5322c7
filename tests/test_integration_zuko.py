"""zuko: the host's flow against the converted one, on the same weights; float64 and float32."""

from functools import partial

import pytest
import torch

from hexad.integrations.flows import UnknownLayer

zuko = pytest.importorskip("zuko", reason="needs zuko: pip install hexad[flows]")

from zuko.lazy import UnconditionalTransform  # noqa: E402

from hexad.integrations.zuko import convert  # noqa: E402

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
pytestmark = pytest.mark.filterwarnings("ignore:hexad ")  # float64 is served by the reference, which says so once


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def close(got, want, dtype):
    bound = TOLERANCE[dtype]
    torch.testing.assert_close(got, want, rtol=bound, atol=bound * max(1.0, want.abs().max().item()))


def randomised(flow, dtype):
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return flow.to(dtype)


@torch.no_grad()
def both(flow, dtype, context=0, batch=(6,)):
    """log_prob, sample, rsample_and_log_prob, and the transform both ways."""
    flow = randomised(flow, dtype)
    ours = convert(flow)
    features = flow.base().event_shape[0]
    c = torch.randn(*batch, context, dtype=dtype) if context else None
    x = torch.randn(*batch, features, dtype=dtype)
    close(ours(c).log_prob(x), flow(c).log_prob(x), dtype)
    for call in ("sample", "rsample_and_log_prob"):
        results = []
        for f in (ours, flow):
            torch.manual_seed(3)
            made = getattr(f(c), call)((5,))
            results.append(made if isinstance(made, tuple) else (made,))
        for got, want in zip(*results):
            close(got, want, dtype)
    there, back = (f(c).transform for f in (ours, flow))
    for got, want in zip(there.call_and_ladj(x), back.call_and_ladj(x)):
        close(got, want, dtype)
    for got, want in zip(there.inv.call_and_ladj(x), back.inv.call_and_ladj(x)):
        close(got, want, dtype)
    close(there.inv(there(x)), x, dtype)
    return ours


@dtypes
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("randmask", [False, True])
@pytest.mark.parametrize("features", [2, 5, 8])
def test_real_nvp(features, randmask, context, dtype):
    flow = zuko.flows.RealNVP(features, context, transforms=3, randmask=randmask, hidden_features=(16, 16))
    ours = both(flow, dtype, context)
    assert [type(t).__name__ for t in ours.transform.transforms] == ["Coupling"] * 3


@dtypes
@pytest.mark.parametrize("univariate", ["additive", "slope"])
def test_univariates(univariate, dtype):
    additive = {"univariate": zuko.transforms.AdditiveTransform, "shapes": [()]}
    gentle = {"univariate": partial(zuko.transforms.MonotonicAffineTransform, slope=0.05)}
    options = additive if univariate == "additive" else gentle
    both(zuko.flows.NICE(6, 2, hidden_features=(16,), **options), dtype, 2)
    both(zuko.flows.MAF(6, 2, hidden_features=(16,), **options), dtype, 2)


@dtypes
@pytest.mark.parametrize(("context", "passes", "randperm"), [(0, None, False), (3, None, True), (2, 2, False)])
def test_masked_autoregressive_flows(context, passes, randperm, dtype):
    options = {"passes": passes, "randperm": randperm, "hidden_features": (16, 16), "residual": True}
    ours = both(zuko.flows.MAF(5, context, transforms=2, **options), dtype, context)
    names = {type(m).__name__ for m in ours.modules()}
    assert "MaskedLinear" not in names and "Autoregressive" in names


@dtypes
def test_fixed_maps_are_folded(dtype):
    t, flows = zuko.transforms, zuko.flows
    lu = torch.randn(4, 4) * 0.2 + 2 * torch.eye(4)
    layers = [
        flows.GeneralCouplingTransform(4, hidden_features=(8,)),
        UnconditionalTransform(t.RotationTransform, torch.randn(4, 4)),
        UnconditionalTransform(t.LULinearTransform, lu),
        UnconditionalTransform(t.PermutationTransform, torch.tensor([2, 0, 3, 1]), buffer=True),
        UnconditionalTransform(t.RotationTransform, torch.randn(4, 4)),
        flows.ElementWiseTransform(4),
        UnconditionalTransform(t.SoftclipTransform, bound=50.0),
    ]
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(4), torch.ones(4), buffer=True
    )
    flow = zuko.lazy.Flow(layers, base)
    randomised(flow, dtype)
    ours = convert(flow)
    kinds = [type(part).__name__ for part in ours.transform.transforms]
    assert kinds == [
        "Coupling", "Fixed", "UnconditionalTransform", "Fixed", "ElementWiseTransform", "UnconditionalTransform",
    ]  # fmt: skip
    x = torch.randn(7, 4, dtype=dtype)
    with torch.no_grad():
        close(ours().log_prob(x), flow().log_prob(x), dtype)
        torch.manual_seed(1)
        z = ours().sample((6,))
        torch.manual_seed(1)
        close(z, flow().sample((6,)), dtype)


@dtypes
def test_batches_of_any_shape(dtype):
    flow = zuko.flows.RealNVP(4, 2, hidden_features=(8,))
    both(flow, dtype, 2, batch=(2, 3))
    both(flow, dtype, 2, batch=())
    lone = convert(flow)
    with torch.no_grad():
        c, x = torch.randn(2, dtype=dtype), torch.randn(5, 4, dtype=dtype)  # one context for all
        close(lone(c).log_prob(x), flow(c).log_prob(x), dtype)


def test_a_single_transform_and_its_gradients():
    layer = randomised(zuko.flows.GeneralCouplingTransform(4, hidden_features=(8,)), torch.float32)
    ours, x = convert(layer), torch.randn(3, 4, requires_grad=True)
    (want,) = torch.autograd.grad(layer()(x).sum(), x)
    (got,) = torch.autograd.grad(ours()(x).sum(), x)
    close(got, want, torch.float32)


def test_the_hosts_flow_stays_as_it_is():
    flow = zuko.flows.MAF(4, hidden_features=(8,))
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    convert(flow)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    assert all(p.requires_grad for p in flow.parameters())


def test_others_are_refused_by_name_and_place():
    cases = {
        r"transform\.0: .*MaskedAutoregressiveTransform: univariate MonotonicRQSTransform": zuko.flows.NSF(3),
        r"transform\.0: .*ElementWiseTransform: univariate GaussianizationTransform": zuko.flows.GF(3),
        r"transform: .*FFJTransform: hexad does not know": zuko.flows.CNF(3),
        r"wants a zuko Flow": torch.nn.Linear(2, 2),
    }
    for text, flow in cases.items():
        with pytest.raises(UnknownLayer, match=text):
            convert(flow)
    exp = UnconditionalTransform(torch.distributions.transforms.ExpTransform)
    with pytest.raises(UnknownLayer, match="ExpTransform"):
        convert(zuko.lazy.LazyComposedTransform(exp))
