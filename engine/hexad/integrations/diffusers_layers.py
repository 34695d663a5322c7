"""Layers of diffusers' models on hexad's kernels: linear maps with their activations, norms, DiT's blocks.

As in `optimize`, a replacement is a function bound to the host's module as its forward; classes, parameters and
state_dict stay, and where hexad must not serve (gradients, autocast, other dtypes) the host's forward runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hexad_kernels as hk
from hexad.integrations import convolutions, layers
from hexad.integrations.diffusers_attention import Processor
from hexad.integrations.layers import LANES, State, host_serves, operand

# Classes of a linear map whose second half gates the first.
GATES = {"GEGLU": "gelu_gate", "SwiGLU": "silu_gate"}


def group_norm(self: Any, x: Tensor) -> Tensor:
    if host_serves(x, self.weight, self.bias):
        return type(self).forward(self, x)
    return hk.norm(x, self.weight, self.bias, kind="group", eps=self.eps, num_groups=self.num_groups)


def activated(self: Any, x: Tensor) -> Tensor:
    """act(W x + b)"""
    project = self.proj
    if host_serves(x, project.weight):
        return type(self).forward(self, x)
    return hk.linear(x, operand(project._hexad, project), project.bias, activation=self._hexad.activation)


def gated(self: Any, x: Tensor) -> Tensor:
    """The first half of W x + b, times the activated second."""
    project, state = self.proj, self._hexad
    if host_serves(x, project.weight):
        return type(self).forward(self, x)
    return hk.linear(x, *_gates_first(state, project), activation=state.activation)


def _gates_first(state: State, project: Any) -> tuple[Any, Tensor | None]:
    """The weight and bias with their halves exchanged, as the kernel's gate wants them."""
    if not torch.compiler.is_compiling():
        parameters = [p for p in (project.weight, project.bias) if p is not None]
        key = layers.key_of(*parameters)
        if key != state.key:
            half = project.weight.shape[0] // 2
            weight, *bias = (torch.cat([p.detach()[half:], p.detach()[:half]]) for p in parameters)
            state.packed = layers.pack(state.weights, weight) if state.weights != "dense" else weight
            state.bias, state.key = bias[0] if bias else None, key
    return state.packed, state.bias


def timestep_embedding(self: Any, sample: Tensor, condition: Any = None) -> Tensor:
    """V silu(W x + b) + c"""
    first, second = self.linear_1, self.linear_2
    if condition is not None or host_serves(sample, first.weight):
        return type(self).forward(self, sample, condition)
    hidden = hk.linear(sample, operand(first._hexad, first), first.bias, activation="silu")
    return hk.linear(hidden, operand(second._hexad, second), second.bias)


def resnet(self: Any, input_tensor: Tensor, temb: Tensor, *args: Any, **asked: Any) -> Tensor:
    """ResnetBlock2D without resampling: each norm takes its SiLU along."""
    first, second, x = self.norm1, self.norm2, input_tensor
    if args or asked or self.training or host_serves(x, first.weight):
        return type(self).forward(self, x, temb, *args, **asked)
    kinds: dict[str, Any] = {"kind": "group", "activation": "silu"}
    y = hk.norm(x, first.weight, first.bias, eps=first.eps, num_groups=first.num_groups, **kinds)
    y = self.conv1(y)
    scale = shift = None
    if self.time_emb_proj is not None and temb is not None:
        time = self.time_emb_proj(temb if self.skip_time_act else F.silu(temb))
        if self.time_embedding_norm == "scale_shift":
            scale, shift = time.chunk(2, dim=1)
        else:
            y = y + time[:, :, None, None]
    y = hk.norm(
        y, second.weight, second.bias, eps=second.eps, num_groups=second.num_groups, scale=scale, shift=shift, **kinds
    )
    y = self.conv2(y)
    y = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y
    return y if self.output_scale_factor == 1 else y / self.output_scale_factor


def modulated_block(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    timestep: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    class_labels: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
) -> Tensor:
    """BasicTransformerBlock of a DiT: each norm with its scale and shift, each branch with its gate and sum."""
    x, first = hidden_states, self.norm1
    if cross_attention_kwargs or self._chunk_size is not None or host_serves(x, first.linear.weight):
        return type(self).forward(
            self, x, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, cross_attention_kwargs,
            class_labels, added_cond_kwargs,
        )  # fmt: skip
    x = x.contiguous()  # patches come transposed, and sums would hand that on
    time = first.linear(F.silu(first.emb(timestep, class_labels, hidden_dtype=x.dtype)))
    shift, scale, gate, shift_after, scale_after, gate_after = time.chunk(6, dim=1)
    y = hk.norm(x, eps=first.norm.eps, scale=scale, shift=shift)
    x = torch.addcmul(x, gate.unsqueeze(1), _attended(self.attn1, y, attention_mask))
    norm = self.norm3
    y = hk.norm(x, norm.weight, norm.bias, eps=norm.eps, scale=scale_after, shift=shift_after)
    return torch.addcmul(x, gate_after.unsqueeze(1), self.ff(y))


