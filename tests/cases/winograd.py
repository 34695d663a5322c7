import torch

from hexad_kernels import pack_winograd
from tests.cases import Call, Case, Work, rand


def case(name, shape, outputs, *, bias=True, strided=None, **flags):
    batch, inputs, height, width = shape

    def make(g):
        x = rand(g, *shape)
        if strided == "last":
            x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        elif strided:
            x = rand(g, batch, inputs, height, 2 * width)[..., ::2]
        taps = pack_winograd(rand(g, outputs, inputs, 3, 3, scale=max(1, 9 * inputs) ** -0.5))
        return Call((x, taps, *((rand(g, outputs),) if bias else ())), {"outputs": outputs})

    def row(call, i):
        return Call((call.args[0][i : i + 1], *call.args[1:]), call.kwargs)

    # What the direct form takes.
    pixels = batch * height * width
    work = Work(flops=18.0 * pixels * outputs * inputs, bytes=4 * (pixels * (inputs + outputs) + 9 * outputs * inputs))
    return Case(name, make, row, batch=batch, work=work, dtypes=(torch.float32,), without=("cuda", "triton"), **flags)


CASES = [
    case("plain", (2, 3, 8, 8), 5, small=True),
    case("odd_sizes", (3, 17, 7, 10), 33, bias=False, small=True),
    case("smaller_than_a_tile", (2, 4, 1, 3), 16),
    case("one_row_of_tiles", (1, 20, 4, 71), 18),
    case("channels_last", (2, 19, 6, 9), 20, strided="last"),
    case("every_other_pixel", (2, 5, 9, 18), 7, strided="every other"),
    case("many_panels", (1, 33, 12, 12), 150),
    case("more_tiles_than_are_held", (5, 400, 16, 20), 300),
    case("no_inputs", (2, 0, 4, 4), 3),
    case("no_outputs", (2, 3, 4, 4), 0, bias=False),
    case("empty_batch", (0, 3, 4, 4), 5),
    case("empty_image", (2, 3, 0, 4), 5),
    case("unet", (1, 128, 32, 32), 128, bench=True, bench_only=True),
    case("unet_up", (1, 384, 32, 32), 128, bench=True, bench_only=True),
    case("unet_middle", (1, 256, 16, 16), 256, bench=True, bench_only=True),
    case("vae", (1, 128, 128, 128), 128, bench=True, bench_only=True),
]
