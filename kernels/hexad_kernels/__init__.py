"""Kernels of generative models as plain functions on tensors, each with a plain torch reference beside it."""

from hexad_kernels.append_kv import append_kv
from hexad_kernels.attention import attention
from hexad_kernels.attention_backward import attention_backward
from hexad_kernels.attention_varlen import attention_varlen
from hexad_kernels.coupling import coupling
from hexad_kernels.coupling_backward import coupling_backward
from hexad_kernels.decode import decode
from hexad_kernels.gated_pixelcnn import (
    PixelCNNLayer,
    PixelCNNReadOut,
    gated_pixelcnn,
    gated_pixelcnn_cache,
    pack_gated_pixelcnn,
)
from hexad_kernels.invconv import invconv
from hexad_kernels.linear import linear
from hexad_kernels.linear_packed import linear_packed
from hexad_kernels.maskedconv import maskedconv
from hexad_kernels.merge_attention import merge_attention
from hexad_kernels.native import cmake_prefix, machine
from hexad_kernels.norm import norm
from hexad_kernels.op import BACKENDS, OPS, BackendError, Explanation, backend, explain
from hexad_kernels.pack import PackedWeight, pack, quantize
from hexad_kernels.randn import randn
from hexad_kernels.rope import rope
from hexad_kernels.sample import sample
from hexad_kernels.step import step
from hexad_kernels.vq import vq
from hexad_kernels.winograd import pack_winograd, winograd

__all__ = [
    "BACKENDS",
    "OPS",
    "BackendError",
    "Explanation",
    "PackedWeight",
    "PixelCNNLayer",
    "PixelCNNReadOut",
    "append_kv",
    "attention",
    "attention_backward",
    "attention_varlen",
    "backend",
    "cmake_prefix",
    "coupling",
    "coupling_backward",
    "decode",
    "explain",
    "gated_pixelcnn",
    "gated_pixelcnn_cache",
    "invconv",
    "linear",
    "linear_packed",
    "machine",
    "maskedconv",
    "merge_attention",
    "norm",
    "pack",
    "pack_gated_pixelcnn",
    "pack_winograd",
    "quantize",
    "randn",
    "rope",
    "sample",
    "step",
    "vq",
    "winograd",
]
