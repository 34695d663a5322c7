"""vLLM and SGLang: neither is installed here. The interfaces that hexad implements are recorded, with version and
source, in tests/interfaces; stand-ins made from the record take the hosts' place, and say so. What runs is hexad's own
side: registration, metadata, cache, attention."""

import importlib
import importlib.util
import inspect
import json
import sys
import types
from abc import ABC, abstractmethod
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hexad.integrations import host, paged

ROOT = Path(__file__).parent.parent
HEADS, KV_HEADS, DIM, PAGE = 4, 2, 16, 4


def record(name):
    return json.loads((ROOT / f"tests/interfaces/{name}.json").read_text())


def classes(name):
    return {k: v for file in record(name)["files"] for k, v in file.get("classes", {}).items()}


def stand_in(name, described):
    """A base class with the record's abstract methods and nothing behind them."""
    body = {m: abstractmethod(lambda self, *args, **kwargs: None) for m in described["abstract"]}
    if "__init__" in body:  # the host's own is called by super()
        body["__init__"] = lambda self, *args, **kwargs: None
    return type(name, (ABC,), body)


def module(monkeypatch, name, **content):
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        path = ".".join(parts[:i])
        if path not in sys.modules:
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
    for key, value in content.items():
        monkeypatch.setattr(sys.modules[name], key, value, raising=False)
    if len(parts) > 1:
        monkeypatch.setattr(sys.modules[".".join(parts[:-1])], parts[-1], sys.modules[name], raising=False)


def only_without(name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed: its stand-in would hide it")


@pytest.fixture
def vllm(monkeypatch):
    only_without("vllm")
    known = classes("vllm")
    registered = {}

    class IrOp:
        def __init__(self):
            self.impls = {}

        def register_impl(self, provider, *, supported=True, supports_args=None, inplace=False):
            assert provider not in self.impls
            return lambda f: self.impls.setdefault(provider, (f, supports_args))

    kinds = Enum("AttentionBackendEnum", ["CUSTOM", "CPU_ATTN"])
    module(
        monkeypatch,
        "vllm.v1.attention.backends.registry",
        AttentionBackendEnum=kinds,
        register_backend=lambda backend, class_path=None, is_mamba=False: registered.update({backend.name: class_path}),
    )
    bases = {name: stand_in(name, described) for name, described in known.items()}
    module(monkeypatch, "vllm.v1.attention.backend", AttentionType=SimpleNamespace(DECODER="decoder"), **bases)
    op = IrOp()
    module(monkeypatch, "vllm.ir", ops=SimpleNamespace(rms_norm=op))
    monkeypatch.setattr(host, "version", lambda package: "0.33.0")
    monkeypatch.delitem(sys.modules, "hexad.integrations.vllm_attention", raising=False)
    yield SimpleNamespace(registered=registered, op=op)
    sys.modules.pop("hexad.integrations.vllm_attention", None)


@pytest.fixture
def sglang(monkeypatch):
    only_without("sglang")
    backends, choices = {}, ["triton"]
    module(
        monkeypatch,
        "sglang.srt.layers.attention.attention_registry",
        register_attention_backend=lambda name: lambda f: backends.setdefault(name, f),
    )
    base = stand_in("AttentionBackend", classes("sglang")["AttentionBackend"])
    module(monkeypatch, "sglang.srt.layers.attention.base_attn_backend", AttentionBackend=base)
    module(
        monkeypatch,
        "sglang.srt.server_args",
        ATTENTION_BACKEND_CHOICES=choices,
        add_attention_backend_choices=choices.extend,
    )
    monkeypatch.setattr(host, "version", lambda package: "0.5.23")
    monkeypatch.delitem(sys.modules, "hexad.integrations.sglang_attention", raising=False)
    yield SimpleNamespace(backends=backends, choices=choices)
    sys.modules.pop("hexad.integrations.sglang_attention", None)


def takes(function, recorded):
    """Whether a function can be called as the record's signature is."""
    names = [r.partition("=") for r in recorded if r not in ("self", "*")]
    mine = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    for (name, default, _), p in zip(names, mine):
        assert p.name == name, f"{function.__qualname__}: {p.name}, the host says {name}"
        assert not default or p.default is not p.empty, f"{function.__qualname__}: {name} has a default"
    assert len(mine) >= len(names), f"{function.__qualname__}: takes fewer arguments than the host gives"
    extra = [p for p in mine[len(names) :] if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    assert not extra, f"{function.__qualname__}: wants {extra}, which the host does not give"


def implements(ours, described):
    for method, recorded in (described["abstract"] | described["other"]).items():
        if method in vars(ours):
            takes(getattr(ours, method), recorded)
        else:
            assert method in described["other"], f"{ours.__name__} lacks {method}"


def test_the_record_names_versions_and_sources():
    for name in ("vllm", "sglang"):
        found = record(name)
        assert found["run"] is False and found["version"] and found["why"]
        assert all(file["path"].endswith(".py") for file in found["files"])
        group = found["entry_point_group"]
        line = f'[project.entry-points."{group}"]\nhexad = "hexad.integrations.{name}:register"'
        assert line in (ROOT / "pyproject.toml").read_text()


# Attention over pages


def cache_of(lengths, page=PAGE, seed=0):
    """Keys and values of requests of those lengths, also spread over shuffled pages."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = ([torch.randn(n, KV_HEADS, DIM, generator=generator) for n in lengths] for _ in range(2))
    most = max(-(-n // page) for n in lengths)
    order = torch.randperm(most * len(lengths), generator=generator).int().view(len(lengths), most)
    return keys, values, order


def slots_of(table, first, last, page=PAGE):
    return torch.tensor([int(table[i // page]) * page + i % page for i in range(first, last)])


def expected(q, k, v, **options):
    """One request by torch's own: q (S, H, D), the last rows of k and v."""
    count, total = len(q), len(k)
    seen = torch.arange(total)[None] <= torch.arange(total - count, total)[:, None]
    if options.get("window"):
        seen &= torch.arange(total)[None] > torch.arange(total - count, total)[:, None] - options["window"]
    return F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], seen, enable_gqa=True
    )[0].transpose(0, 1)


