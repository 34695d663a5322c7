"""Weights of linear rearranged for the CPU's kernels, as they are or in 8 or 4 bits.

A panel holds 16 rows of the weight side by side, one row to a lane of a vector, input after input, so that a kernel
reads memory in one direction and a sum never crosses lanes. `panels` is (ceil(rows / 16), words) int32:

    float32    16 words per input
    bfloat16   16 words per 2 inputs, the even one in the low half
    int8       16 float32 scales, then 16 words per 4 inputs, a byte each
    int4       per 32 inputs 16 words of scale (low half, bfloat16) and minimum (high half), then 16 words per 8 inputs:
               input j < 4 in the low half of byte j, input 4 + j in its high half

    int8       w = scale (q - 128),  scale = max |row| / 127,  q = round(w / scale) + 128
    int4       w = scale q + minimum,  q from 0 to 15

Rows and inputs that a panel lacks are zeros that no result contains.

A PackedWeight takes the dense weight's place: nothing keeps both. It is made from a state_dict's tensor when a model
is loaded and is not itself a part of a state_dict: save the dense weight, or what `unpack()` gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hexad_kernels import arrays, check, memory

FORMS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
FLOAT, BFLOAT, INT8, INT4 = range(4)
LANES = 16
INT4_GROUP = 32


class PackedWeight:
    """A weight (rows, inputs) in panels; `linear` takes it in place of the tensor.

    panels   the memory, int32
    form     "float32", "bfloat16", "int8" or "int4"
    shape    of the dense weight
    dtype    of the dense weight, which `unpack` returns to
    error    |W - unpack| / |W|, Frobenius norms: 0 unless quantised
    nbytes   of the panels
    """

    def __init__(self, panels: Tensor, form: str, shape: Sequence[int], dtype: torch.dtype, error: float = 0.0):
        self.panels = check.tensor(panels, "panels", dtypes=(torch.int32,))
        self.form = form
        self.code = check.choice(form, "form", FORMS)
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.error = error

    @property
    def nbytes(self) -> int:
        return self.panels.numel() * 4

    @property
    def device(self) -> torch.device:
        return self.panels.device

    def unpack(self) -> Tensor:
        """The dense weight; of a quantised one, the weight that `linear` computes with."""
        return unpack(self.panels, self.code, *self.shape).to(self.dtype)

    def __repr__(self) -> str:
        rows, inputs = self.shape
        lossy = f", error {self.error:.2g}" if self.error else ""
        return f"PackedWeight({rows} x {inputs}, {self.form}, {self.nbytes} bytes{lossy})"


def panel_words(form: int, inputs: int) -> int:
    """Words in a panel."""
    if form == FLOAT:
        return LANES * inputs
    if form == BFLOAT:
        return LANES * -(-inputs // 2)
    if form == INT8:
        return LANES + LANES * -(-inputs // 4)
    return 5 * LANES * -(-inputs // INT4_GROUP)


def _padded(weight: Tensor, inputs: int) -> Tensor:
    """(panels, 16, inputs rounded up), with zeros where the weight ends."""
    rows, columns = weight.shape
    grow = (0, -columns % inputs, 0, -rows % LANES)
    padded = torch.nn.functional.pad(weight, grow) if any(grow) else weight
    return padded.reshape(padded.shape[0] // LANES, LANES, padded.shape[1])


def _words(panels: Tensor) -> Tensor:
    return panels.contiguous().view(torch.int32).flatten(1)


def _empty(weight: Tensor, form: int) -> Tensor:
    rows, inputs = weight.shape
    return weight.new_zeros((-(-rows // LANES), panel_words(form, inputs)), dtype=torch.int32)


def _dense(weight: Tensor) -> Tensor:
    weight = arrays.tensor(weight, "weight")
    check.tensor(weight, "weight", rank=2, dtypes=(torch.float32, torch.bfloat16))
    check.dense(weight, "weight")
    return weight.detach()


def pack(weight: Tensor) -> PackedWeight:
    """`weight` (rows, inputs), float32 or bfloat16, in panels: the same numbers in another order.

    `linear` gives the same bits with it as with the dense weight, and sooner.
    """
    weight = _dense(weight)
    form = check.names([weight.dtype])
    if not weight.numel():
        panels = _empty(weight, FORMS[form])
    elif weight.dtype == torch.float32:
        panels = _words(_padded(weight, 1).transpose(1, 2))
    else:
        panels = _words(_padded(weight, 2).unflatten(2, (-1, 2)).transpose(1, 2))
    return PackedWeight(memory.on_large_pages(panels), form, weight.shape, weight.dtype)


def quantize(weight: Tensor, form: str) -> PackedWeight:
    """`weight` (rows, inputs), float32 or bfloat16, rounded to "int8" or "int4" and packed; `.error` says how far off.

    int8 has a scale per row; int4 a scale and a minimum per 32 inputs of a row (5 bits per weight in all).
    ValueError if the weight has NaN or infinity.
    """
    code = check.choice(form, "form", {"int8": INT8, "int4": INT4})
    weight = _dense(weight)
    if weight.is_meta:
        raise ValueError("weight: is on meta, wants numbers")
    if not torch.isfinite(weight).all():
        raise ValueError("weight: has NaN or infinity, wants finite numbers")
    panels = (_int8 if code == INT8 else _int4)(weight.float()) if weight.numel() else _empty(weight, code)
    packed = PackedWeight(memory.on_large_pages(panels), form, weight.shape, weight.dtype)
    exact = weight.double()
    size = exact.norm().item()
    off = (unpack(panels, code, *weight.shape).double() - exact).norm().item()
    packed.error = off / size if size else off
    if not packed.error < torch.inf:
        raise ValueError("weight: spans more than float32 holds, wants smaller numbers")
    return packed


def _int8(weight: Tensor) -> Tensor:
    w = _padded(weight, 4)
    scale = w.abs().amax(2) / 127
    # Rows too small for float32 to divide by become zeros.
    scale = torch.where(scale > 1e-36, scale, 1.0)
    q = (w / scale[..., None]).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    header = scale.contiguous().view(torch.int32)
    return torch.cat([header, _words(q.unflatten(2, (-1, 4)).transpose(1, 2))], 1)


def _int4(weight: Tensor) -> Tensor:
    w = _padded(weight, INT4_GROUP).unflatten(2, (-1, INT4_GROUP)).transpose(1, 2)
    least, most = w.amin(3).bfloat16(), w.amax(3)
    # The scale that covers the group from the rounded minimum on, rounded up lest the largest be cut off.
    scale = ((most - least.float()).clamp_(min=0) / 15 * (1 + 2**-9)).bfloat16()
    scale = torch.where(scale > 1e-36, scale, 1.0)
    q = ((w - least.float()[..., None]) / scale.float()[..., None]).round_().clamp_(0, 15).to(torch.uint8)
    eights = q.unflatten(3, (4, 2, 4))
    body = (eights[..., 0, :] | eights[..., 1, :] << 4).transpose(2, 3).contiguous().view(torch.int32)
    header = torch.stack([scale, least], -1).view(torch.int32)
    return torch.cat([header.reshape(*header.shape[:2], 1, LANES), body.flatten(4).squeeze(-1)], 2).flatten(1)


def unpack(panels: Tensor, form: int, rows: int, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dense weight (rows, inputs) that panels hold."""
    count = panels.shape[0]
    if not rows * inputs:
        return panels.new_zeros((rows, inputs), dtype=dtype)
    if form == FLOAT:
        w = panels.view(torch.float32).view(count, inputs, LANES).transpose(1, 2).to(dtype)
    elif form == BFLOAT:
        w = panels.view(torch.bfloat16).view(count, -(-inputs // 2), LANES, 2).transpose(1, 2).to(dtype)
    elif form == INT8:
        scale = panels[:, :LANES].contiguous().view(torch.float32).to(dtype)
        q = panels[:, LANES:].contiguous().view(torch.uint8).view(count, -(-inputs // 4), LANES, 4).transpose(1, 2)
        w = (q.to(dtype) - 128) * scale[:, :, None, None]
    else:
        blocks = panels.view(count, -(-inputs // INT4_GROUP), 5, LANES)
        scale, least = blocks[:, :, 0].contiguous().view(torch.bfloat16).unflatten(2, (LANES, 2)).to(dtype).unbind(3)
        body = blocks[:, :, 1:].contiguous().view(torch.uint8).unflatten(3, (LANES, 4)).transpose(2, 3)
        q = torch.stack([body & 15, body >> 4], -2)
        w = q.to(dtype) * scale[..., None, None, None] + least[..., None, None, None]
        w = w.transpose(1, 2)
    return w.reshape(count * LANES, -1)[:rows, :inputs]
