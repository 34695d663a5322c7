"""gated_pixelcnn beyond the promises: pixel by pixel from the cache, its draws, stale caches, clear errors."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import gated_pixelcnn, gated_pixelcnn_cache, native, pack_gated_pixelcnn, sample
from hexad_kernels.gated_pixelcnn import PixelCNNLayer, PixelCNNReadOut, _parts, _unpack, cache_size, weights_size
from tests.cases.gated_pixelcnn import network

NET = {"levels": 7, "channels": 12, "layers": 3, "kernel": 3}
SIZE = (4, 5)


def inputs(batch=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    weights = network(g, height=SIZE[0], width=SIZE[1], **NET).float()
    return torch.randint(NET["levels"], (batch, *SIZE), generator=g), weights


@pytest.mark.parametrize("step", [1, 2, 5, 7])
@pytest.mark.parametrize("drawn", [False, True])
def test_pixels_in_pieces_are_those_of_one_call(step, drawn):
    image, weights = inputs(11)
    seeds = torch.arange(11) if drawn else None
    whole = image.clone()
    want = gated_pixelcnn(whole, weights, None, seeds, **NET)
    cache = gated_pixelcnn_cache(image, weights, **NET).fill_(float("nan"))
    pieces = [
        gated_pixelcnn(image, weights, cache, seeds, begin=p, end=min(20, p + step), **NET) for p in range(0, 20, step)
    ]
    assert torch.equal(torch.cat(pieces, 1), want) and torch.equal(image, whole)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
def test_draws_are_those_of_sample(temperature):
    image, weights = inputs()
    seeds = torch.tensor([5, -3, 2**62])
    logits = gated_pixelcnn(image, weights, None, seeds, temperature=temperature, **NET)
    for pixel in range(20):
        level = sample(logits[:, pixel].contiguous(), seeds, position=pixel, temperature=temperature)
        assert torch.equal(image.flatten(1)[:, pixel], level)
    assert torch.equal(gated_pixelcnn(image.clone(), weights, **NET), logits)


@pytest.mark.parametrize("drawn", [False, True])
def test_kernel_and_reference_draw_the_same_levels(drawn):
    image, weights = inputs()
    other, seeds = image.clone(), torch.arange(3) if drawn else None
    logits = gated_pixelcnn(image, weights, None, seeds, **NET)
    with hexad_kernels.backend("reference"):
        plain = gated_pixelcnn(other, weights, None, seeds, **NET)
    assert torch.equal(image, other)
    torch.testing.assert_close(logits, plain)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_logits_depend_on_earlier_pixels_only(name):
    image, weights = inputs(1)
    with hexad_kernels.backend(name):
        base = gated_pixelcnn(image, weights, **NET)
        for pixel in range(20):
            changed = image.clone()
            changed.view(-1)[pixel] = (changed.view(-1)[pixel] + 3) % 7
            differs = (gated_pixelcnn(changed, weights, **NET) != base).any(-1)[0]
            assert not differs[: pixel + 1].any()
            assert pixel == 19 or differs[pixel + 1 :].any()


def test_pack_keeps_every_weight_that_counts():
    _, weights = inputs()
    parts, at, layers = _parts(7, *SIZE, 12, 3, 3), 0, []
    for shapes in parts:
        tensors, at = _unpack(weights, shapes, at)
        layers.append(tensors)
    assert at == len(weights) == weights_size(height=4, width=5, **NET)
    *rest, last = layers
    packed = pack_gated_pixelcnn([PixelCNNLayer(*t) for t in rest], PixelCNNReadOut(*last))
    assert torch.equal(packed, weights)
    junk = [t.clone() for t in rest[1]]
    junk[0][:, :, 2] = float("nan")
    junk[5][..., 2] = float("nan")
    rest[1] = junk
    assert torch.equal(pack_gated_pixelcnn([PixelCNNLayer(*t) for t in rest], PixelCNNReadOut(*last)), weights)
    rest[2][3] = torch.zeros(24, 24)
    with pytest.raises(ValueError, match=r"layer 2, down: got shape \(24, 24\), wants \(24, 24, 1, 1\)"):
        pack_gated_pixelcnn([PixelCNNLayer(*t) for t in rest], PixelCNNReadOut(*last))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_cache_from_other_threads_goes_on_alike(threads):
    image, weights = inputs(7)
    want = gated_pixelcnn(image, weights, **NET)
    cache, before = gated_pixelcnn_cache(image, weights, **NET), torch.get_num_threads()
    gated_pixelcnn(image, weights, cache, end=8, **NET)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(gated_pixelcnn(image, weights, cache, begin=8, **NET), want[:, 8:])
    finally:
        torch.set_num_threads(before)


def test_a_cache_that_does_not_fit_is_refused():
    image, weights = inputs()
    cache = gated_pixelcnn_cache(image, weights, **NET)
    gated_pixelcnn(image, weights, cache, end=6, **NET)
    with pytest.raises(ValueError, match="cache: row 0 holds 6 pixels, wants begin's 7"):
        gated_pixelcnn(image, weights, cache, begin=7, **NET)
    with hexad_kernels.backend("reference"):
        gated_pixelcnn(image, weights, cache, begin=6, end=8, **NET)
    with pytest.raises(ValueError, match="cache: row 0 holds -1 pixels, wants begin's 8"):
        gated_pixelcnn(image, weights, cache, begin=8, **NET)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_logits_that_nothing_can_be_drawn_from(name):
    image, weights = inputs()
    weights[-7 * 20 + 7 * 6] = float("nan")  # the place of pixel 6
    with hexad_kernels.backend(name), pytest.raises(ValueError, match=r"logits: .* NaN"):
        gated_pixelcnn(image, weights, None, torch.arange(3), **NET)
    with hexad_kernels.backend(name):
        logits = gated_pixelcnn(inputs()[0], weights, **NET)
    assert logits.isnan().nonzero().tolist() == [[b, 6, 0] for b in range(3)]


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_levels_out_of_range(name):
    image, weights = inputs()
    image[1, 2, 3] = 7
    with hexad_kernels.backend(name):
        with pytest.raises(ValueError, match="image: pixel 13 of row 1 is 7, wants levels 0 to 6"):
            gated_pixelcnn(image, weights, **NET)
        gated_pixelcnn(image, weights, end=13, **NET)
        gated_pixelcnn(image, weights, None, torch.arange(3), **NET)


def test_views_are_written_to():
    image, weights = inputs()
    want, seeds = image.clone(), torch.arange(3)
    gated_pixelcnn(want, weights, None, seeds, **NET)
    wide = torch.full((3, 4, 11), -1)
    turned = torch.zeros(weights.shape[0], 2)
    turned[:, 1] = weights
    cache = torch.zeros(cache_size(*SIZE, 12, 3, 3), 3).t()
    gated_pixelcnn(wide[..., 1::2], turned[:, 1], cache, torch.arange(6)[::2] // 2, end=9, **NET)
    gated_pixelcnn(wide[..., 1::2], turned[:, 1], cache, torch.arange(6)[::2] // 2, begin=9, **NET)
    assert torch.equal(wide[..., 1::2], want) and (wide[..., ::2] == -1).all()


def test_compiles_without_graph_breaks():
    image, weights = inputs()
    compiled = torch.compile(lambda x: gated_pixelcnn(x, weights, **NET) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(image), gated_pixelcnn(image, weights, **NET) + 1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"image": 3}, TypeError, "image: got int, wants a torch.Tensor"),
        ({"image": torch.zeros(3, 4, 5)}, TypeError, "image: got float32, wants int64"),
        ({"image": torch.zeros(4, 5, dtype=torch.int64)}, ValueError, "image: got 2 dimensions (4, 5), wants 3"),
        ({"weights": torch.zeros(9)}, ValueError, "weights: got shape (9,), wants ("),
        ({"weights": inputs()[1].bfloat16()}, TypeError, "weights: got bfloat16, wants float32 or float64"),
        ({"layers": 2}, ValueError, "weights: got shape ("),
        ({"levels": 1}, ValueError, "levels: got 1, wants 2 to 2048"),
        ({"channels": 1025}, ValueError, "channels: got 1025, wants 1 to 1024"),
        ({"layers": 0}, ValueError, "layers: got 0, wants 1 to 65536"),
        ({"kernel": 2}, ValueError, "kernel: got 2, wants an odd size"),
        ({"begin": 3}, ValueError, "cache: missing, wants the one of the pixels before begin 3"),
        ({"begin": 3, "end": 2}, ValueError, "begin, end: got 3, 2, wants 0 <= begin <= end <= 20 pixels"),
        ({"end": 21}, ValueError, "begin, end: got 0, 21, wants 0 <= begin <= end <= 20 pixels"),
        ({"cache": torch.zeros(3, 4)}, ValueError, "cache: got shape (3, 4), wants (3, "),
        ({"seeds": torch.zeros(2, dtype=torch.int64)}, ValueError, "seeds: got shape (2,), wants (3) = a seed"),
        ({"seeds": torch.zeros(3)}, TypeError, "seeds: got float32, wants int64"),
        ({"temperature": -1.0}, ValueError, "temperature: got -1.0, wants a finite number of at least 0"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)  # fmt: skip
def test_bad_input(change, error, text):
    image, weights = inputs()
    before = image.clone()
    with pytest.raises(error) as caught:
        gated_pixelcnn(**({"image": image, "weights": weights} | NET | change))
    assert text in str(caught.value)
    assert torch.equal(image, before)


def test_the_door_guards_memory():
    image, weights = inputs()
    cache, logits = gated_pixelcnn_cache(image, weights, **NET), torch.empty(3, 20, 7)
    good = [image, weights, cache, None, logits, 7, 12, 3, 3, 0, 1.0]
    native.C.gated_pixelcnn(*good)
    seeds = torch.zeros(2, dtype=torch.int64)
    for at, bad in ((0, image[:2]), (0, image.int()), (1, weights[:-1]), (2, cache[:, :-1].contiguous()),
                    (2, cache[:2]), (3, seeds), (4, logits[..., :6].contiguous()), (5, 1 << 40), (6, 1 << 40),
                    (7, 1 << 40), (8, 4), (9, -1), (9, 1), (10, float("nan"))):  # fmt: skip
        with pytest.raises(ValueError):
            native.C.gated_pixelcnn(*[bad if i == at else g for i, g in enumerate(good)])
