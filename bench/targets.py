"""What the CPU kernels are to reach: data, one row per promise; the report puts the run's figures beside it.

A target names an op, some of its cases and a figure of theirs: "roof", the fraction of the roof that bounds the case;
"memory", the fraction of memory's roof, whatever bounds it; "vs_eager", "vs_compile", the ratio to torch; "vs_other",
the ratio to what the case names; "seconds". The worst of its cases counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

FIGURES = {
    "roof": "roof_fraction",
    "memory": "memory_fraction",
    "vs_eager": "vs_eager",
    "vs_compile": "vs_compile",
    "vs_other": "vs_other",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Target:
    work: str
    op: str
    cases: str  # patterns, separated by blanks
    dtype: str
    figure: str
    bound: float

    @property
    def upper(self) -> bool:
        """Whether the bound is an upper one."""
        return self.figure == "seconds"

    def rows(self, found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            r
            for r in found
            if r["op"] == self.op
            and fnmatch(r["dtype"], self.dtype)
            and any(fnmatch(r["case"], pattern) for pattern in self.cases.split())
            and r.get(FIGURES[self.figure]) == r.get(FIGURES[self.figure])  # torch has no such form: NaN
        ]

    def worst(self, found: Iterable[dict[str, Any]]) -> float | None:
        values = [r[FIGURES[self.figure]] for r in self.rows(found) if FIGURES[self.figure] in r]
        return (max(values) if self.upper else min(values)) if values else None

    def met(self, value: float) -> bool:
        return value <= self.bound if self.upper else value >= self.bound

    def show(self, value: float) -> str:
        if self.figure in ("roof", "memory"):
            return f"{100 * value:.0f} %"
        return f"{1e6 * value:.1f} us" if self.figure == "seconds" else f"{value:.2f} x"


F, H = "float32", "bfloat16"
TARGETS = [
    Target(
        "attention, float32, heads of 64 and 128",
        "attention",
        "gpt_prefill full_128 llama_*",
        F,
        "roof",
        0.70,
    ),
    Target("attention, float32, full", "attention", "full_128", F, "vs_eager", 2.5),
    Target("attention, float32, causal", "attention", "gpt_prefill llama_prefill", F, "vs_eager", 3.2),
    Target("attention, float32, other heads and short", "attention", "dit short dim_*", F, "vs_eager", 2.2),
    Target("attention, bfloat16", "attention", "gpt_prefill full_128 llama_*", H, "roof", 0.55),
    Target("attention, bfloat16, full", "attention", "full_128", H, "vs_eager", 3.5),
    Target("attention, bfloat16, causal", "attention", "gpt_prefill llama_prefill", H, "vs_eager", 4.5),
    *(
        Target(f"attention, {dtype}, {case}, per computed tile", "attention_option", case, dtype, "vs_other", 0.85)
        for dtype in (F, H)
        for case in (
            "mask_bool",
            "mask_bool_blocks",
            "mask_bias",
            "softcap",
            "alibi",
            "sinks",
            "window",
            "causal",
            "grouped",
            "varlen",
        )
    ),
    Target("attention, float16 against float32", "attention_option", "float16*", "float16", "vs_other", 1.0),
    Target("attention, float32, avx2", "avx2", "attention_[!b]*", F, "roof", 0.75),
    Target("attention backward", "attention_backward", "*", "*", "vs_eager", 3.0),
    Target("decode, float32 and bfloat16", "decode", "gpt llama_alone llama_paged group_8", "*", "memory", 0.85),
    Target("decode, int8 cache, groups of 4", "decode", "llama_paged_int8", F, "memory", 0.85),
    Target("linear, one row, packed float32", "linear_packed", "float32_token", "*", "memory", 0.92),
    Target("linear, one row, packed bfloat16", "linear_packed", "bfloat16_token", "*", "memory", 0.92),
    Target("linear, one row, int8", "linear_packed", "int8_token", "*", "memory", 0.85),
    Target("linear, one row, int4", "linear_packed", "int4_token", "*", "memory", 0.75),
    Target("linear, 512 rows, packed float32", "linear_packed", "float32_prompt", F, "roof", 0.85),
    Target("linear, 512 rows, packed float32", "linear_packed", "float32_prompt", F, "vs_eager", 2.2),
    Target("linear, 512 rows, bfloat16", "linear", "prompt prompt_down", H, "vs_eager", 1.0),
    Target("linear, 512 rows, int8 against bfloat16", "linear_relation", "int8_512*", H, "vs_other", 1.5),
    Target("linear, int4, 8 rows against 1", "linear_relation", "int4_8*", F, "vs_other", 1 / 1.4),
    Target("linear, float32, avx2", "avx2", "linear_*", F, "roof", 0.75),
    Target("coupling out of cache", "coupling", "large large_inverse", F, "memory", 0.85),
    Target("coupling, every size", "coupling", "*", F, "vs_eager", 4.0),
    Target("coupling, every size", "coupling", "*", F, "vs_compile", 1.3),
    Target("step, every size", "step", "*", F, "vs_compile", 1.0),
    Target("step out of cache", "step", "large", F, "memory", 0.85),
    Target("guided step, against diffusers", "guided_step", "*", F, "vs_other", 8.0),
    Target("Glow step, against normflows", "glow_step", "*", F, "vs_other", 4.0),
    Target("norm out of cache", "norm", "large*", F, "memory", 0.85),
    Target("norm", "norm", "*", F, "vs_eager", 2.0),
    Target("rope out of cache", "rope", "large", F, "memory", 0.85),
    Target("rope", "rope", "*", F, "vs_eager", 2.0),
    Target("sample, 150 k tokens", "sample", "large_vocabulary_*", F, "seconds", 150e-6),
    Target("vq", "vq", "*", F, "vs_eager", 2.0),
    Target("winograd, against conv2d", "winograd", "*", F, "vs_eager", 1.5),
    Target("PixelCNN, 16 images of 32x32", "pixelcnn", "sample*", F, "vs_eager", 500.0),
    Target("a small call of three tensors", "overhead", "norm linear invconv", F, "seconds", 4e-6),
    Target("a small call, against torch", "overhead", "norm linear invconv", F, "vs_eager", 1.0),
    Target("every shape of the tests, against torch", "overhead", "every_shape", F, "vs_eager", 1.0),
    Target("taking turns with torch", "overhead", "turns", F, "vs_eager", 0.9),
]
