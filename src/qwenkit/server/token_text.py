"""Between tokens and text where no template is at work: raw prompts, single tokens, log-probabilities. Knows no protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenkit.core.errors import TokenizerError
from qwenkit.core.types import TokenLogprob
from qwenkit.tokenizer.base import Tokenizer


def encode_raw(tokenizer: Tokenizer | None, text: str, *, add_special: bool = True) -> Sequence[int]:
    """Token ids of text that no template goes around; the start token comes first where the model wants one.

    Raises:
        TokenizerError: there is no tokenizer.
    """
    if tokenizer is None:
        raise TokenizerError("the model has no tokenizer here; send token ids instead of text")
    ids = tokenizer.encode(text)
    bos = tokenizer.bos_token_id
    return [bos, *ids] if add_special and tokenizer.add_bos and bos is not None else ids


def token_bytes(tokenizer: Tokenizer | None, token_id: int) -> bytes:
    """The bytes of a token; its number where there is no tokenizer that knows it."""
    if tokenizer is None or not 0 <= token_id < tokenizer.vocab_size:
        return f"<{token_id}>".encode()
    try:
        return tokenizer.token_bytes(token_id)
    except ValueError:  # embeddings may have rows that the tokenizer has no token for
        return f"<{token_id}>".encode()


def chat_logprobs(
    tokenizer: Tokenizer | None, logprobs: Sequence[TokenLogprob | None]
) -> list[dict[str, Any] | None]:
    """Log-probabilities as the chat format has them."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(tokenizer, token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(data)}

    def report(p: TokenLogprob) -> dict[str, Any]:
        return {**entry(p.token_id, p.logprob), "top_logprobs": [entry(i, value) for i, value in p.top]}

    return [None if p is None else report(p) for p in logprobs]


def finite(logprob: float) -> float:
    """JSON has no infinity; the value that stands for it among servers."""
    return max(logprob, -9999.0)
