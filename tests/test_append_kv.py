"""append_kv beyond the promises: writes its positions and no other, token by token as at once; errors write nothing."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import append_kv, attention, decode, rope
from hexad_kernels.decode import LARGEST

ROOM, HEADS, DIM = 40, 2, 16


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def draw(*shape, seed=7, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tables():
    angle = torch.arange(ROOM)[:, None] * 100 ** (-torch.arange(0, DIM, 2) / DIM)
    return {"cos": angle.cos(), "sin": angle.sin()}


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_writes_its_positions_and_no_other(name, interleaved):
    k, v = draw(2, HEADS, 3, DIM), draw(2, HEADS, 3, 24, seed=8)
    caches = draw(2, HEADS, ROOM, DIM, seed=9), draw(2, HEADS, ROOM, 24, seed=10)
    before = [c.clone() for c in caches]
    lengths = int32(5, 37)
    with hexad_kernels.backend(name):
        turned = rope(k, **tables(), positions=lengths, interleaved=interleaved)
        assert append_kv(k, v, *caches, lengths, **tables(), interleaved=interleaved) is None
    for b, at in enumerate(lengths.tolist()):
        before[0][b, :, at : at + 3] = turned[b]
        before[1][b, :, at : at + 3] = v[b]
    assert torch.equal(caches[0], before[0]) and torch.equal(caches[1], before[1])


@pytest.mark.parametrize("page", [None, 1, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_generating_token_by_token_has_the_prefills_bits(page, dtype):
    q, k, v = (draw(2, h, ROOM, DIM, seed=s, dtype=dtype) for h, s in ((6, 1), (HEADS, 2), (HEADS, 3)))
    options, shape = {}, (2, HEADS, ROOM, DIM)
    if page:
        each = -(-ROOM // page)
        options["block_table"] = torch.randperm(2 * each).to(torch.int32).view(2, each)
        shape = (2 * each, HEADS, page, DIM)
    caches = [torch.full(shape, torch.nan, dtype=dtype) for _ in range(2)]
    whole = attention(rope(q, **tables()), rope(k, **tables()), v, causal=True)
    append_kv(k[:, :, :7], v[:, :, :7], *caches, int32(0, 0), **options, **tables())
    for n in range(7, ROOM):
        at = int32(n, n)
        append_kv(k[:, :, n : n + 1], v[:, :, n : n + 1], *caches, at, **options, **tables())
        out = decode(rope(q[:, :, n : n + 1], **tables(), positions=at)[:, :, 0], *caches, at + 1, **options)
        assert torch.equal(out, whole[:, :, n])


QUANTISED = [
    ("cpu", torch.int8),
    ("reference", torch.int8),
    ("reference", torch.float8_e4m3fn),
    ("reference", torch.float8_e5m2),
]


@pytest.mark.parametrize(("name", "kept"), QUANTISED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("interleaved", [None, False, True])
def test_a_quantised_cache_holds_the_rounded_rows_and_their_scales(name, kept, dtype, interleaved):
    k, v = draw(2, HEADS, 3, DIM, dtype=dtype), draw(2, HEADS, 3, 24, seed=8, dtype=dtype)
    v[0, 0, 0] = 0
    caches = [torch.full((2, HEADS, ROOM, d), 96, dtype=kept) for d in (DIM, 24)]
    scales = {name: torch.full((2, HEADS, ROOM), 9.0) for name in ("k_scale", "v_scale")}
    options = {} if interleaved is None else {**tables(), "interleaved": interleaved}
    starts = int32(5, 37)
    with hexad_kernels.backend(name):
        append_kv(k, v, *caches, starts, **options, **scales)
        if interleaved is not None:
            k = rope(k.float(), **tables(), positions=starts, interleaved=interleaved)
    for x, cache, scale in zip((k.float(), v.float()), caches, scales.values()):
        want = x.abs().amax(-1) / LARGEST[kept]
        near = x / torch.where(want > 0, want, 1)[..., None]
        near = near.round().to(kept) if kept is torch.int8 else near.clamp(-LARGEST[kept], LARGEST[kept]).to(kept)
        for b, at in enumerate(starts.tolist()):
            assert torch.equal(cache[b, :, at : at + 3].float(), near[b].float())
            assert torch.equal(scale[b, :, at : at + 3], want[b])
            cache[b, :, at : at + 3], scale[b, :, at : at + 3] = 96, 9
        assert (cache.float() == 96).all() and (scale == 9).all()


@pytest.mark.filterwarnings("ignore:hexad (append_kv|decode). the plain torch reference")
@pytest.mark.parametrize(
    ("kept", "off"), [(torch.int8, 0.05), (torch.float8_e4m3fn, 0.2), (torch.float8_e5m2, 0.4)], ids=str
)
@pytest.mark.parametrize("page", [None, 8])
def test_decoding_from_a_quantised_cache_is_near_decoding_from_a_float_one(page, kept, off):
    q, k, v = draw(2, 6, DIM), draw(2, HEADS, ROOM, DIM, seed=8), draw(2, HEADS, ROOM, DIM, seed=9)
    shape, options = (2, HEADS, ROOM, DIM), {}
    if page:
        options["block_table"] = torch.randperm(2 * ROOM // page).to(torch.int32).view(2, -1)
        shape = (2 * ROOM // page, HEADS, page, DIM)
    floats = [torch.zeros(shape) for _ in range(2)]
    bytes_ = [torch.zeros(shape, dtype=kept) for _ in range(2)]
    scales = {name: torch.zeros(shape[:3]) for name in ("k_scale", "v_scale")}
    append_kv(k, v, *floats, int32(0, 0), **options)
    append_kv(k, v, *bytes_, int32(0, 0), **options, **scales)
    lengths = int32(ROOM, 11)
    near, exact = decode(q, *bytes_, lengths, **options, **scales), decode(q, *floats, lengths, **options)
    assert 0 < (near - exact).abs().max() < off


def test_a_float8_cache_on_the_cpu_is_the_references_and_says_so():
    k, caches = draw(1, 1, 1, DIM), [torch.zeros(1, 1, 4, DIM, dtype=torch.float8_e4m3fn) for _ in range(2)]
    scales = {name: torch.zeros(1, 1, 4) for name in ("k_scale", "v_scale")}
    for name in ("append_kv", "decode"):
        hexad_kernels.op.OPS[name]._warned.clear()
    with pytest.warns(UserWarning, match="reference serves this call .*float8_e4m3fn"):
        append_kv(k, k, *caches, int32(0), **scales)
    with pytest.warns(UserWarning, match="reference serves this call .*float8_e4m3fn"):
        out = decode(k[:, :, 0], *caches, int32(1), **scales)
    assert 0 < (out - k[:, :, 0]).abs().max() < 0.2
    with hexad_kernels.backend("cpu"), pytest.raises(hexad_kernels.BackendError, match="float8_e4m3fn"):
        decode(k[:, :, 0], *caches, int32(1), **scales)
    for door, arguments in (
        ("append_kv", (k, k, *caches, int32(0), None, None, None, *scales.values(), False)),
        (
            "decode",
            (k[:, :, 0], *caches, int32(1), None, *scales.values(), None, None, out, out[..., 0], None, -1, 0, 1),
        ),
    ):
        with pytest.raises(RuntimeError, match="a float8 cache has no CPU kernel"):
            getattr(hexad_kernels.native.C, door)(*arguments)


@pytest.mark.parametrize(("name", "kept"), QUANTISED, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 3, DIM - 1])
def test_a_quantised_row_that_is_not_finite_decodes_to_nan(name, kept, bad, at):
    k, v = draw(1, 1, 2, DIM), draw(1, 1, 2, DIM, seed=8)
    v[0, 0, 1, at] = bad
    caches = [torch.zeros(1, 1, 4, DIM, dtype=kept) for _ in range(2)]
    scales = {name: torch.zeros(1, 1, 4) for name in ("k_scale", "v_scale")}
    with hexad_kernels.backend(name):
        append_kv(k, v, *caches, int32(0), **scales)
        assert decode(k[:, :, 0], *caches, int32(1), **scales).isfinite().all()
        assert decode(k[:, :, 0], *caches, int32(2), **scales).isnan().all()


def test_a_strided_cache_is_written_in_place():
    k, v = draw(2, HEADS, 3, DIM), draw(2, HEADS, 3, DIM, seed=8)
    plain = [torch.zeros(2, HEADS, ROOM, DIM) for _ in range(2)]
    strided = [torch.zeros(2, ROOM, DIM, HEADS).permute(0, 3, 1, 2), torch.zeros(2, ROOM, HEADS, DIM).transpose(1, 2)]
    for caches in (plain, strided):
        append_kv(k, v, *caches, int32(2, 9))
    assert torch.equal(plain[0], strided[0]) and torch.equal(plain[1], strided[1]) and plain[0].any()


def test_compiles_without_graph_breaks():
    k, v = draw(2, HEADS, 3, DIM), draw(2, HEADS, 3, DIM, seed=8)
    eager, traced = ([torch.zeros(2, HEADS, ROOM, DIM) for _ in range(2)] for _ in range(2))

    def step(k, v, k_cache, v_cache, lengths):
        append_kv(k, v, k_cache, v_cache, lengths)
        return k_cache.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(k, v, *traced, int32(2, 9)), step(k, v, *eager, int32(2, 9)))
    assert torch.equal(traced[0], eager[0]) and torch.equal(traced[1], eager[1]) and eager[1].any()


INT8 = {c: torch.zeros(2, HEADS, ROOM, DIM, dtype=torch.int8) for c in ("k_cache", "v_cache")}
FLOAT8 = {name: cache.to(torch.float8_e4m3fn) for name, cache in INT8.items()}
SCALES = {s: torch.zeros(2, HEADS, ROOM) for s in ("k_scale", "v_scale")}


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"lengths": int32(0, 38)}, ValueError, "lengths: row 1 is 38, wants 0 to 37"),
        ({"lengths": int32(-1, 0)}, ValueError, "lengths: row 0 is -1, wants 0 to 37"),
        ({"lengths": int32(0)}, ValueError, "lengths: got shape (1,), wants (2) = (B,)"),
        ({"lengths": torch.tensor([0, 1])}, TypeError, "lengths: got int64, wants int32"),
        ({"block_table": int32([0], [2])}, ValueError, "block_table: row 1 has 2 at 0, wants 0 to 1"),
        ({"block_table": int32([-1], [1])}, ValueError, "block_table: row 0 has -1 at 0"),
        ({"k": torch.zeros(2, HEADS, DIM)}, ValueError, "k: got 3 dimensions"),
        ({"v": torch.zeros(2, HEADS, 4, DIM)}, ValueError, "v: got shape"),
        ({"k_cache": torch.zeros(2, HEADS, ROOM, 8)}, ValueError, "k_cache: got shape"),
        ({"v_cache": torch.zeros(2, HEADS, ROOM, 8)}, ValueError, "v_cache: got shape"),
        ({"k_cache": torch.zeros(2, HEADS, ROOM, DIM).double()}, TypeError, "k_cache: got float64, wants k's float32"),
        (
            {"k_cache": torch.zeros(1, HEADS, ROOM, DIM).expand(2, -1, -1, -1)},
            ValueError,
            "k_cache: its 2 entries of dim",
        ),
        (
            {"v_cache": torch.zeros(2, HEADS, ROOM, 1).expand(-1, -1, -1, DIM)},
            ValueError,
            "v_cache: its 16 entries of ",
        ),
        (
            INT8 | SCALES | {"k_scale": torch.zeros(1).expand(2, HEADS, ROOM)},
            ValueError,
            "k_scale: its 2 entries of di",
        ),
        (INT8, ValueError, "k_scale: missing, an int8 cache wants its scales"),
        (FLOAT8, ValueError, "k_scale: missing, a float8_e4m3fn cache wants its scales"),
        (FLOAT8 | SCALES | {"v_cache": INT8["v_cache"]}, TypeError, "v_cache: got int8, wants k_cache's float8_e4m3fn"),
        (SCALES, ValueError, "k_scale: given, but k_cache is float32: scales are an int8 or float8 cache's"),
        (
            INT8 | SCALES | {"v_scale": torch.zeros(2, HEADS, 8)},
            ValueError,
            "v_scale: got shape (2, 2, 8), wants (2, 2",
        ),
        ({"cos": torch.zeros(ROOM, 8)}, ValueError, "sin: missing, cos and sin come together"),
        ({"cos": torch.zeros(9, 8), "sin": torch.zeros(9, 8)}, ValueError, "lengths: row 1 starts at 7, wants 0 to 6"),
        ({"cos": torch.zeros(2, 8), "sin": torch.zeros(2, 8)}, ValueError, "cos: has 2 positions, wants at least k's"),
        ({"cos": torch.zeros(ROOM, 9), "sin": torch.zeros(ROOM, 9)}, ValueError, "cos: got shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_writes_nothing(name, change, error, text):
    caches = {"k_cache": torch.zeros(2, HEADS, ROOM, DIM), "v_cache": torch.zeros(2, HEADS, ROOM, DIM)}
    new = {"k": draw(2, HEADS, 3, DIM), "v": draw(2, HEADS, 3, DIM), "lengths": int32(0, 7)}
    arguments = new | caches | change
    with hexad_kernels.backend(name), pytest.raises(error) as caught:
        append_kv(**arguments)
    assert text in str(caught.value)
    assert not any(arguments[c].any() for c in caches)
