"""Byte-level BPE: text <-> tokens, any text, without loss (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909).

Tokens 0..255 are the bytes of UTF-8; token 256 + i joins the two tokens of merge i. The merges are the whole
vocabulary, so a model keeps them as one small int32 buffer and its checkpoint needs no file beside it.
"""

import json
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

BYTES = 256
# No merge crosses these borders: a line break with its indentation, a word with the space before it, a number,
# a run of punctuation with the space before it, other white space.
_PIECES = Regex(r"\n+ *| ?[A-Za-z_]+| ?[0-9]+| ?[^\sA-Za-z0-9_]+|\s+(?=\S)|\s+")
_SPLIT = pre_tokenizers.Split(_PIECES, "isolated")


def _latin(text: str) -> str:
    # One character per byte, which lets a character-level BPE work on bytes.
    return text.encode().decode("latin-1")


def learn_merges(text: str, vocab_size: int) -> Tensor:
    """The ``vocab_size - 256`` most useful merges of ``text``, (vocab_size - 256, 2) int32.

    Always the same for the same text. ValueError when the text is too small to hold that many merges.
    """
    if vocab_size < BYTES:
        raise ValueError(f"vocab_size: got {vocab_size}, wants at least {BYTES}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _SPLIT
    alphabet = [chr(byte) for byte in range(BYTES)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([_latin(text)], trainer)
    ids = {chr(byte): byte for byte in range(BYTES)}
    pairs = []
    for left, right in json.loads(tokenizer.to_str())["model"]["merges"]:
        if left + right not in ids:  # a second way to the same token adds nothing but a gap in the numbering
            pairs.append((ids[left], ids[right]))
            ids[left + right] = len(ids)
    if len(ids) != vocab_size:
        raise ValueError(f"vocab_size: got {vocab_size}, the text has merges for {len(ids)} only")
    return torch.tensor(pairs, dtype=torch.int32).reshape(-1, 2)


class Vocabulary:
    """The tokens that ``merges`` (M, 2) define, 256 + M of them."""

    def __init__(self, merges: Tensor) -> None:
        self.pieces = [chr(byte) for byte in range(BYTES)]
        pairs = []
        for left, right in merges.tolist():
            if not (0 <= left < len(self.pieces) and 0 <= right < len(self.pieces)):
                raise ValueError(f"merges: {left, right} joins tokens that are not defined yet")
            pairs.append((self.pieces[left], self.pieces[right]))
            self.pieces.append(self.pieces[left] + self.pieces[right])
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        if len(ids) != len(self.pieces):
            raise ValueError("merges: two of them make the same token")
        self._tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs))
        self._tokenizer.pre_tokenizer = _SPLIT

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``; ``decode`` undoes it exactly. A lone surrogate is a UnicodeEncodeError."""
        ids: list[int] = self._tokenizer.encode(_latin(text), add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``. Bytes that do not form a character, such as half of one, become U+FFFD."""
        return "".join(self.pieces[i] for i in tokens).encode("latin-1").decode(errors="replace")

    def text(self, token: int) -> str:
        """The text of one token."""
        return self.decode((token,))


def pad(rows: Sequence[Sequence[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged rows -> tokens (B, longest) int64, padded on the right with ``value``, and lengths (B,) int32."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    tokens = torch.full((len(rows), max(map(len, rows), default=0)), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return tokens, lengths
