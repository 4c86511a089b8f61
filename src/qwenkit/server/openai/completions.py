"""POST /v1/completions: texts or token ids are continued as they are."""

from __future__ import annotations

import time
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.core.types import Request
from qwenkit.server.answering import stream_answer, whole_answer
from qwenkit.server.bodies import read_body
from qwenkit.server.errors import refuse
from qwenkit.server.openai.completion_reply import CompletionCollector, CompletionEncoder, CompletionShape
from qwenkit.server.openai.fields import check_refused, constraint_of, sampling_params
from qwenkit.server.openai.schema import CompletionBody, Prompts
from qwenkit.server.openai.shapes import fingerprint
from qwenkit.server.sampling import check_logprobs, either
from qwenkit.server.service import Service
from qwenkit.server.token_text import encode_raw

MAX_PROMPTS = 2048
_DEFAULT_MAX_TOKENS = 16
"""As the protocol says."""


async def completions(http: HttpRequest) -> Response:
    """Continues prompts, at once or as a stream."""
    service: Service = http.app.state.service
    body = await read_body(http, CompletionBody, service.options.max_body_bytes)
    plan = CompletionPlan(body, service)
    if body.stream:
        return await stream_answer(service, http, plan.build, partial(CompletionEncoder, plan.shape))
    return await whole_answer(service, http, plan.build, partial(CompletionCollector, plan.shape))


class CompletionPlan:
    """What one body asks for.

    Args:
        body: the request.
        service: shared state of the server.

    Raises:
        ApiError: it cannot be honoured.
    """

    def __init__(self, body: CompletionBody, service: Service) -> None:
        check_refused(body)
        self._body, self._backend = body, service.backend
        self._adapter = service.adapter_of(body.model)
        self._prompts = split_prompts(body.prompt, "prompt")
        self._check(body)
        options = body.stream_options
        info = service.backend.info
        logprobs = check_logprobs("logprobs", body.logprobs)
        echo = either(body.echo, False)
        prompt_logprobs = check_logprobs("prompt_logprobs", body.prompt_logprobs)
        self._params = sampling_params(
            body,
            max_tokens=either(body.max_tokens, _DEFAULT_MAX_TOKENS),
            logprobs=logprobs,
            prompt_logprobs=logprobs if echo and prompt_logprobs is None else prompt_logprobs,
            constraint=constraint_of(body),
            vocab_size=info.vocab_size,
        )
        self.shape = CompletionShape(
            model=body.model or service.names[0],
            created=int(time.time()),
            fingerprint=fingerprint(info),
            tokenizer=service.backend.tokenizer,
            texts=tuple(p if isinstance(p, str) else None for p in self._prompts),
            n=self._params.n,
            echo=echo,
            has_logprobs=logprobs is not None,
            has_prompt_logprobs=prompt_logprobs is not None,
            include_usage=options is not None and either(options.include_usage, False),
        )

    @staticmethod
    def _check(body: CompletionBody) -> None:
        if body.best_of is not None and body.best_of != either(body.n, 1):
            sentence = f"best_of={body.best_of} is not offered; leave it out, or use the value of n"
            raise refuse(sentence, "best_of", "unsupported_field")
        if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
            sentence = "max_tokens=0 only makes sense with echo or prompt_logprobs; use a number from 1 up"
            raise refuse(sentence, "max_tokens", "invalid_value")
        if body.echo and body.prompt_logprobs not in (None, body.logprobs):
            raise refuse(
                "with echo, logprobs speaks for the prompt too; leave prompt_logprobs out", "prompt_logprobs"
            )

    def build(self) -> list[Request]:
        """The requests for the engine.

        Raises:
            QwenkitError: a prompt cannot be encoded.
        """
        encode = partial(
            encode_raw, self._backend.tokenizer, add_special=self._body.add_special_tokens is not False
        )
        prompts = [tuple(encode(p)) if isinstance(p, str) else tuple(p) for p in self._prompts]
        return [Request(prompt=ids, params=self._params, adapter=self._adapter) for ids in prompts]


def split_prompts(given: Prompts, field: str) -> list[str | list[int]]:
    """The prompts of a request, however they were given.

    Raises:
        ApiError: there is none, one is empty, or there are too many.
    """
    if isinstance(given, str):
        prompts: list[str | list[int]] = [given]
    elif given and isinstance(given[0], int):
        prompts = [[i for i in given if isinstance(i, int)]]
    else:
        prompts = [p for p in given if not isinstance(p, int)]
    if not prompts or any(not p for p in prompts):
        raise refuse(
            f"{field} is empty, or holds an empty one; give text or token ids", field, "invalid_value"
        )
    if len(prompts) > MAX_PROMPTS:
        raise refuse(f"{field} holds {len(prompts)}; use at most {MAX_PROMPTS}", field, "invalid_value")
    return prompts
