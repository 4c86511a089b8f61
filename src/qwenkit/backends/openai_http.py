"""A model behind a server that speaks the OpenAI API: qwenkit, vLLM, llama.cpp, OpenAI itself and others.

Knows how requests run and end; what they look like is in openai_wire, how they travel in http_client.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from qwenkit.backends.base import BackendInfo, EngineStats, Sink
from qwenkit.backends.http_client import Aborted, Exchange
from qwenkit.backends.openai_wire import ReplyReader, encode
from qwenkit.backends.remote_server import Server, StatusError, parse_server
from qwenkit.core.errors import InputError, RemoteError
from qwenkit.core.types import Delta, Request, SamplingParams

OnEnd: TypeAlias = Callable[["_RemoteJob", int, int, int], None]
_CONTEXT_KEYS = ("max_model_len", "context_length", "max_context_length", "context_window")
_EMBED_AT_ONCE = 32
_NEW_LIMIT = "max_completion_tokens"


class OpenAIBackend:
    """Sends requests to a server. Make one with ``open_openai``.

    Args:
        server: where it is.
        info: what it runs.
        adapters: names of LoRA adapters that it lists.
        max_parallel: requests of one ``stream`` under way at once.
        inline_reasoning: thought comes as text between <think> tags, as a model here writes it.
    """

    tokenizer: None = None
    template: None = None

    def __init__(
        self,
        server: Server,
        info: BackendInfo,
        *,
        adapters: Sequence[str] = (),
        max_parallel: int = 64,
        inline_reasoning: bool = False,
    ) -> None:
        self.info = info
        self.adapters = tuple(adapters)
        self._server, self._max_parallel, self._inline = server, max_parallel, inline_reasoning
        self._lock = threading.Lock()
        self._jobs: set[_RemoteJob] = set()
        self._totals = EngineStats()
        self._is_closed = False

    def submit(self, request: Request, sink: Sink) -> _RemoteJob:
        """See Backend.submit."""
        path, body = encode(request, self.info.model)
        reader = ReplyReader(num_samples=request.params.n, inline_reasoning=self._inline)
        job = _RemoteJob(Exchange(self._server), sink, reader, self._forget)
        with self._lock:
            if self._is_closed:
                raise InputError(f"the connection to {self._server.url} was closed; open it again")
            self._jobs.add(job)
        threading.Thread(target=job.run, args=(path, body), daemon=True, name="qwenkit-remote").start()
        return job

    def _forget(self, job: _RemoteJob, prompt_tokens: int, generated_tokens: int, cached_tokens: int) -> None:
        with self._lock:
            self._jobs.discard(job)
            totals = self._totals
            self._totals = dataclasses.replace(
                totals,
                prompt_tokens=totals.prompt_tokens + prompt_tokens,
                generated_tokens=totals.generated_tokens + generated_tokens,
                cached_tokens=totals.cached_tokens + cached_tokens,
            )

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """See Backend.stream."""
        for request in requests:
            encode(request, self.info.model)
        return self._run(list(requests))

    def _run(self, requests: list[Request]) -> Iterator[Delta]:
        arrived: queue.SimpleQueue[tuple[int, Delta | BaseException]] = queue.SimpleQueue()
        left = [request.params.n for request in requests]
        jobs: list[_RemoteJob] = []

        def start() -> None:
            index = len(jobs)
            if index < len(requests):
                jobs.append(self.submit(requests[index], lambda new: arrived.put((index, new))))

        try:
            for _ in range(self._max_parallel):
                start()
            while any(left):
                index, new = arrived.get()
                if isinstance(new, BaseException):
                    raise new
                yield dataclasses.replace(new, index=index)
                left[index] -= new.finish_reason is not None
                if not left[index] and new.finish_reason is not None:
                    start()
        finally:
            for job in jobs:
                job.abort()

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See Backend.logprobs; asks for the prompt back with its log-probabilities.

        Raises:
            RemoteError: the server cannot say them.
        """
        return [self._score(list(ids)) if len(ids) > 1 else [] for ids in token_ids]

    def _score(self, ids: list[int]) -> list[float]:
        body = {"model": self.info.model, "prompt": ids, "echo": True, "logprobs": 1, "temperature": 0}
        try:
            answer = self._ask("completions", {**body, "max_tokens": 0})
        except StatusError as error:
            if error.status not in (400, 422):
                raise
            # Some want at least one new token.
            answer = self._ask("completions", {**body, "max_tokens": 1})
        try:
            values = answer["choices"][0]["logprobs"]["token_logprobs"]
        except (KeyError, IndexError, TypeError):
            values = None
        if not isinstance(values, list) or len(values) < len(ids):
            raise RemoteError(
                f"{self._server.url} does not give the log-probabilities of a prompt (echo with logprobs); "
                "score with a model in this process"
            )
        return [float(v) for v in values[1 : len(ids)]]

    def embed(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See Backend.embed; as the server makes embeddings, brought to length 1."""
        rows: list[list[float]] = []
        for at in range(0, len(token_ids), _EMBED_AT_ONCE):
            batch = [list(ids) for ids in token_ids[at : at + _EMBED_AT_ONCE]]
            answer = self._ask(
                "embeddings", {"model": self.info.model, "input": batch, "encoding_format": "float"}
            )
            try:
                found = sorted(answer["data"], key=lambda row: row["index"])
                vectors = [[float(x) for x in row["embedding"]] for row in found]
            except (KeyError, TypeError, ValueError):
                vectors = []
            if len(vectors) != len(batch):
                raise RemoteError(f"{self._server.url} does not answer with one embedding per text")
            rows += [_unit(v) for v in vectors]
        return rows

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return ask(self._server, path, body)

    def stats(self) -> EngineStats:
        """See Backend.stats; of this program's own requests, as far as they are over."""
        with self._lock:
            return dataclasses.replace(self._totals, running=len(self._jobs))

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Not from here: the server has to be told.

        Raises:
            InputError: always.
        """
        raise InputError(f"adapters of {self._server.url} are loaded there; start it with {path} as {name!r}")

    def unload_adapter(self, name: str) -> None:
        """Not from here: the server has to be told.

        Raises:
            InputError: always.
        """
        raise InputError(f"adapters of {self._server.url} are unloaded there, {name!r} too")

    def close(self) -> None:
        """Ends what runs; the backend cannot be used afterwards."""
        with self._lock:
            self._is_closed = True
            jobs = list(self._jobs)
        for job in jobs:
            job.abort()


class _RemoteJob:
    """One request on its way, in a thread of its own."""

    prompt_tokens = cached_tokens = 0

    def __init__(self, exchange: Exchange, sink: Sink, reader: ReplyReader, on_end: OnEnd) -> None:
        self._exchange, self._sink, self._reader, self._on_end = exchange, sink, reader, on_end
        # A sink may call abort, so the lock must let its own thread in again.
        self._lock = threading.RLock()
        self._is_aborted = False

    def abort(self) -> None:
        """See Job.abort."""
        with self._lock:
            self._is_aborted = True
        self._exchange.abort()

    def _tell(self, new: Delta | BaseException) -> None:
        with self._lock:
            if not self._is_aborted:
                self._sink(new)

    def run(self, path: str, body: Mapping[str, Any]) -> None:
        """Sends the request and hands on the answer."""
        counts = (0, 0, 0)
        try:
            last = self._read(path, body)
            usages = [d.usage for d in last if d.usage is not None]
            counts = (
                max((u.prompt_tokens for u in usages), default=0),
                sum(u.completion_tokens for u in usages),
                max((u.cached_tokens for u in usages), default=0),
            )
            end: list[Delta | BaseException] = [*last]
        except Aborted:
            end = []
        except BaseException as error:
            end = [error]
        finally:
            self._exchange.close()
        self._on_end(self, *counts)
        for new in end:
            self._tell(new)

    def _read(self, path: str, body: Mapping[str, Any]) -> list[Delta]:
        """Hands on all but the last deltas, which it returns."""
        try:
            self._exchange.send(path, body)
        except StatusError as error:
            if "max_tokens" not in body or _NEW_LIMIT not in str(error):
                raise
            # Some models of OpenAI know the limit by its newer name alone, which most other servers do not know.
            self._exchange.send(path, {_NEW_LIMIT if k == "max_tokens" else k: v for k, v in body.items()})
        try:
            for event in self._exchange.events():
                for delta in self._reader.push(event):
                    self._tell(delta)
        except RemoteError:
            # Some servers just close the stream: with every reply ended, nothing is missing but the token counts.
            if not (self._reader.is_complete and self._exchange.has_ended):
                raise
        return list(self._reader.finish())


def ask(server: Server, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON answer to one request.

    Raises:
        RemoteError: the server is not reached or answers with an error.
    """
    exchange = Exchange(server)
    exchange.send(path, body)
    return exchange.json()


def list_models(server: Server) -> list[Mapping[str, Any]]:
    """The entries of /v1/models, the base models first.

    Raises:
        RemoteError: the server is not reached, or does not say.
    """
    answer = ask(server, "models")
    entries = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(entries, list):
        raise RemoteError(
            f"{server.url}/v1/models is not a list of models; is it the address of an OpenAI-compatible server?"
        )
    named = [e for e in entries if isinstance(e, Mapping) and isinstance(e.get("id"), str)]
    return sorted(named, key=lambda entry: entry.get("parent") is not None)


def open_openai(
    url: str,
    *,
    model: str | None = None,
    api_key: str | None = None,
    timeout: float = 600.0,
    max_parallel: int = 64,
    inline_reasoning: bool = False,
) -> OpenAIBackend:
    """Reaches a server and asks what it runs.

    Args:
        url: http://host:port, with or without /v1 and a slash at its end.
        model: which of its models; None: the first it lists.
        api_key: sent as a bearer token; None: none.
        timeout: seconds without a byte after which the server counts as gone.
        max_parallel: requests of one ``stream`` under way at once.
        inline_reasoning: thought comes as text between <think> tags, as a model here writes it.

    Raises:
        InputError: the address is none.
        RemoteError: the server is not reached, refuses access, or lists no model.
    """
    server = parse_server(url, api_key=api_key, timeout=timeout)
    try:
        entries = list_models(server)
    except StatusError as error:
        if model is None or error.status not in (404, 405):
            raise
        entries = []  # a server without a list may still have the model
    if model is None and not entries:
        raise RemoteError(f"{server.url} lists no models; name one, or load one there")
    name = model or entries[0]["id"]
    entry = next((e for e in entries if e["id"] == name), {})
    adapters = [e["id"] for e in entries if e.get("parent") is not None]
    return OpenAIBackend(
        server,
        _info(server, name, entry),
        adapters=adapters,
        max_parallel=max_parallel,
        inline_reasoning=inline_reasoning,
    )


def _info(server: Server, name: str, entry: Mapping[str, Any]) -> BackendInfo:
    """What the server says of a model; 0 or "remote" where it says nothing."""
    meta = entry.get("meta") if isinstance(entry.get("meta"), Mapping) else {}
    assert meta is not None
    lengths = [entry.get(key) for key in _CONTEXT_KEYS] + [meta.get("n_ctx"), meta.get("n_ctx_train")]
    context = next((n for n in lengths if isinstance(n, int) and n > 0), 0)
    vocab = meta.get("n_vocab")
    owner = entry.get("owned_by")
    return BackendInfo(
        model=name,
        family="remote",
        context_length=context,
        vocab_size=vocab if isinstance(vocab, int) else 0,
        dtype="remote",
        device=server.url,
        can_chat=True,
        max_window_size=context,
        defaults=SamplingParams(),
        details={"url": server.url, "owned_by": owner} if owner else {"url": server.url},
    )


def _unit(vector: list[float]) -> list[float]:
    length = sum(x * x for x in vector) ** 0.5
    return [x / length for x in vector] if length else vector
