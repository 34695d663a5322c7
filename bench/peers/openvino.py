"""OpenVINO: the torch form of an op compiled for the CPU, float32 kept, as many threads as torch's."""

from __future__ import annotations

import openvino as ov
import torch
from openvino import opset13
from torch import nn

from bench import eager


class _Module(nn.Module):
    def __init__(self, build, kwargs):
        super().__init__()
        self.build, self.kwargs = build, kwargs

    def forward(self, *tensors):
        return self.build(*tensors, **self.kwargs)()


def _compile(model):
    core = ov.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
    return core.compile_model(model, "CPU")


def _run(model, tensors):
    request = _compile(model).create_infer_request()
    for i, t in enumerate(tensors):
        request.set_input_tensor(i, ov.Tensor(t.numpy(), shared_memory=True))

    def run():
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data)

    return run


def _traced(build, tensors, kwargs):
    given = [t for t in tensors if t is not None]
    if any(t.dtype != torch.float32 for t in given) or len(given) < len(tensors):
        return None
    return _run(ov.convert_model(_Module(build, kwargs), example_input=tuple(given)), given)


def attention(q, k, v, *, causal=False, mask=None, window=None, softcap=None, scale=None, return_lse=False, **other):
    if mask is not None or window or softcap or other or q.dtype != torch.float32 or q.shape[1] != k.shape[1]:
        return None
    inputs = [opset13.parameter(t.shape, ov.Type.f32) for t in (q, k, v)]
    out = opset13.scaled_dot_product_attention(*inputs, causal=bool(causal))
    return _run(ov.Model([out], inputs), (q, k, v))


def linear(x, weight, bias=None, *, activation=None, residual=None):
    """The weight is a constant of the graph, so that OpenVINO packs it."""
    if not isinstance(weight, torch.Tensor) or x.dtype != torch.float32 or residual is not None:
        return None

    class Layer(nn.Module):
        def forward(self, t):
            return eager.linear(t, weight, bias, activation=activation)()

    return _run(ov.convert_model(Layer(), example_input=(x,)), (x,))


def norm(x, weight=None, bias=None, **kwargs):
    if kwargs.get("scale") is not None or kwargs.get("shift") is not None:
        return None
    return _traced(eager.norm, [t for t in (x, weight, bias) if t is not None], kwargs)