BATCHES = {"prefill": ([5, 9, 1], [5, 9, 1]), "decode": ([7, 4, 12], [1, 1, 1]), "mixed": ([7, 9, 12], [1, 9, 3])}


@pytest.mark.parametrize("batch", BATCHES)
def test_paged_attention_is_torchs(batch):
    lengths, counts = BATCHES[batch]
    keys, values, table = cache_of(lengths)
    k_cache = torch.zeros(table.numel(), KV_HEADS, PAGE, DIM)
    v_cache = torch.zeros_like(k_cache)
    for k, v, row in zip(keys, values, table):
        slots = torch.cat((slots_of(row, 0, len(k)), torch.tensor([-1])))  # the last one is padding
        paged.write(torch.cat((k, k[:1])), torch.cat((v, v[:1])), k_cache, v_cache, slots)
    query = torch.randn(sum(counts), HEADS, DIM)
    starts = torch.tensor([0, *counts]).cumsum(0)
    got = paged.attend(query, k_cache, v_cache, starts, torch.tensor(lengths), table, window=(4, 0))
    want = torch.cat([expected(q, k, v, window=5) for q, k, v in zip(query.split(counts), keys, values)])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# vLLM


def test_vllm_registers_and_matches_the_record(vllm, monkeypatch):
    from hexad.integrations import vllm as integration

    integration.register()
    integration.register()
    assert vllm.registered == {"CUSTOM": integration.BACKEND}
    monkeypatch.setenv("HEXAD_VLLM_CPU", "1")
    integration.register()
    assert vllm.registered["CPU_ATTN"] == integration.BACKEND
    backend = importlib.import_module("hexad.integrations.vllm_attention").HexadAttentionBackend
    known = classes("vllm")
    implements(backend, known["AttentionBackend"])
    implements(backend.get_builder_cls(), known["AttentionMetadataBuilder"])
    implements(backend.get_impl_cls(), known["AttentionImpl"])
    (schema,) = [file["schema"] for file in record("vllm")["files"] if "schema" in file]
    function, serves = vllm.op.impls["hexad"]
    assert torch.library.infer_schema(function, mutates_args=[]) == schema["rms_norm"]
    assert len(inspect.signature(serves).parameters) == 4
    x, weight = torch.randn(3, 8), torch.randn(8)
    assert serves(x, weight, 1e-6) and not serves(x, weight, 1e-6, 4) and not serves(x.half(), None, 1e-6)
    torch.testing.assert_close(function(x, weight, 1e-6), F.rms_norm(x, (8,), weight, 1e-6))
    with pytest.raises(ValueError, match="variance_size"):
        function(x, weight, 1e-6, 4)


