"""Arguments that are not quite right, for doors and contracts to compute or to refuse."""

import numpy as np
import torch
from torch import Tensor

INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 2**31 - 1, 2**40, 2**63 - 1)
NUMBERS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-45, 0.5, 1e38)


def bent(t, pick):
    """A tensor like `t`, but not quite."""
    d = pick.randrange(t.ndim) if t.ndim else 0
    choice = pick.randrange(12)
    if choice == 0 or t.ndim == 0:
        return None
    if choice == 1:
        return t.to(pick.choice((torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.bool)))
    if choice == 2:
        return pick.choice((t.unsqueeze(d), t.flatten(), t.select(d, 0) if t.shape[d] else t))
    if choice == 3:
        return t.narrow(d, 0, pick.randrange(t.shape[d] + 1))
    if choice == 4:
        return torch.cat([t, t], d)
    if choice == 5 and t.shape[d]:
        return t.narrow(d, 0, 1).expand(t.shape)
    if choice == 6 and t.numel():
        alone = t.narrow(d, 0, 1)
        return alone.expand(*t.shape[:d], 2**62 // alone.numel(), *t.shape[d + 1 :])
    if choice == 7 and t.shape[d]:
        alone = t.narrow(d, 0, 1)
        return alone.as_strided(alone.shape, [2**60 if i == d else s for i, s in enumerate(alone.stride())])
    if choice == 8 and t.ndim > 1:
        return t.transpose(d, d - 1)
    if choice == 9 and t.dtype in (torch.float32, torch.int32, torch.int64):
        return np.flip(t.clone().numpy(), d)
    if choice == 10:
        return t.new_zeros([2 * n for n in t.shape])[tuple(slice(None, None, 2) for _ in t.shape)].copy_(t)
    if t.dtype in (torch.int32, torch.int64) and t.numel():
        info = torch.iinfo(t.dtype)
        changed = t.clone()
        changed.view(-1)[pick.randrange(t.numel())] = pick.choice((info.min, -1, 0, 1, 7, 2**30, info.max))
        return changed
    return t


def bend(args, pick):
    args = [a.clone() if isinstance(a, Tensor) else a for a in args]
    for i in pick.sample(range(len(args)), pick.choice((1, 1, 2))):
        a = args[i]
        if isinstance(a, Tensor):
            args[i] = bent(a, pick)
        elif isinstance(a, int):
            args[i] = pick.choice(INTEGERS)
        elif isinstance(a, float):
            args[i] = pick.choice(NUMBERS)
    return args
