"""A model behind a server that speaks the OpenAI API: qwenkit, vLLM, llama.cpp, OpenAI itself and others.

Knows what a server can be asked; requests are in openai_wire, how they run and end is in remote_jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenkit.backends.base import BackendInfo
from qwenkit.backends.http_client import Exchange
from qwenkit.backends.openai_wire import ReplyReader, encode
from qwenkit.backends.remote_jobs import Body, RemoteBackend
from qwenkit.backends.remote_server import Server, StatusError, parse_server
from qwenkit.core.errors import RemoteError
from qwenkit.core.types import Request, SamplingParams

_CONTEXT_KEYS = ("max_model_len", "context_length", "max_context_length", "context_window")
_EMBED_AT_ONCE = 32
_NEW_LIMIT = "max_completion_tokens"


class OpenAIBackend(RemoteBackend):
    """Sends requests to a server. Make one with ``open_openai``.

    Args:
        server: where it is.
        info: what it runs.
        adapters: names of LoRA adapters that it lists.
        max_parallel: requests of one ``stream`` under way at once.
        inline_reasoning: thought comes as text between <think> tags, as a model here writes it.
    """

    def __init__(
        self,
        server: Server,
        info: BackendInfo,
        *,
        adapters: Sequence[str] = (),
        max_parallel: int = 64,
        inline_reasoning: bool = False,
    ) -> None:
        super().__init__(server, info, adapters=adapters, max_parallel=max_parallel)
        self._inline = inline_reasoning

    def encode(self, request: Request) -> tuple[str, dict[str, Any]]:
        """See RemoteBackend."""
        return encode(request, self.info.model)

    def new_reader(self, request: Request) -> ReplyReader:
        """See RemoteBackend."""
        return ReplyReader(num_samples=request.params.n, inline_reasoning=self._inline)

    def amend(self, body: Body, error: StatusError) -> Body | None:
        """Some models of OpenAI know the limit by its newer name alone, which most other servers do not know."""
        if "max_tokens" not in body or _NEW_LIMIT not in str(error):
            return None
        return {_NEW_LIMIT if k == "max_tokens" else k: v for k, v in body.items()}

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
