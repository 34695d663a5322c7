"""hexad in SGLang: a plugin that registers an attention backend; `--attention-backend hexad` picks it.

SGLang calls `register` where its plugins load (entry point group `sglang.srt.plugins`). Its cache has a slot a token,
which is a page of one to hexad: a batch of single tokens is decoded in place.
"""

from __future__ import annotations

from typing import Any

from hexad.integrations.host import check_version

LOWEST, BELOW = "0.5.20", "0.6"
NAME = "hexad"


class Unsupported(NotImplementedError):
    """SGLang asks for something that hexad's attention does not do; nothing was computed."""


def register() -> None:
    """Enters hexad into SGLang's registry and the choices of its command line. Again is harmless."""
    check_version("sglang", LOWEST, BELOW)
    from sglang.srt import server_args
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    register_attention_backend(NAME)(backend)
    if NAME not in server_args.ATTENTION_BACKEND_CHOICES:
        server_args.add_attention_backend_choices([NAME])


def backend(runner: Any) -> Any:
    """The backend of a model runner. Raises Unsupported for models with latent attention (MLA)."""
    if getattr(runner, "use_mla_backend", False):
        raise Unsupported("use_mla_backend: hexad's backend has no latent attention")
    from hexad.integrations.sglang_attention import HexadAttnBackend

    return HexadAttnBackend(runner)
