"""diffusers: DiT-S/2 and the UNet2D of CIFAR's DDPM, a forward and a loop; normflows: a Glow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import normflows as nf
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel

import hexad
from bench.embed.row import Row, near, twin, weights
from hexad.integrations.normflows import convert

GUIDANCE = 4.0


def denoised(model: Any, scheduler: Any, x: torch.Tensor, labels: torch.Tensor, steps: int) -> torch.Tensor:
    """A guided loop, as DiTPipeline writes it, without its decoder."""
    scheduler.set_timesteps(steps)
    null = torch.full_like(labels, 1000)
    for t in scheduler.timesteps:
        both = model(torch.cat([x, x]), timestep=t.expand(2 * len(x)), class_labels=torch.cat([labels, null])).sample
        cond, uncond = both[:, :4].chunk(2)
        x = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, x).prev_sample
    return x


def spread(model: Any) -> Any:
    """Weights that matter everywhere: what is initialised to zero would hide a wrong layer."""
    for p in model.parameters():
        if p.ndim > 1 and not p.any():
            p.normal_(0, 0.02)
    return model


def flops_of(model: Any, call: Any) -> float:
    """Operations of a call's products and convolutions, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call(model)
    return float(counter.get_total_flops())


def dit_rows() -> Iterator[Row]:
    model = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=12, sample_size=32,
        patch_size=2, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    model = spread(model)
    ours = hexad.accelerate(twin(model))
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    one = {"timestep": torch.tensor([7]), "class_labels": torch.tensor([3])}
    flops = flops_of(model, lambda m: m(x, **one))
    yield Row(
        "DiT-S/2 32x32x4, forward", 2.0, lambda: model(x, **one).sample, lambda: ours(x, **one).sample,
        near(1e-3), bytes=4.0 * weights(model), flops=flops,
    )  # fmt: skip
    schedulers = [DDIMScheduler(clip_sample=False), hexad.accelerate(DDIMScheduler(clip_sample=False))]
    yield Row(
        "DiT-S/2, 25 guided DDIM steps", 2.0,
        lambda: denoised(model, schedulers[0], x, torch.tensor([3]), 25),
        lambda: denoised(ours, schedulers[1], x, torch.tensor([3]), 25), near(1e-3), flops=50 * flops,
    )  # fmt: skip


def unet_rows() -> Iterator[Row]:
    kinds = ["Down", "AttnDown", "Down", "Down"]
    model = UNet2DModel(
        sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2,
        down_block_types=tuple(f"{k}Block2D" for k in kinds),
        up_block_types=tuple(f"{k.replace('Down', 'Up')}Block2D" for k in reversed(kinds)),
    ).eval()  # fmt: skip
    model = spread(model)
    ours = hexad.accelerate(twin(model))
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    yield Row(
        "UNet2D 32x32, forward", 1.5, lambda: model(x, 7).sample, lambda: ours(x, 7).sample, near(1e-3),
        bytes=4.0 * weights(model), flops=flops_of(model, lambda m: m(x, 7)),
    )  # fmt: skip


def glow(levels: int = 3, steps: int = 16, hidden: int = 256) -> Any:
    """As normflows' own example of a class-conditional Glow, without the classes."""
    bases, merges, flows = [], [], []
    for i in range(levels):
        channels = 3 * 2 ** (levels + 1 - i)
        level = [nf.flows.GlowBlock(channels, hidden, init_zeros=False) for _ in range(steps)]
        flows.append([*level, nf.flows.Squeeze()])
        side = 32 // 2 ** (levels - i)
        if i > 0:
            merges.append(nf.flows.Merge())
            shape = (channels // 2, side, side)
        else:
            shape = (channels, side, side)
        bases.append(nf.distributions.DiagGaussian(shape, trainable=False))
    return nf.MultiscaleFlow(bases, flows, merges)


def seeded(model: Any, count: int) -> torch.Tensor:
    torch.manual_seed(count)
    return model.sample(count)[0]


def glow_rows() -> Iterator[Row]:
    model = glow().eval()
    for p in model.parameters():
        if p.ndim == 4:
            p.mul_(0.3)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.log_prob(images, None)  # actnorm starts from its first batch
    ours = convert(model)
    flops = flops_of(model, lambda m: m.log_prob(images, None)) / 16
    for count in (1, 16):
        yield Row(
            f"Glow 3x16, sample {count}", 1.5, lambda n=count: seeded(model, n), lambda n=count: seeded(ours, n),
            near(1e-4), flops=count * flops,
        )  # fmt: skip
    for count in (1, 16):
        yield Row(
            f"Glow 3x16, log_prob {count}", 1.5, lambda n=count: model.log_prob(images[:n], None),
            lambda n=count: ours.log_prob(images[:n], None), near(1e-5), flops=count * flops,
        )  # fmt: skip