@pytest.mark.parametrize("batch", BATCHES)
def test_vllm_forward(vllm, batch):
    ours = importlib.import_module("hexad.integrations.vllm_attention")
    lengths, counts = BATCHES[batch]
    keys, values, table = cache_of(lengths)
    shape = ours.HexadAttentionBackend.get_kv_cache_shape(table.numel(), PAGE, KV_HEADS, DIM)
    cache = torch.zeros(shape)
    layer = ours.HexadAttentionImpl(HEADS, DIM, DIM**-0.5, KV_HEADS, None, 5)
    builder = ours.HexadMetadataBuilder(None, [], None, torch.device("cpu"))
    query = torch.randn(sum(counts) + 2, HEADS, DIM)  # two rows of padding
    for old in (True, False):  # what was there before, then the step itself
        rows = [(n - c if old else c, 0 if old else n - c) for n, c in zip(lengths, counts)]
        k = torch.cat([key[first : first + n] for (n, first), key in zip(rows, keys)])
        v = torch.cat([value[first : first + n] for (n, first), value in zip(rows, values)])
        slots = torch.cat([slots_of(t, first, first + n) for (n, first), t in zip(rows, table)])
        if old:
            paged.write(k, v, *cache.unbind(0), slots)
            continue
        common = SimpleNamespace(
            query_start_loc=torch.tensor([0, *counts]).cumsum(0).int(),
            seq_lens=torch.tensor(lengths).int(),
            num_actual_tokens=sum(counts),
            block_table_tensor=table,
            slot_mapping=torch.cat((slots, torch.tensor([-1, -1]))),
            causal=True,
        )
        output = torch.full_like(query, 7.0)
        padded = [torch.cat((t, t.new_zeros(2, *t.shape[1:]))) for t in (k, v)]
        got = layer.forward(None, query, *padded, cache, builder.build(0, common), output)
    assert got is output and (output[-2:] == 7).all()
    want = torch.cat([expected(q, k, v, window=5) for q, k, v in zip(query[:-2].split(counts), keys, values)])
    torch.testing.assert_close(output[:-2], want, rtol=1e-4, atol=1e-5)


