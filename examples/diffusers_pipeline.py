"""A DDIM pipeline of diffusers with hexad's attention and scheduler step: the same images."""

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import hexad
from hexad.integrations.diffusers import report, restore

torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=16,
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
)
pipe = DDIMPipeline(unet.eval(), DDIMScheduler())
pipe.set_progress_bar_config(disable=True)


def images():
    generator = torch.Generator().manual_seed(1)
    return pipe(batch_size=2, num_inference_steps=10, generator=generator, output_type="pt").images


before = images()
pipe = hexad.accelerate(pipe)
print(report(pipe))
print("largest difference:", (images() - before).abs().max().item())

restore(pipe)
assert torch.equal(images(), before)