def _attended(attn: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """attn(x, attention_mask=mask), but for the processor's signature, which the host inspects at every call."""
    if type(attn.processor) is Processor and not _hooked(attn) and "forward" not in vars(attn):
        return attn.processor(attn, x, attention_mask=mask)
    return attn(x, attention_mask=mask)


_sinusoids: tuple[Any, ...] = (None, (), None, 0)  # times, what was asked of them, the answer and its version


def sinusoids(self: Any, timesteps: Tensor) -> Tensor:
    """Sines and cosines of times. Every block of a DiT asks for the same ones: the last answer is kept."""
    global _sinusoids
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or timesteps.is_inference():
        return type(self).forward(self, timesteps)
    asked = (timesteps._version, self.num_channels, self.flip_sin_to_cos, self.downscale_freq_shift, self.scale)
    times, before, answer, version = _sinusoids
    if times is not timesteps or before != asked or answer._version != version or answer.requires_grad:
        answer = type(self).forward(self, timesteps)
        _sinusoids = (timesteps, asked, answer, answer._version)
    return answer


def _plain_norm(module: Any) -> bool:
    return type(module) is nn.LayerNorm and len(module.normalized_shape) == 1


def _match(module: Any, winograd: bool) -> State | str:
    """What computes a module, or why it stays the host's."""
    kind, home = type(module).__name__, type(module).__module__
    if type(module) is nn.Linear:
        return State("linear", layers.linear)
    if type(module) is nn.LayerNorm and _plain_norm(module):
        return State(
            "layer norm", layers.layer_norm if module.weight is not None else layers.bare_layer_norm, eps=module.eps
        )
    if type(module) is nn.GroupNorm and module.affine:
        return State("group norm", group_norm)
    if type(module) is nn.Conv2d:
        if not convolutions.fits(module):
            return "a convolution with groups, dilation, another stride or size"
        return State("convolution", convolutions.fastest if winograd else convolutions.direct)
    if not home.startswith("diffusers.models."):
        return ""
    if kind == "GELU" and type(module.proj) is nn.Linear:
        name = "gelu_tanh" if module.approximate == "tanh" else "gelu"
        return State(f"linear and {name}", activated, activation=name)
    if kind == "LinearActivation" and type(module.activation).__name__ == "SiLU":
        return State("linear and silu", activated, activation="silu")
    if kind in GATES and type(module.proj) is nn.Linear and module.proj.out_features % (2 * LANES) == 0:
        return State(f"linear and {GATES[kind]}", gated, activation=GATES[kind])
    if kind == "Timesteps":
        return State("sinusoids", sinusoids)
    if kind == "TimestepEmbedding" and _embeds(module):
        return State("timestep embedding", timestep_embedding)
    if kind == "ResnetBlock2D" and _resnet_fits(module):
        return State("residual block", resnet)
    if kind == "BasicTransformerBlock" and _block_fits(module):
        return State("modulated block", modulated_block)
    return ""


def _embeds(module: Any) -> bool:
    linear = all(type(part) is nn.Linear for part in (module.linear_1, module.linear_2))
    return linear and type(module.act).__name__ == "SiLU" and module.post_act is None


def _resnet_fits(module: Any) -> bool:
    return (
        type(module.nonlinearity).__name__ == "SiLU"
        and module.upsample is None
        and module.downsample is None
        and all(type(norm) is nn.GroupNorm and norm.affine for norm in (module.norm1, module.norm2))
    )


def _block_fits(module: Any) -> bool:
    return (
        module.norm_type == "ada_norm_zero"
        and module.attn2 is None
        and module.pos_embed is None
        and not hasattr(module, "fuser")
        and module.norm1.emb is not None
        and _plain_norm(module.norm1.norm)
        and module.norm1.norm.weight is None
        and _plain_norm(module.norm3)
    )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def replace(
    model: nn.Module,
    weights: str,
    winograd: bool,
    put: Callable[[str, Any, State], None],
    keep: Callable[[str, str], None],
) -> None:
    """Give a model's layers their forwards by `put(place, module, state)`; `keep(place, why)` names the rest."""
    found: list[tuple[str, Any, State]] = []
    for place, module in model.named_modules():
        if "_hexad" in vars(module):
            continue
        state = _match(module, winograd)
        parameter = next(module.parameters(), None)
        if not isinstance(state, State):
            if state:
                keep(place, state)
        elif "forward" in vars(module):
            keep(place, "its forward was replaced by somebody else")
        elif parameter is not None and (not parameter.is_cpu or parameter.dtype not in layers.DTYPES):
            keep(place, f"{parameter.dtype} on {parameter.device}")
        elif any(_hooked(part) for part in module.modules() if part is not module):
            keep(place, "somebody hooked a part of it")
        else:
            state.weights = weights
            found.append((place, module, state))
    halves = {id(module.proj) for _, module, state in found if state.forward is gated}
    for place, module, state in found:
        put(place, module, state)
        if state.forward is gated:
            _gates_first(state, module.proj)
        elif state.forward is layers.linear and id(module) not in halves:
            operand(state, module)
