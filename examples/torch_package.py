"""hexad's ops inside plain torch: compiled, exported and packaged, with functional gradients."""

import tempfile

import torch
from torch import nn
from torch.func import grad, vmap

import hexad_kernels as hk

torch.manual_seed(0)


class Block(nn.Module):
    """Attention with its norm and projections: four ops."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = hk.linear(hk.norm(x, kind="rms"), self.qkv.weight, self.qkv.bias)
        q, k, v = h.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = hk.attention(q, k, v, causal=True).transpose(1, 2).flatten(2)
        return hk.linear(mixed, self.out.weight, self.out.bias, residual=x)


block, x = Block().eval(), torch.randn(2, 8, 32)
with torch.no_grad():
    eager = block(x)
    compiled = torch.compile(block, fullgraph=True)(x)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with tempfile.TemporaryDirectory() as folder:  # a package calls the ops: its process imports hexad_kernels
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/block.pt2")
        packaged = torch._inductor.aoti_load_package(path)(x)
    per_sample = vmap(grad(lambda sample: block(sample[None]).pow(2).sum()))(x)
print("gradients of each sample:", tuple(per_sample.shape))
print(
    "largest difference of the compiled and the packaged:",
    max((y - eager).abs().max().item() for y in (compiled, packaged)),
)
