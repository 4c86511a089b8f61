"""Vectors of texts, whatever protocol asks: the mean of a language model's last hidden states. Knows no protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.service import Service
from qwenkit.server.token_text import encode_raw


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector per text."""

    vectors: list[list[float]]
    tokens: int
    """Of all texts together."""


async def embed_prompts(
    service: Service, http: HttpRequest, model: str | None, prompts: Sequence[str | list[int]], name: str
) -> Vectors:
    """The vectors of texts or token ids.

    Args:
        service: shared state of the server.
        http: the request, its body read.
        model: what the client calls the model.
        prompts: none of them empty.
        name: of the client's field that holds them.

    Raises:
        ApiError: the model is an adapter or not served, or an id is not in the vocabulary.
        QwenkitError: a text is too long.
    """
    if service.adapter_of(model) is not None:
        raise refuse("embeddings are of the model itself; name it instead of an adapter", "model")
    watch = service.watch(http.receive)
    try:
        return await watch.run(_embed(service, prompts, name, Exchange.of(http.scope)))
    finally:
        watch.close()


async def _embed(
    service: Service, prompts: Sequence[str | list[int]], name: str, exchange: Exchange
) -> Vectors:
    tokenizer = service.backend.tokenizer
    ids = await service.prepare(
        lambda: [encode_raw(tokenizer, p) if isinstance(p, str) else p for p in prompts]
    )
    limit = service.backend.info.vocab_size
    for one in ids:
        if any(not 0 <= i < limit for i in one):
            raise refuse(f"{name} holds an id outside 0 to {limit - 1}; use ids of this model", name)
    tokens = sum(map(len, ids))
    exchange.count(tokens, 0)
    vectors = await service.compute(service.backend.embed, ids)
    if any(value != value for vector in vectors for value in vector):
        raise ApiError(500, "the vectors hold NaN; load the model with --dtype float32", code="engine_error")
    return Vectors(vectors, tokens)
