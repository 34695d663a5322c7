"""Flow libraries: the host's model against the converted one, on the same weights; float64 and float32."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hexad.integrations import flows

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
pytestmark = pytest.mark.filterwarnings("ignore:hexad ")  # float64 is served by the reference, which says so once


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # FrEIA's permutations


def randomise(model, size=0.2):
    """Weights away from the identity that flows start from; permutations and masks stay."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn_like(p))
    return model


def close(got, want, dtype):
    bound = TOLERANCE[dtype]
    want = torch.as_tensor(want, dtype=dtype).expand_as(got)  # FrEIA: a volume-preserving block's Jacobian is 0.0
    # Relative to the size of a log-probability over many dimensions.
    torch.testing.assert_close(got, want, rtol=bound, atol=bound * max(1.0, want.abs().max().item()))


def test_probe_reads_an_affine_map():
    weight, bias = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    read = flows.probe(lambda x: (x @ weight.T + bias, torch.tensor(0.3)), 3)
    torch.testing.assert_close(read.weight, weight)
    torch.testing.assert_close(read.bias, bias)
    both = read.then(flows.Map(torch.eye(3).double() * 2, torch.ones(3).double(), torch.tensor(1.0)))
    x = torch.randn(5, 3, dtype=torch.float64)
    y, log_det = flows.Affine(both, torch.float64)(x)
    torch.testing.assert_close(y, 2 * (x @ weight.T + bias) + 1)
    torch.testing.assert_close(log_det, torch.full((5,), 1.3, dtype=torch.float64))
    torch.testing.assert_close(flows.Affine(both, torch.float64).inverse(y)[0], x)


@pytest.mark.parametrize(
    "mask", [[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]]
)
def test_parts_move_exactly_the_active_channels(mask):
    active = torch.tensor(mask).bool()
    parts = flows.Parts(active)
    x, shift, log_scale = torch.randn(3, len(mask), 2), torch.randn(3, sum(mask), 2), torch.randn(3, sum(mask), 2)
    ordered, passive = parts.split(x)
    assert torch.equal(passive, x[:, ~active])
    y, log_det = parts.couple(ordered, shift, log_scale, inverse=False)
    want = x.clone()
    want[:, active] = x[:, active] * log_scale.exp() + shift
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(log_det, log_scale.sum((1, 2)))
    torch.testing.assert_close(parts.couple(parts.split(y)[0], shift, log_scale, inverse=True)[0], x)


# normflows

MODES = ["channel", "channel_inv", "checkerboard", "checkerboard_inv"]


@pytest.fixture
def nf():
    return pytest.importorskip("normflows", reason="needs normflows: pip install hexad[flows]")


