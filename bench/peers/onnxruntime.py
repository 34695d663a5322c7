"""ONNX Runtime on the CPU: one-node graphs, as many threads as torch's."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

OPSET = 23  # the first with Attention and RMSNormalization


def _run(nodes, tensors, constants, shape):
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(t.shape)) for n, t in tensors.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))
    held = [numpy_helper.from_array(np.ascontiguousarray(t.numpy()), n) for n, t in constants.items()]
    graph = helper.make_graph(nodes, "op", inputs, [output], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    y = np.empty(tuple(shape), np.float32)
    bound = session.io_binding()
    for name, t in tensors.items():
        bound.bind_input(name, "cpu", 0, np.float32, tuple(t.shape), t.data_ptr())
    bound.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    keep = (tensors, y)

    def run():
        session.run_with_iobinding(bound)
        return torch.from_numpy(keep[1])

    return run


def _plain(*tensors):
    return all(t is None or (t.dtype == torch.float32 and t.is_contiguous()) for t in tensors)


def attention(q, k, v, *, causal=False, mask=None, window=None, softcap=None, scale=None, return_lse=False, **other):
    if mask is not None or window or softcap or other or not _plain(q, k, v):
        return None
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=int(bool(causal)))
    return _run([node], {"q": q, "k": k, "v": v}, {}, (*q.shape[:3], v.shape[3]))


def linear(x, weight, bias=None, *, activation=None, residual=None):
    """The weight is a constant of the graph, so that ONNX Runtime packs it."""
    if not isinstance(weight, torch.Tensor) or residual is not None or x.ndim != 2 or not _plain(x, weight, bias):
        return None
    if activation not in (None, "gelu"):
        return None
    out = "z" if activation else "y"
    constants = {"w": weight} | ({} if bias is None else {"b": bias})
    nodes = [helper.make_node("Gemm", ["x", *constants], [out], transB=1)]
    if activation:
        nodes.append(helper.make_node("Gelu", ["z"], ["y"]))
    return _run(nodes, {"x": x}, constants, (x.shape[0], weight.shape[0]))


def norm(x, weight=None, bias=None, *, kind="layer", eps=1e-5, scale=None, shift=None, activation=None, **other):
    if kind == "group" or scale is not None or shift is not None or activation or weight is None:
        return None
    if not _plain(x, weight, bias) or (kind == "rms" and bias is not None):
        return None
    constants = {"w": weight} | ({} if bias is None else {"b": bias})
    op = "LayerNormalization" if kind == "layer" else "RMSNormalization"
    return _run([helper.make_node(op, ["x", *constants], ["y"], axis=-1, epsilon=eps)], {"x": x}, constants, x.shape)