def test_vllm_refuses_before_computing(vllm):
    ours = importlib.import_module("hexad.integrations.vllm_attention")
    plain = (HEADS, DIM, 1.0, KV_HEADS)
    for options, reason in (({"attn_type": "encoder"}, "attn_type"), ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype")):
        with pytest.raises(ours.Unsupported, match=reason):
            ours.HexadAttentionImpl(*plain, **options)
    layer, q = ours.HexadAttentionImpl(*plain), torch.zeros(1, HEADS, DIM)
    with pytest.raises(ours.Unsupported, match="output_scale"):
        layer.forward(None, q, q, q, None, None, q, output_scale=q)
    builder = ours.HexadMetadataBuilder(None, [], None, torch.device("cpu"))
    with pytest.raises(ours.Unsupported, match="causal"):
        builder.build(0, SimpleNamespace(causal=False))


# SGLang


class Pool:
    def __init__(self, slots):
        self.keys, self.values = torch.zeros(slots, KV_HEADS, DIM), torch.zeros(slots, KV_HEADS, DIM)

    def set_kv_buffer(self, layer, at, k, v):
        self.keys[at], self.values[at] = k, v

    def get_key_buffer(self, layer_id):
        return self.keys

    def get_value_buffer(self, layer_id):
        return self.values


def radix_layer(**changed):
    usual = {
        "tp_q_head_num": HEADS, "tp_k_head_num": KV_HEADS, "qk_head_dim": DIM, "v_head_dim": DIM, "layer_id": 0,
        "scaling": DIM**-0.5, "logit_cap": 0.0, "sliding_window_size": 4, "is_cross_attention": False,
        "attn_type": SimpleNamespace(value="decoder"), "logit_capping_method": "tanh", "xai_temperature_len": -1,
    }  # fmt: skip
    (listed,) = [
        file["attributes"]["RadixAttention"]
        for file in record("sglang")["files"]
        if "RadixAttention" in file.get("attributes", {})
    ]
    assert set(usual) == set(listed)
    return SimpleNamespace(**(usual | changed))


@pytest.mark.parametrize("batch", BATCHES)
def test_sglang_forward(sglang, batch):
    from hexad.integrations import sglang as integration

    integration.register()
    integration.register()
    assert sglang.choices == ["triton", "hexad"]
    backend = sglang.backends["hexad"](SimpleNamespace(device="cpu", use_mla_backend=False))
    implements(type(backend), classes("sglang")["AttentionBackend"])
    lengths, counts = BATCHES[batch]
    keys, values, _ = cache_of(lengths)
    order = torch.randperm(sum(lengths)).split(lengths)
    table = torch.zeros(8, 32, dtype=torch.int32)
    rows = torch.tensor([5, 2, 7])
    for row, slots in zip(rows, order):
        table[row, : len(slots)] = slots.int()
    pool = Pool(sum(lengths))
    for slots, n, k, v in zip(order, counts, keys, values):
        pool.set_kv_buffer(None, slots[:-n], k[:-n], v[:-n])
    decoding = counts == [1, 1, 1]
    forward_batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_decode=lambda: decoding),
        seq_lens=torch.tensor(lengths),
        extend_seq_lens=torch.tensor(counts),
        req_pool_indices=rows,
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        token_to_kv_pool=pool,
        out_cache_loc=torch.cat([slots[-n:] for slots, n in zip(order, counts)]),
        spec_info=None,
    )
    query = torch.randn(sum(counts), HEADS, DIM)
    k, v = (torch.cat([t[-n:] for t, n in zip(ts, counts)]) for ts in (keys, values))
    backend.init_forward_metadata(forward_batch)
    call = backend.forward_decode if decoding else backend.forward_extend
    got = call(query.flatten(1), k, v, radix_layer(), forward_batch)
    want = torch.cat([expected(q, a, b, window=5) for q, a, b in zip(query.split(counts), keys, values)])
    torch.testing.assert_close(got, want.flatten(1), rtol=1e-4, atol=1e-5)
    for layer, asked, reason in (
        (radix_layer(is_cross_attention=True), {}, "attn_type"),
        (radix_layer(attn_type=SimpleNamespace(value="encoder_only")), {}, "attn_type: got encoder_only"),
        (radix_layer(logit_cap=5.0, logit_capping_method="sigmoid"), {}, "logit_capping_method"),
        (radix_layer(), {"q_rope": query}, "q_rope"),
    ):
        with pytest.raises(NotImplementedError, match=reason):
            call(query.flatten(1), k, v, layer, forward_batch, **asked)


def test_sglang_refuses_latent_attention_and_speculation(sglang):
    from hexad.integrations import sglang as integration

    with pytest.raises(integration.Unsupported, match="use_mla_backend"):
        integration.backend(SimpleNamespace(use_mla_backend=True))
    backend = integration.backend(SimpleNamespace(device="cpu"))
    with pytest.raises(integration.Unsupported, match="spec_info"):
        backend.init_forward_metadata(SimpleNamespace(spec_info=object()))
