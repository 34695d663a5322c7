"""BERT: a transformer that sees both sides of a blank (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).

    h = norm(token[t] + segment[0] (+ position[i]))
    h = norm(h + project(attention(h)))         every token attends to every other, but not to padding
    h = norm(h + down(gelu(up(h))))
    logits = norm(gelu(transform(h))) token^T + bias

Two things that make little text go further than as published, and that a published configuration leaves off:
positions may be rotary, and early layers may see only a token's neighbours (as in ModernBERT, Warner et al. 2024,
https://arxiv.org/abs/2412.13663). A blank then need not find out first where its neighbours are.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hexad_kernels import attention, linear, norm, rope

from ..layers import Linear
from ..tokens import BYTES, Vocabulary
from .transformer import check_heads, drop, initialise, rotary_tables


@dataclass(frozen=True)
class Config:
    """``vocab`` counts the text's tokens and, last of them, [MASK]. ``dropout`` acts in training only.

    ``windows`` has an entry per layer: a window of w reaches w - 1 tokens to either side, 0 the whole text.
    """

    vocab: int = 1537
    context: int = 64
    width: int = 128
    heads: int = 4
    segments: int = 1
    rotary: bool = True
    windows: tuple[int, ...] = (2, 3, 0, 0)
    dropout: float = 0.1
    eps: float = 1e-12


# Names of Hugging Face's BertForMaskedLM; the tied decoder and what masked modelling has no use for are dropped.
KEYS = {
    r"bert\.embeddings\.word_embeddings\.weight": "token.weight",
    r"bert\.embeddings\.position_embeddings\.weight": "position.weight",
    r"bert\.embeddings\.token_type_embeddings\.weight": "segment.weight",
    r"bert\.embeddings\.LayerNorm\.(weight|bias)": r"norm.\1",
    r"bert\.embeddings\.position_ids": "",
    r"bert\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)": r"blocks.\1.\2.\3",
    r"bert\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)": r"blocks.\1.project.\2",
    r"bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(weight|bias)": r"blocks.\1.norm1.\2",
    r"bert\.encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)": r"blocks.\1.up.\2",
    r"bert\.encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)": r"blocks.\1.down.\2",
    r"bert\.encoder\.layer\.(\d+)\.output\.LayerNorm\.(weight|bias)": r"blocks.\1.norm2.\2",
    r"cls\.predictions\.transform\.dense\.(weight|bias)": r"transform.\1",
    r"cls\.predictions\.transform\.LayerNorm\.(weight|bias)": r"transform_norm.\1",
    r"cls\.predictions\.bias": "bias",
    r"cls\.predictions\.decoder\.(weight|bias)": "",
    r"bert\.pooler\..*|cls\.seq_relationship\..*": "",
}


def normalise(text: str) -> str:
    """The text as BERT reads it: each run of white space made one space, and no double quotes.

    The language reference puts these around every piece of code, and users who ask about it don't.
    """
    return re.sub(r"\s+", " ", text.replace('"', ""))


class Block(nn.Module):
    """Post-norm attention and feed-forward."""

    def __init__(self, config: Config, window: int) -> None:
        super().__init__()
        width = config.width
        self.window = window or None
        self.heads, self.rate, self.eps = config.heads, config.dropout, config.eps
        self.query, self.key, self.value = Linear(width, width), Linear(width, width), Linear(width, width)
        self.project = Linear(width, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """x (B,S,width), mask (B,1,1,S) True where there is a token -> (B,S,width); turn rotates q and k."""

        def heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)

        h = attention(
            turn(heads(self.query(x))), turn(heads(self.key(x))), heads(self.value(x)), mask=mask, window=self.window
        )
        h = h.transpose(1, 2).reshape(x.shape)
        h = self.project(drop(h, self.rate, self.training), residual=x)
        x = norm(h, self.norm1.weight, self.norm1.bias, eps=self.eps)
        h = self.down(drop(self.up(x, activation="gelu"), self.rate, self.training), residual=x)
        return norm(h, self.norm2.weight, self.norm2.bias, eps=self.eps)


class BERT(nn.Module):
    """Logits of every token given all the others, in texts that went through ``normalise``."""

    merges: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        check_heads(config.width, config.heads, config.rotary)
        self.config, width = config, config.width
        self.token = nn.Embedding(config.vocab, width)
        self.position = None if config.rotary else nn.Embedding(config.context, width)
        self.segment = nn.Embedding(config.segments, width)
        self.norm, self.transform_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(config, window) for window in config.windows)
        self.transform = Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.register_buffer("merges", torch.zeros(max(0, config.vocab - 1 - BYTES), 2, dtype=torch.int32))
        cos, sin = rotary_tables(config.context, width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self, width)

    @property
    def mask_token(self) -> int:
        return self.config.vocab - 1

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.merges)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """tokens (B,S) int64, padded on the right to S <= context; lengths (B,), by default S.

        Returns logits (B,S,vocab); where ``at`` (B,S) bool is given, only those rows, (at.sum(), vocab).
        """
        place = torch.arange(tokens.shape[1], device=tokens.device)
        ends = torch.full_like(tokens[:, 0], tokens.shape[1]) if lengths is None else lengths
        mask = (place < ends[:, None])[:, None, None]
        h = self.token(tokens) + self.segment.weight[0]
        if self.position is not None:
            h = h + self.position(place)
        h = drop(norm(h, self.norm.weight, self.norm.bias, eps=self.config.eps), self.config.dropout, self.training)
        for block in self.blocks:
            h = block(h, mask, self._turn)
        h = self.transform(h if at is None else h[at], activation="gelu")
        h = norm(h, self.transform_norm.weight, self.transform_norm.bias, eps=self.config.eps)
        return linear(h, self.token.weight, self.bias)

    def _turn(self, x: Tensor) -> Tensor:
        return rope(x, self.cos, self.sin) if self.config.rotary else x
