"""The baseline for language models: interpolated Witten-Bell n-grams of characters.

    P(c | h) = (count(h c) + T(h) P(c | h')) / (count(h) + T(h))        h' is h without its first character

T(h) is the number of distinct characters seen after h; the order-0 distribution is uniform over the alphabet.
Witten & Bell 1991, "The zero-frequency problem", IEEE Transactions on Information Theory 37(4), method C.
"""

import math
from collections import defaultdict


def witten_bell_bits(train: str, test: str, orders: int = 8) -> dict[int, float]:
    """Bits per character of ``test`` under n-grams of ``train``, for n = 1..orders (n - 1 characters of context).

    The alphabet is that of both texts, which favours the baseline slightly. ``test`` is read on from the end of
    ``train``, but never learned from.
    """
    if not train or not test:
        raise ValueError("train and test: want at least one character each")
    counts: list[dict[str, dict[str, int]]] = [defaultdict(dict) for _ in range(orders)]
    for n, level in enumerate(counts):
        for i in range(n, len(train)):
            after = level[train[i - n : i]]
            after[train[i]] = after.get(train[i], 0) + 1
    totals = [{h: sum(after.values()) for h, after in level.items()} for level in counts]

    text, uniform = train + test, 1 / len(set(train) | set(test))
    bits = [0.0] * orders
    for i in range(len(train), len(text)):
        p = uniform
        for n, level in enumerate(counts):
            after = level.get(text[max(0, i - n) : i], {})
            if after:
                p = (after.get(text[i], 0) + len(after) * p) / (totals[n][text[max(0, i - n) : i]] + len(after))
            bits[n] -= math.log2(p)
    return {n + 1: total / len(test) for n, total in enumerate(bits)}
