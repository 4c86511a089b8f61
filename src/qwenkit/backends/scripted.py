"""Backends without a model: fixed replies, or the prompt said back. They let every consumer be tested in milliseconds."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from qwenkit.backends.base import BackendInfo, EngineStats, Job, Sink
from qwenkit.chat.template import ChatTemplate
from qwenkit.core.errors import InputError, PromptTooLongError, QueueFullError
from qwenkit.core.types import Delta, FinishReason, Message, Request, SamplingParams, TokenLogprob, Usage
from qwenkit.tokenizer.base import Tokenizer

Script: TypeAlias = str | Sequence[str | Exception]
"""A reply: its text, or the very pieces it comes in, of which an exception ends it."""
_LOGPROB = -0.5
_UNIFORM = -5.545177444479562


class ScriptedBackend:
    """Answers request after request with the next text of a script, a few characters a delta.

    Args:
        replies: in order; the last one repeats. Each of a request's n replies takes one.
        chunk: characters a delta.
        tokenizer: lets prompts be counted and texts be encoded.
        template: says how tools and thoughts are written.
        delay: seconds before each delta.
        max_jobs: submitted requests that may run at once; None: any number.
    """

    def __init__(
        self,
        replies: Sequence[Script],
        *,
        chunk: int = 3,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
        delay: float = 0.0,
        max_jobs: int | None = None,
    ) -> None:
        self._chunk, self._delay, self._max_jobs = chunk, delay, max_jobs
        self.tokenizer, self.template = tokenizer, template
        self.num_aborted = 0
        """Submitted requests that were ended before their end."""
        self.restart(replies)
        self._adapters: dict[str, str] = {}
        self._lock = threading.Lock()
        self._running = 0
        self._generated = 0

    def restart(self, replies: Sequence[Script]) -> None:
        """Takes another script, from its beginning."""
        self._replies = list(replies)
        self._given = 0
        self.requests: list[Request] = []
        """Every request seen since then, for assertions."""

    @property
    def info(self) -> BackendInfo:
        """A made-up model with a 2,048-token context."""
        return BackendInfo(
            model="scripted",
            family="scripted",
            context_length=2048,
            vocab_size=self.tokenizer.vocab_size if self.tokenizer else 256,
            dtype="none",
            device="none",
            can_chat=True,
            max_window_size=1024,
            defaults=SamplingParams(temperature=0.0, max_tokens=512),
        )

    def submit(self, request: Request, sink: Sink) -> Job:
        """See Backend.submit; every request has a thread of its own."""
        prompt_tokens = self._count(request)
        if prompt_tokens >= self.info.context_length:
            raise PromptTooLongError(
                f"the prompt has {prompt_tokens} tokens, the context holds 2048; shorten it"
            )
        with self._lock:
            if self._max_jobs is not None and self._running >= self._max_jobs:
                raise QueueFullError(f"{self._running} requests wait already; try again later")
            self._running += 1
        job = _Job(self, prompt_tokens)
        deltas = self.stream([request])
        threading.Thread(target=self._run, args=(job, deltas, sink), daemon=True).start()
        return job

    def _run(self, job: _Job, deltas: Iterator[Delta], sink: Sink) -> None:
        try:
            for delta in deltas:
                if job.is_aborted:
                    return
                sink(delta)
        except Exception as error:
            sink(error)
        finally:
            job.is_over = True
            with self._lock:
                self._running -= 1

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """Yields the scripted replies, request by request; max_tokens counts characters, stop strings are honoured."""
        for index, request in enumerate(requests):
            replies = [self._reply(request) for _ in range(request.params.n)]
            self.requests.append(request)
            sources = [self._sample(index, n, request, reply) for n, reply in enumerate(replies)]
            while sources:  # in turns, as an engine does
                for source in tuple(sources):
                    delta = next(source, None)
                    if delta is None:
                        sources.remove(source)
                        continue
                    time.sleep(self._delay)
                    yield delta

    def _sample(self, index: int, sample: int, request: Request, reply: Script) -> Iterator[Delta]:
        params, size = request.params, 0
        reason: FinishReason = "stop"
        prompt_logprobs = self._prompt_logprobs(request)
        pieces, stop = self._pieces(reply, params)
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            if params.max_tokens is not None and size + len(piece) > params.max_tokens:
                piece, reason = piece[: params.max_tokens - size], "length"
            size += len(piece)
            if piece:
                ids = tuple(piece.encode())
                logprobs = (
                    tuple(_logprob(i, params.logprobs) for i in ids) if params.logprobs is not None else ()
                )
                yield Delta(
                    index=index,
                    sample=sample,
                    text=piece,
                    token_ids=ids,
                    logprobs=logprobs,
                    prompt_logprobs=prompt_logprobs,
                )
                prompt_logprobs = None
                self._generated += len(piece)
            if reason == "length":
                break
        usage = Usage(prompt_tokens=self._count(request), completion_tokens=size)
        yield Delta(
            index=index,
            sample=sample,
            finish_reason=reason,
            usage=usage,
            prompt_logprobs=prompt_logprobs,
            stop=stop if reason == "stop" else None,
        )

    def _pieces(self, reply: Script, params: SamplingParams) -> tuple[Sequence[str | Exception], str | None]:
        if not isinstance(reply, str):
            return reply, None
        cuts = [(at, s) for s in params.stop if (at := reply.find(s)) >= 0]
        at, stop = min(cuts, default=(len(reply), None))
        text = reply[: at + (len(stop) if stop and params.include_stop else 0)]
        return [text[i : i + self._chunk] for i in range(0, len(text), self._chunk)], stop

    def _count(self, request: Request) -> int:
        if not request.prompt:
            raise InputError("an empty prompt cannot be continued; give at least one token")
        if self.tokenizer is None or self.template is None or not isinstance(request.prompt[0], Message):
            return len(request.prompt)
        messages = [m for m in request.prompt if isinstance(m, Message)]
        options = {**request.template_options, "continue_final": request.continue_final}
        return len(
            self.tokenizer.encode_segments(self.template.render(messages, tools=request.tools, **options))
        )

    @staticmethod
    def _prompt_logprobs(request: Request) -> tuple[TokenLogprob | None, ...] | None:
        wanted = request.params.prompt_logprobs
        if wanted is None:
            return None
        ids = [i if isinstance(i, int) else 0 for i in request.prompt]
        return (None, *(_logprob(i, wanted) for i in ids[1:]))

    def _reply(self, request: Request) -> Script:
        with self._lock:
            self._given += 1
            return self._replies[min(self._given, len(self._replies)) - 1]

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Every token is equally likely among 256."""
        return [[_UNIFORM] * max(len(ids) - 1, 0) for ids in token_ids]

    def embed(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Length and sum of the ids, made a vector of length 1."""
        vectors = [(float(len(ids)), float(sum(ids))) for ids in token_ids]
        return [[x / (x * x + y * y) ** 0.5, y / (x * x + y * y) ** 0.5] for x, y in vectors]

    def stats(self) -> EngineStats:
        """Running requests and characters said."""
        return EngineStats(running=self._running, generated_tokens=self._generated)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that were loaded; they change nothing."""
        return tuple(self._adapters)

    def load_adapter(self, name: str, path: str | Path) -> None:
        """See Backend.load_adapter; the folder must exist, and is not read."""
        if name in self._adapters:
            raise InputError(f"the adapter {name!r} is loaded already; unload it first")
        if not Path(path).is_dir():
            raise InputError(f"{path} is no folder; give the folder of an adapter")
        self._adapters[name] = str(path)

    def unload_adapter(self, name: str) -> None:
        """See Backend.unload_adapter."""
        if self._adapters.pop(name, None) is None:
            raise InputError(f"the adapter {name!r} is not loaded")

    def close(self) -> None:
        """Nothing to free."""


class _Job:
    """A submitted request."""

    cached_tokens = 0

    def __init__(self, backend: ScriptedBackend, prompt_tokens: int) -> None:
        self._backend, self.prompt_tokens = backend, prompt_tokens
        self.is_over, self.is_aborted = False, False

    def abort(self) -> None:
        """See Job.abort."""
        if not self.is_over and not self.is_aborted:
            self.is_aborted = True
            self._backend.num_aborted += 1


class EchoBackend(ScriptedBackend):
    """Says the last message, or the token ids, back."""

    def __init__(self, *, chunk: int = 3) -> None:
        super().__init__([""], chunk=chunk)

    @property
    def info(self) -> BackendInfo:
        """As the scripted backend, named echo."""
        return dataclasses.replace(super().info, model="echo", family="echo")

    def _reply(self, request: Request) -> Script:
        last = request.prompt[-1] if request.prompt else ""
        return last.content if isinstance(last, Message) else " ".join(map(str, request.prompt))


def _logprob(token_id: int, wanted: int) -> TokenLogprob:
    others = [(token_id, _LOGPROB), *(((token_id + n) % 256, _LOGPROB - n) for n in range(1, wanted))]
    return TokenLogprob(token_id, _LOGPROB, tuple(others[:wanted]))
