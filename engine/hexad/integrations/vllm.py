"""hexad in vLLM: a general plugin that registers an attention backend and an implementation of its IR's rms_norm.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). Then
`attention_backend="CUSTOM"` picks hexad's attention on a GPU; on the CPU, where vLLM takes its own backend whatever is
asked for, HEXAD_VLLM_CPU=1 in the environment puts hexad's in that one's place. `rms_norm` is used where the
configuration's IR op priority names the provider "hexad".
"""

import os
from typing import Optional

import torch
from torch import Tensor

import hexad_kernels as hk
from hexad.integrations.host import check_version

LOWEST, BELOW = "0.33", "0.34"
BACKEND = "hexad.integrations.vllm_attention.HexadAttentionBackend"
PROVIDER = "hexad"


def register() -> None:
    """Enters hexad into vLLM's registries. Again is harmless."""
    check_version("vllm", LOWEST, BELOW)
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
    if os.environ.get("HEXAD_VLLM_CPU") == "1":
        register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
    from vllm import ir

    if PROVIDER not in ir.ops.rms_norm.impls:
        ir.ops.rms_norm.register_impl(PROVIDER, supported=True, supports_args=norm_serves)(rms_norm)


# Without the future import: torch.library reads these annotations as types.
def norm_serves(x: Tensor, weight: Optional[Tensor], epsilon: float, variance_size: Optional[int] = None) -> bool:  # noqa: UP045
    """Whole rows on the CPU, in the dtypes of the kernel."""
    return (
        variance_size is None
        and x.is_cpu
        and x.dtype in (torch.float32, torch.bfloat16)
        and (weight is None or weight.dtype == x.dtype)
    )


def rms_norm(x: Tensor, weight: Optional[Tensor], epsilon: float, variance_size: Optional[int] = None) -> Tensor:  # noqa: UP045
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, rounded once."""
    if not norm_serves(x, weight, epsilon, variance_size):
        raise ValueError("rms_norm: hexad serves float32 and bfloat16 on the CPU, without variance_size")
    return hk.norm(x, weight, kind="rms", eps=epsilon)