def through(model, x, inverse):
    """All layers, with log-determinants added in x's dtype (NormalizingFlow adds them in float32)."""
    total = x.new_zeros(len(x))
    for layer in reversed(model.flows) if inverse else model.flows:
        x, log_det = layer.inverse(x) if inverse else layer(x)
        total = total + log_det
    return x, total


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
class TestNormflows:
    def both_ways(self, nf, layers, shape, dtype):
        """forward and inverse with log-determinants, sample and log_prob of the same weights."""
        from hexad.integrations.normflows import convert

        base = nf.distributions.DiagGaussian(shape, trainable=False)
        model = randomise(nf.NormalizingFlow(base, layers)).to(dtype)
        for layer in model.modules():
            if isinstance(layer, nf.flows.ActNorm):
                layer.data_dep_init_done.fill_(1.0)
        ours = convert(model)
        with torch.no_grad():
            z = torch.randn(6, *shape, dtype=dtype)
            for inverse in (False, True):
                for got, want in zip(through(ours, z, inverse), through(model, z, inverse)):
                    close(got, want, dtype)
            close(ours.log_prob(z), model.log_prob(z), dtype)
            torch.manual_seed(5)
            want = model.sample(4)
            torch.manual_seed(5)
            for got, expected in zip(ours.sample(4), want):
                close(got, expected, dtype)
        return ours

    @dtypes
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv", None])
    def test_glow_blocks(self, nf, mode, scale_map, dtype):
        channels = 4 if "checker" in mode else 5  # odd channels: the halves differ
        options = {"scale": scale_map is not None, "scale_map": scale_map or "exp", "split_mode": mode}
        layers = [
            nf.flows.GlowBlock(channels, 8, use_lu=i == 0, net_actnorm=i == 1, init_zeros=False, **options)
            for i in range(2)
        ]
        ours = self.both_ways(nf, layers, (channels, 4, 6), dtype)
        kinds = [type(layer).__name__ for layer in ours.flows]
        assert kinds == ["Coupling", "Affine", "Coupling", "Affine"]

    @dtypes
    @pytest.mark.parametrize(
        "mask", [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1]]
    )
    @pytest.mark.parametrize("parts", ["st", "t", "s"])
    def test_real_nvp_by_masks(self, nf, mask, parts, dtype):
        nets = {p: nf.nets.MLP([5, 16, 5], init_zeros=True) for p in parts}
        b = torch.tensor([float(digit) for digit in mask])
        layers = [nf.flows.MaskedAffineFlow(b, nets.get("t"), nets.get("s")), nf.flows.ActNorm(5)]
        self.both_ways(nf, layers, (5,), dtype)

    @dtypes
    def test_vector_layers(self, nf, dtype):
        net = nf.nets.MLP([3, 16, 6])
        layers = [
            nf.flows.AffineCouplingBlock(net, scale_map="exp"),
            nf.flows.Permute(6),
            nf.flows.LULinearPermute(6),
            nf.flows.InvertibleAffine(6),
            nf.flows.InvertibleAffine(6, use_lu=False),
            nf.flows.AffineConstFlow(6),
            nf.flows.AffineCouplingBlock(nf.nets.MLP([3, 8, 6], output_fn="tanh"), split_mode="channel_inv"),
            nf.flows.Permute(6, mode="swap"),
            nf.flows.Split(),
            nf.flows.AffineCoupling(nf.nets.MLP([3, 8, 6]), scale_map="sigmoid"),
            nf.flows.Merge(),
        ]
        ours = self.both_ways(nf, layers, (6,), dtype)
        assert [type(layer).__name__ for layer in ours.flows].count("Affine") == 1

    @dtypes
    def test_multiscale_glow(self, nf, dtype):
        from hexad.integrations.normflows import convert

        model = small_glow(nf, 3, 2, 8, (3, 8, 8)).to(dtype)
        with torch.no_grad():
            x, y = torch.rand(5, 3, 8, 8, dtype=dtype), torch.arange(5) % 3
            model.log_prob(x, y)
            ours = convert(model)
            close(ours.log_prob(x, y), model.log_prob(x, y), dtype)
            torch.manual_seed(3)
            want = model.sample(4, y=torch.arange(4) % 3, temperature=0.7)
            torch.manual_seed(3)
            for got, expected in zip(ours.sample(4, y=torch.arange(4) % 3, temperature=0.7), want):
                close(got, expected, dtype)

    def test_unknown_layers_are_refused_by_name(self, nf):
        from hexad.integrations.normflows import convert

        base = nf.distributions.DiagGaussian(4)
        for layer, name in ((nf.flows.Planar((4,)), "Planar"), (nf.flows.BatchNorm(), "BatchNorm")):
            with pytest.raises(flows.UnknownLayer, match=rf"flows.1: normflows\..*\.{name}: hexad does not know"):
                convert(nf.NormalizingFlow(base, [nf.flows.Permute(4), layer]))
        with pytest.raises(flows.UnknownLayer, match="scale_map 'cubic'"):
            convert(nf.NormalizingFlow(base, [nf.flows.AffineCouplingBlock(nn.Identity(), scale_map="cubic")]))
        with pytest.raises(ValueError, match=r"flows.0: an ActNorm that has not seen its first batch"):
            convert(nf.NormalizingFlow(base, [nf.flows.ActNorm(4)]))
        with pytest.raises(flows.UnknownLayer, match=r"model: .*Linear"):
            convert(nn.Linear(2, 2))

    def test_the_host_stays_as_it_was(self, nf):
        from hexad.integrations.normflows import convert

        model = randomise(nf.NormalizingFlow(nf.distributions.DiagGaussian(6), [
            nf.flows.AffineCouplingBlock(nf.nets.MLP([3, 8, 6])), nf.flows.LULinearPermute(6)
        ]))  # fmt: skip
        before = copy.deepcopy(model.state_dict())
        convert(model)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert all(p.requires_grad for p in model.parameters()) and model.training


