"""The endpoint of vLLM's demo server: from its sampling keys to a request and back."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.core.types import Request, SamplingParams
from qwenkit.server.answering import stream_answer, whole_answer
from qwenkit.server.bodies import refuse_fields
from qwenkit.server.errors import refuse
from qwenkit.server.sampling import (
    check_limit,
    check_token_ids,
    either,
    make_sampling,
    read_logit_bias,
    read_top_k,
)
from qwenkit.server.service import Service
from qwenkit.server.sse import LINES
from qwenkit.server.token_text import encode_raw
from qwenkit.server.vllm_demo.reply import DemoCollector, DemoEncoder
from qwenkit.server.vllm_demo.schema import REFUSED, DemoBody

_DEFAULT_MAX_TOKENS = 16
"""As vLLM's settings say."""
_DELIMITERS = {"nul": (b"\0", "application/octet-stream"), "newline": (b"\n", LINES)}
"""What ends the values of a stream: the first in vLLM up to 0.6.3, the second since then."""


async def answer(http: HttpRequest, body: DemoBody) -> Response:
    """Continues a text, at once or as a stream.

    Raises:
        ApiError: it cannot be honoured.
    """
    service: Service = http.app.state.service
    refuse_fields(body, REFUSED)
    delimiter, media_type = _delimiter(http)
    count = either(body.n, 1)
    params = _sampling(body, service.backend.info.vocab_size)

    def build() -> list[Request]:
        return [Request(prompt=tuple(encode_raw(service.backend.tokenizer, body.prompt)), params=params)]

    if body.stream:
        encoder = partial(DemoEncoder, body.prompt, delimiter)
        return await stream_answer(service, http, build, encoder, media_type)
    return await whole_answer(service, http, build, partial(DemoCollector, body.prompt, count))


def _delimiter(http: HttpRequest) -> tuple[bytes, str]:
    name = http.query_params.get("delimiter", "nul")
    if name not in _DELIMITERS:
        raise refuse(f"delimiter={name!r:.40} is unknown; use nul or newline", "delimiter", "invalid_value")
    return _DELIMITERS[name]


def _sampling(body: DemoBody, vocab_size: int) -> SamplingParams:
    """The engine's settings; what is not given is off, whatever the model's own settings say."""
    count, best_of = either(body.n, 1), either(body.best_of, either(body.n, 1))
    if best_of < count:
        raise refuse(f"best_of={best_of} is less than n={count}; raise it, or leave it out", "best_of")
    if best_of > count and body.stream:
        sentence = f"best_of={best_of} with n={count} cannot be streamed; leave one of best_of and stream out"
        raise refuse(sentence, "best_of")
    return make_sampling(
        {"include_stop": "include_stop_str_in_output", "n": "n" if body.best_of is None else "best_of"},
        n=best_of,
        max_tokens=either(check_limit("max_tokens", body.max_tokens), _DEFAULT_MAX_TOKENS),
        min_tokens=either(body.min_tokens, 0),
        temperature=either(body.temperature, 1.0),
        top_k=read_top_k(either(body.top_k, 0)),
        top_p=either(body.top_p, 1.0),
        min_p=either(body.min_p, 0.0),
        repetition_penalty=either(body.repetition_penalty, 1.0),
        frequency_penalty=either(body.frequency_penalty, 0.0),
        presence_penalty=either(body.presence_penalty, 0.0),
        logit_bias=read_logit_bias(body.logit_bias or {}, vocab_size),
        bad_words=tuple(body.bad_words or ()),
        allowed_token_ids=check_token_ids("allowed_token_ids", body.allowed_token_ids, vocab_size),
        seed=body.seed,
        stop=body.stop,
        stop_token_ids=check_token_ids("stop_token_ids", body.stop_token_ids, vocab_size) or (),
        ignore_eos=either(body.ignore_eos, False),
        include_stop=either(body.include_stop_str_in_output, False),
        skip_special_tokens=either(body.skip_special_tokens, True),
        logprobs=0 if best_of > count else None,
    )
