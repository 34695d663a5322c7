"""FrEIA: its one-sided affine coupling, the conditioner's output given."""

from __future__ import annotations

import torch
from FrEIA.modules import AffineCouplingOneSided
from torch import nn


def coupling(x, shift, log_scale=None, *, inverse=False, split="channel", flip=False, scale_map="exp", clamp=2.0):
    if split != "channel" or flip or log_scale is None or scale_map != "tanh" or x.shape[1] % 2:
        return None
    output = torch.cat((log_scale / clamp, shift), 1)  # FrEIA: clamp * tanh(raw)

    class Given(nn.Module):
        def forward(self, z):
            return output

    block = AffineCouplingOneSided(
        [tuple(x.shape[1:])], subnet_constructor=lambda i, o: Given(), clamp=clamp, clamp_activation="TANH"
    )

    def run():
        (y,), log_det = block([x], rev=inverse)
        return y, log_det

    return run
