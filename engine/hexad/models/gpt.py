"""GPT-2: a decoder-only transformer (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    h = embedding[token] (+ position[i])
    h = h + project(attention(norm1(h)))        causal; queries and keys rotated where positions are rotary
    h = h + down(gelu(up(norm2(h))))
    logits = norm(h) embedding^T                the output shares the embedding

Positions are learned, as published, or rotary (Su et al. 2021, https://arxiv.org/abs/2104.09864).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hexad_kernels import attention, linear, norm, rope

from ..cache import KVCache
from ..checkpoint import rename
from ..layers import Linear
from ..tokens import BYTES, Vocabulary
from .transformer import check_heads, drop, initialise, rotary_tables

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    """``dropout`` acts in training only, on the inputs of the two projections that end a block."""

    vocab: int = 1024
    context: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    rotary: bool = True
    dropout: float = 0.15
    eps: float = 1e-5


# Names of Hugging Face's GPT2LMHeadModel; the causal mask it once stored and the tied head are dropped.
KEYS = {
    r"transformer\.wte\.weight": "embedding.weight",
    r"transformer\.wpe\.weight": "position.weight",
    r"transformer\.h\.(\d+)\.ln_([12])\.(weight|bias)": r"blocks.\1.norm\2.\3",
    r"transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias)": r"blocks.\1.qkv.\2",
    r"transformer\.h\.(\d+)\.attn\.c_proj\.(weight|bias)": r"blocks.\1.project.\2",
    r"transformer\.h\.(\d+)\.mlp\.c_fc\.(weight|bias)": r"blocks.\1.up.\2",
    r"transformer\.h\.(\d+)\.mlp\.c_proj\.(weight|bias)": r"blocks.\1.down.\2",
    r"transformer\.h\.\d+\.attn\.(masked_)?bias": "",
    r"transformer\.ln_f\.(weight|bias)": r"norm.\1",
    r"lm_head\.weight": "",
}


def from_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT2LMHeadModel's tensors under our names. Upstream stores these matrices as (in, out), we as (out, in)."""
    ours = rename(tensors, KEYS)
    matrix = re.compile(r"blocks\.\d+\.(qkv|project|up|down)\.weight")
    return {name: t.t().contiguous() if matrix.fullmatch(name) else t for name, t in ours.items()}


class Block(nn.Module):
    """Pre-norm attention and feed-forward. ``attend(layer, q, k, v)`` decides what is attended to."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        width = config.width
        self.layer, self.heads, self.rate, self.eps = layer, config.heads, config.dropout, config.eps
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = Linear(width, 3 * width), Linear(width, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x (B,S,width) -> (B,S,width); q, k, v are (B,heads,S,width/heads)."""
        batch, length, width = x.shape
        h = norm(x, self.norm1.weight, self.norm1.bias, eps=self.eps)
        qkv = self.qkv(h).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        h = attend(self.layer, q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = self.project(drop(h, self.rate, self.training), residual=x)
        h = norm(x, self.norm2.weight, self.norm2.bias, eps=self.eps)
        h = self.up(h, activation="gelu_tanh")
        return self.down(drop(h, self.rate, self.training), residual=x)


class GPT(nn.Module):
    """``forward`` scores whole texts; ``prefill`` then ``decode`` give the same bits through a KV cache."""

    merges: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        check_heads(config.width, config.heads, config.rotary)
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.position = None if config.rotary else nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.register_buffer("merges", torch.zeros(max(0, config.vocab - BYTES), 2, dtype=torch.int32))
        cos, sin = rotary_tables(config.context, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self, config.width, ends=("project.weight", "down.weight"), shrink=(2 * config.layers) ** -0.5)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.merges)

    def empty_cache(self, batch: int) -> KVCache:
        """Room for ``batch`` texts of ``config.context`` tokens."""
        config, weight = self.config, self.embedding.weight
        return KVCache(
            config.layers,
            batch,
            config.heads,
            config.context,
            config.width // config.heads,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B,S) int64, S <= context -> logits (B,S,vocab); row i depends on tokens 0..i only."""

        def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(self._rotate(q), self._rotate(k), v, causal=True)

        return self._head(self._body(tokens, None, attend))

    def prefill(self, tokens: Tensor, lengths: Tensor, cache: KVCache) -> Tensor:
        """Fill an empty cache; returns the logits after each text's last token, (B,vocab).

        tokens (B,S) are padded on the right and lengths (B,) int32 say where each text ends. What lands in
        the cache beyond a text's length is never read, and the next tokens overwrite it.
        """
        cache.reserve(tokens.shape[1])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k = self._rotate(k)
            cache.append(layer, k, v)
            return attention(self._rotate(q), k, v, causal=True)

        h = self._body(tokens, None, attend)
        cache.advance(lengths)
        rows = torch.arange(len(tokens), device=tokens.device)
        return self._head(h[rows, lengths.long() - 1])

    def decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """The next token of each text, (B,) int64 -> logits after it, (B,vocab). Advances the cache by one."""
        cache.reserve(1)
        positions = cache.lengths.clone()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.append(layer, self._rotate(k, positions), v)
            return cache.attend(layer, self._rotate(q, positions).squeeze(2)).unsqueeze(2)

        h = self._body(tokens[:, None], positions, attend)
        cache.advance(1)
        return self._head(h[:, 0])

    def _rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return rope(x, self.cos, self.sin, positions=positions) if self.config.rotary else x

    def _body(self, tokens: Tensor, positions: Tensor | None, attend: Attend) -> Tensor:
        h = self.embedding(tokens)
        if self.position is not None:
            # One position for all rows (None) when they all start at 0; a row's own in decoding.
            at = torch.arange(tokens.shape[1], device=h.device) if positions is None else positions.long()[:, None]
            h = h + self.position(at)
        h = drop(h, self.config.dropout, self.training)
        for block in self.blocks:
            h = block(h, attend)
        return h

    def _head(self, h: Tensor) -> Tensor:
        h = norm(h, self.norm.weight, self.norm.bias, eps=self.config.eps)
        return linear(h, self.embedding.weight)
