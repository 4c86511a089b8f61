"""Backends for tests of what stands above them: a tiny random network with a real tokenizer, and one that fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qwenkit.backends.base import BackendInfo
from qwenkit.backends.local import LocalBackend
from qwenkit.backends.options import LocalOptions
from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.cache.paged import PAGE_SIZE, page_bytes
from qwenkit.chat.template import choose_template
from qwenkit.config.model import RopeConfig
from qwenkit.core.errors import NumericsError
from qwenkit.core.types import Delta, Request, SamplingParams
from qwenkit.tokenizer.base import Tokenizer
from tests.support.networks import family_config, random_network

GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)

EVERY_SETTING = SamplingParams(
    max_tokens=9,
    min_tokens=2,
    temperature=0.5,
    top_k=4,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.1,
    frequency_penalty=0.2,
    presence_penalty=0.3,
    logit_bias={5: 1.5},
    bad_words=("no",),
    allowed_token_ids=(1, 2),
    seed=3,
    stop=("x",),
    stop_token_ids=(8,),
    ignore_eos=True,
    include_stop=True,
    skip_special_tokens=False,
    logprobs=2,
)
"""None of them as it is without."""


def tiny_backend(
    tokenizer: Tokenizer,
    *,
    context_length: int = 512,
    defaults: SamplingParams = GREEDY,
    eos: Sequence[int] = (),
    padding: int = 0,
    cache_tokens: int = 16384,
    **options: Any,
) -> LocalBackend:
    """A random network behind the tokenizer's own chat template; ``padding`` more ids than the tokenizer has."""
    config = family_config(
        "llama",
        vocab_size=tokenizer.vocab_size + padding,
        hidden_size=32,
        num_heads=4,
        head_dim=8,
        ffn_size=48,
        context_length=context_length,
        rope=RopeConfig(base=10000.0, dim=8),
        tie_embeddings=True,
    )
    network = random_network(config)
    info = BackendInfo(
        model="tiny",
        family="llama",
        context_length=context_length,
        vocab_size=config.vocab_size,
        dtype="float32",
        device="cpu",
        can_chat=True,
        max_window_size=context_length * 3 // 4,
        defaults=defaults,
    )
    template = choose_template(None, tokenizer)
    int8 = options.get("kv_cache") == "int8"
    memory = cache_tokens // PAGE_SIZE * page_bytes(config, network.dtype, int8)
    return LocalBackend(
        network,
        info,
        tokenizer=tokenizer,
        template=template,
        eos_ids=eos,
        options=LocalOptions(cache_memory=memory, **options),
    )


class FailingBackend(ScriptedBackend):
    """Says its script until ``fails_after`` deltas of a request, then raises; None never fails."""

    fails_after: int | None = None

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        for count, delta in enumerate(super().stream(requests)):
            if count == self.fails_after:
                raise NumericsError("the numbers are gone")
            yield delta
