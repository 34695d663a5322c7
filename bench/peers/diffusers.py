"""diffusers: guidance as its pipelines write it, then DDIMScheduler.step."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler


def ddim(x, model_output, uncond, guidance):
    """One guided DDIM step of 50, and the row of hexad's table for the same step."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[20]

    def run():
        m = uncond + guidance * (model_output - uncond)
        return scheduler.step(m, t, x).prev_sample

    abar = scheduler.alphas_cumprod[t]
    before = scheduler.alphas_cumprod[t - 1000 // 50]
    table = torch.zeros(1, 4, 8)
    table[0, 0, :4] = torch.tensor([abar.rsqrt(), -((1 - abar) / abar).sqrt(), torch.inf, guidance])
    # x' = sqrt(before) p + sqrt(1 - before) m, m the guided noise
    table[0, 1, 1], table[0, 1, 2] = (1 - before).sqrt(), before.sqrt()
    return run, table
