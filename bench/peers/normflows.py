"""normflows: its coupling and its 1x1 convolution, the conditioner's output given."""

from __future__ import annotations

import torch
from normflows.flows import ActNorm, Invertible1x1Conv
from normflows.flows.affine.coupling import AffineCoupling
from torch import nn

MAPS = {"exp": "exp", "sigmoid": "sigmoid_inv"}


class _Given(nn.Module):
    """A conditioner whose output is known: shift and scale in turns along the channels."""

    def __init__(self, shift, log_scale):
        super().__init__()
        self.output = torch.stack((shift, log_scale), 2).flatten(1, 2)

    def forward(self, z):
        return self.output


def coupling(x, shift, log_scale=None, *, inverse=False, split="channel", flip=False, scale_map="exp", clamp=2.0):
    if split != "channel" or flip or log_scale is None or scale_map not in MAPS:
        return None
    passive = x.shape[1] - x.shape[1] // 2
    flow = AffineCoupling(_Given(shift, log_scale), scale_map=MAPS[scale_map])

    def run():
        halves = [x[:, :passive], x[:, passive:]]
        halves, log_det = flow.inverse(halves) if inverse else flow(halves)
        return torch.cat(halves, 1), log_det

    return run


def invconv(x, weight, bias=None):
    if x.ndim != 4 or bias is not None:
        return None
    flow = Invertible1x1Conv(x.shape[1], use_lu=False)
    with torch.no_grad():
        flow.W.copy_(weight.inverse())  # its forward applies the inverse of W
    return lambda: flow(x)[0]


def glow_step(x, shift, log_scale, weight, actnorm_log_scale, actnorm_offset):
    """Actnorm, 1x1 convolution, affine coupling: what its GlowBlock does, the conditioner's output given."""
    channels = x.shape[1]
    actnorm = ActNorm((channels, 1, 1))
    mix = Invertible1x1Conv(channels, use_lu=False)
    with torch.no_grad():
        # its forward maps s and t as z exp(s) + t; ours is exp(s) (z + b)
        actnorm.s.copy_(actnorm_log_scale.view_as(actnorm.s))
        actnorm.t.copy_((actnorm_log_scale.exp() * actnorm_offset).view_as(actnorm.t))
        actnorm.data_dep_init_done.fill_(1)
        mix.W.copy_(weight.inverse())  # its forward applies the inverse of W
    flow = AffineCoupling(_Given(shift, log_scale), scale_map="sigmoid_inv")

    def run():
        z, log_det = actnorm(x)
        z, more = mix(z)
        halves, most = flow([z[:, : channels - channels // 2], z[:, channels - channels // 2 :]])
        return torch.cat(halves, 1), log_det + more + most

    return run
