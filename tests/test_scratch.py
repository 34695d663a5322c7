"""Scratch is a tile a thread, never S x S: a long attention adds little to the process's memory."""

import subprocess
import sys

import pytest

from hexad_kernels import native

CODE = """
import resource, torch, hexad_kernels
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
q, k, v = (torch.randn(1, 1, 32768, 64) for _ in range(3))
hexad_kernels.attention(q[:, :, :64], k[:, :, :64], v[:, :, :64])
before = peak()
hexad_kernels.attention(q, k, v, causal=True, window=1024)
hexad_kernels.attention(q[:, :, :512], k, v)
hexad_kernels.decode(q[:, :, 0], k, v, torch.tensor([32768], dtype=torch.int32))
print(peak() - before)
"""


@pytest.mark.skipif(native.C is None, reason=native.missing)
def test_attention_over_32k_keys_needs_no_square():
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    # The outputs are 8 MB; the scores alone would be 64 MB for 512 rows, and 4 GB for all.
    assert float(ran.stdout) < 40
