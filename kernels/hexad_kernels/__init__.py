"""Kernels of generative models as plain functions on tensors, each with a plain torch reference beside it."""

from hexad_kernels.coupling import coupling
from hexad_kernels.linear import linear
from hexad_kernels.maskedconv import maskedconv
from hexad_kernels.native import cmake_prefix, machine
from hexad_kernels.norm import norm
from hexad_kernels.op import BACKENDS, OPS, BackendError, Explanation, backend, explain
from hexad_kernels.vq import vq

__all__ = [
    "BACKENDS",
    "OPS",
    "BackendError",
    "Explanation",
    "backend",
    "cmake_prefix",
    "coupling",
    "explain",
    "linear",
    "machine",
    "maskedconv",
    "norm",
    "vq",
]