def small_glow(nf, levels, steps, hidden, shape):
    """The class-conditional multiscale Glow of normflows' own example, with weights away from their start."""
    bases, merges, layers = [], [], []
    for i in range(levels):
        channels = shape[0] * 2 ** (levels + 1 - i)
        blocks = [nf.flows.GlowBlock(channels, hidden, init_zeros=False) for _ in range(steps)]
        layers.append([*blocks, nf.flows.Squeeze()])
        if i > 0:
            merges.append(nf.flows.Merge())
            latent = (shape[0] * 2 ** (levels - i), shape[1] // 2 ** (levels - i), shape[2] // 2 ** (levels - i))
        else:
            latent = (shape[0] * 2 ** (levels + 1), shape[1] // 2**levels, shape[2] // 2**levels)
        bases.append(nf.distributions.ClassCondDiagGaussian(latent, 3))
    return nf.MultiscaleFlow(bases, layers, merges, transform=nf.transforms.Logit())


# nflows


class Subnet(nn.Module):
    """A small conditioner for images and vectors, in the signatures of the libraries."""

    def __init__(self, inputs, outputs, image=True):
        super().__init__()
        layer = (lambda i, o: nn.Conv2d(i, o, 3, padding=1)) if image else nn.Linear
        self.layers = nn.Sequential(layer(inputs, 8), nn.ReLU(), layer(8, outputs))

    def forward(self, x, context=None):
        return self.layers(x)


class TestNflows:
    @pytest.fixture
    def t(self):
        pytest.importorskip("nflows", reason="needs nflows: pip install hexad[flows]")
        from nflows import transforms

        return transforms

    @dtypes
    @pytest.mark.parametrize("mask", ["01010", "00011", "11100", "10000"])
    @pytest.mark.parametrize("image", [True, False], ids=["image", "vector"])
    def test_glow_steps(self, t, mask, image, dtype):
        from hexad.integrations.nflows import convert

        def net(inputs, outputs):
            return Subnet(inputs, outputs, image)

        mask = torch.tensor([int(digit) for digit in mask])
        model = t.CompositeTransform(
            [
                t.ActNorm(5),
                t.OneByOneConvolution(5, identity_init=False) if image else t.LULinear(5, identity_init=False),
                t.AffineCouplingTransform(mask, net),
                t.CompositeTransform([t.RandomPermutation(5), t.AdditiveCouplingTransform(1 - mask, net)]),
                t.ActNorm(5),
            ]
        )
        model = randomise(model).to(dtype).eval()
        ours = convert(model)
        assert [type(layer).__name__ for layer in ours._transforms][:2] == ["Affine", "Coupling"]
        x = torch.randn(3, 5, 4, 2, dtype=dtype) if image else torch.randn(3, 5, dtype=dtype)
        with torch.no_grad():
            for name in ("forward", "inverse"):
                for got, want in zip(getattr(ours, name)(x), getattr(model, name)(x)):
                    close(got, want, dtype)

    @dtypes
    def test_linear_maps_and_batch_norm(self, t, dtype):
        from hexad.integrations.nflows import convert

        layers = [t.QRLinear(4, 2), t.HouseholderSequence(4, 3), t.SVDLinear(4, 2), t.BatchNorm(4)]
        model = randomise(t.CompositeTransform(layers)).to(dtype).eval()
        layers[-1].running_mean.normal_()
        layers[-1].running_var.uniform_(0.5, 2)
        x = torch.randn(6, 4, dtype=dtype)
        ours = convert(model)
        assert len(ours._transforms) == 1
        with torch.no_grad():
            for got, want in zip(ours(x), model(x)):
                close(got, want, dtype)
            close(ours.inverse(ours(x)[0])[0], x, dtype)

    @dtypes
    def test_real_nvp_and_multiscale(self, t, dtype):
        from nflows import distributions, flows

        from hexad.integrations.nflows import convert

        model = randomise(flows.SimpleRealNVP(6, 16, 3, 1), 0.05).to(dtype).eval()
        ours = convert(model)
        with torch.no_grad():
            x = torch.randn(4, 6, dtype=dtype)
            close(ours.log_prob(x), model.log_prob(x), dtype)
            close(ours._transform.inverse(x)[0], model._transform.inverse(x)[0], dtype)
            if dtype == torch.float32:  # its base distributions draw no other
                torch.manual_seed(2)
                want = model.sample_and_log_prob(5)
                torch.manual_seed(2)
                for got, expected in zip(ours.sample_and_log_prob(5), want):
                    close(got, expected, dtype)
        levels = t.MultiscaleCompositeTransform(2)
        shape = (4, 4, 4)
        for channels in (4, 2):
            coupling = t.AffineCouplingTransform(torch.arange(channels) % 2, Subnet)
            shape = levels.add_transform(t.CompositeTransform([t.OneByOneConvolution(channels), coupling]), shape)
        model = flows.Flow(levels, distributions.StandardNormal([64])).to(dtype).eval()
        with torch.no_grad():
            x = torch.randn(3, 4, 4, 4, dtype=dtype)
            close(convert(model).log_prob(x), model.log_prob(x), dtype)

    def test_refusals(self, t):
        from hexad.integrations.nflows import convert

        spline = t.PiecewiseRationalQuadraticCouplingTransform(torch.tensor([0, 1]), lambda i, o: nn.Linear(i, o))
        with pytest.raises(flows.UnknownLayer, match=r"\.1: nflows\..*\.PiecewiseRationalQuadraticCouplingTransform"):
            convert(t.CompositeTransform([t.ReversePermutation(2), spline]))
        with pytest.raises(ValueError, match="has not seen its first batch"):
            convert(t.CompositeTransform([t.ActNorm(2)]))


# FrEIA


class TestFreia:
    @pytest.fixture
    def fm(self):
        return pytest.importorskip("FrEIA.modules", reason="needs FrEIA: pip install hexad[flows]")

    def compare(self, model, x, dtype, c=None):
        from hexad.integrations.freia import convert

        model = randomise(model).to(dtype).eval()
        x = x.to(dtype)
        c = c if c is None else [t.to(dtype) for t in c]
        with torch.no_grad():
            model(x, c)  # the actnorms' first batch
            ours = convert(model)
            for rev in (False, True):
                for got, want in zip(ours(x, c, rev=rev), model(x, c, rev=rev)):
                    close(got, want, dtype)
        return ours

    @dtypes
    @pytest.mark.parametrize("clamp", ["TANH", "ATAN", "SIGMOID", pytest.param(torch.sin, id="callable")], ids=str)
    @pytest.mark.parametrize("kind", ["RNVP", "GLOW", "GIN", "NICE", "OneSided"])
    @pytest.mark.parametrize("channels", [4, 5])
    def test_couplings(self, fm, kind, clamp, channels, dtype):
        from FrEIA.framework import SequenceINN

        block = fm.AffineCouplingOneSided if kind == "OneSided" else getattr(fm, f"{kind}CouplingBlock")
        options = {} if kind == "NICE" else {"clamp_activation": clamp, "clamp": 1.5}
        for shape, split in (((channels, 4, 2), 0.5), ((channels,), 0.5), ((channels,), 1)):
            model = SequenceINN(*shape)
            for _ in range(2):
                model.append(
                    block,
                    subnet_constructor=lambda i, o, s=shape: Subnet(i, o, len(s) == 3),
                    split_len=split,
                    **options,
                )
                model.append(fm.PermuteRandom)
            self.compare(model, torch.randn(3, *shape), dtype)

    @dtypes
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"permute_soft": True},
            {"learned_householder_permutation": 2, "reverse_permutation": True},
            {"global_affine_type": "SIGMOID", "reverse_permutation": True},
        ],
        ids=str,
    )
    def test_all_in_one(self, fm, options, dtype):
        from FrEIA.framework import SequenceINN

        for shape in ((5, 4, 2), (4,)):
            model = SequenceINN(*shape)
            for _ in range(2):
                model.append(
                    fm.AllInOneBlock,
                    cond=0,
                    cond_shape=(2, *shape[1:]),
                    subnet_constructor=lambda i, o, s=shape: Subnet(i, o, len(s) == 3),
                    **options,
                )
            self.compare(model, torch.randn(3, *shape), dtype, [torch.randn(3, 2, *shape[1:])])

    @dtypes
    def test_affine_modules_in_a_graph(self, fm, dtype):
        from FrEIA.framework import GraphINN, InputNode, Node, OutputNode

        nodes = [InputNode(2, 4, 4)]
        nodes.append(Node(nodes[-1], fm.IRevNetDownsampling, {}))
        nodes.append(Node(nodes[-1], fm.ActNorm, {}))
        nodes.append(Node(nodes[-1], fm.Fixed1x1Conv, {"M": torch.randn(8, 8)}))
        nodes.append(Node(nodes[-1], fm.GLOWCouplingBlock, {"subnet_constructor": Subnet}))
        nodes.append(Node(nodes[-1], fm.Flatten, {}))
        nodes.append(Node(nodes[-1], fm.FixedLinearTransform, {"M": torch.eye(32) + 0.1 * torch.randn(32, 32)}))
        nodes.append(OutputNode(nodes[-1]))
        model = GraphINN(nodes)
        from hexad.integrations.freia import convert

        model = randomise(model).to(dtype).eval()
        with torch.no_grad():
            x = torch.randn(3, 2, 4, 4, dtype=dtype)
            z, jac = model(x)
            ours = convert(model)
            got, got_jac = ours(x)
            close(got, z, dtype)
            close(got_jac, jac, dtype)
            back, _ = ours(z, rev=True)
            # The host's inverse of a matrix is as exact as the dtype that built it, float32.
            torch.testing.assert_close(back, x, rtol=0, atol=1e-4)

    def test_refusals(self, fm):
        from FrEIA.framework import SequenceINN

        from hexad.integrations.freia import convert

        model = SequenceINN(4)
        model.append(fm.IResNetLayer)
        with pytest.raises(flows.UnknownLayer, match=r"module_list.0: FrEIA\..*\.IResNetLayer"):
            convert(model)
        model = SequenceINN(4)
        model.append(fm.ActNorm)
        with pytest.raises(ValueError, match=r"module_list\.0: an ActNorm"):
            convert(model)


def test_what_is_no_model_is_named():
    pytest.importorskip("nflows")
    from hexad.integrations import nflows

    with pytest.raises(flows.UnknownLayer, match=r"flow: .*NoneType: wants a Flow or Transform"):
        nflows.convert(None)
