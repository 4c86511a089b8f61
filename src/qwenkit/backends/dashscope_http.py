"""A model behind DashScope, Alibaba Cloud's service for Qwen, or behind a server that speaks as it does.

Knows where the service is and what it can be asked; requests are in dashscope_wire, how they run and end in remote_jobs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qwenkit.backends.base import BackendInfo
from qwenkit.backends.dashscope_wire import PATH, ReplyReader, encode
from qwenkit.backends.remote_jobs import RemoteBackend
from qwenkit.backends.remote_server import Api, Server, is_loopback, parse_server
from qwenkit.core.environment import dashscope_api_key, dashscope_url
from qwenkit.core.errors import InputError, TokenizerError
from qwenkit.core.types import Request, SamplingParams

PREFIX = "dashscope:"
"""What names of models begin with that are reached this way."""
DASHSCOPE = Api(
    name="DashScope's API, such as https://dashscope.aliyuncs.com/api/v1",
    root="/api/v1",
    endpoints=re.compile(r"/api/v1(/services(/.*)?)?$"),
    key_variable="DASHSCOPE_API_KEY",
    models="check its name, and that the key may use it",
    headers={"X-DashScope-SSE": "enable"},
)
"""How the service is spoken to."""


def is_dashscope(model: str) -> bool:
    """Whether a model's name says that DashScope runs it."""
    return model.startswith(PREFIX)


class DashScopeBackend(RemoteBackend):
    """Sends requests to DashScope. Make one with ``open_dashscope``.

    Args:
        server: where it is.
        info: what it runs.
        max_parallel: requests of one ``stream`` under way at once.
        inline_reasoning: thought comes as text between <think> tags, as a model here writes it.
    """

    def __init__(
        self, server: Server, info: BackendInfo, *, max_parallel: int = 8, inline_reasoning: bool = False
    ) -> None:
        super().__init__(server, info, max_parallel=max_parallel)
        self._inline = inline_reasoning
        self.tokenizer_error = TokenizerError(
            f"{info.model} is reached through DashScope, which answers messages only; chat with it instead"
        )
        """Why there is no tokenizer."""

    def encode(self, request: Request) -> tuple[str, dict[str, Any]]:
        """See RemoteBackend."""
        return PATH, encode(request, self.info.model)

    def new_reader(self, request: Request) -> ReplyReader:
        """See RemoteBackend."""
        return ReplyReader(num_samples=request.params.n, inline_reasoning=self._inline)

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Not from here: DashScope scores no prompts.

        Raises:
            InputError: always.
        """
        raise InputError("DashScope does not score texts; use a model in this process")

    def embed(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Not from here: DashScope knows texts, and token ids are none.

        Raises:
            InputError: always.
        """
        raise InputError("DashScope makes no vectors of token ids; use a model in this process")


def open_dashscope(
    model: str,
    *,
    url: str | None = None,
    api_key: str | None = None,
    timeout: float = 600.0,
    max_parallel: int = 8,
    inline_reasoning: bool = False,
) -> DashScopeBackend:
    """A model that DashScope runs; nothing is sent before the first request.

    Args:
        model: its name there, such as qwen-plus, with or without ``dashscope:`` before it.
        url: of the API; None: DASHSCOPE_HTTP_BASE_URL, or else the service's own.
        api_key: None: DASHSCOPE_API_KEY.
        timeout: seconds without a byte after which the server counts as gone.
        max_parallel: requests of one ``stream`` under way at once.
        inline_reasoning: thought comes as text between <think> tags, as a model here writes it.

    Raises:
        InputError: there is no name, no key, or the address is none.
    """
    name = model.removeprefix(PREFIX).strip()
    if not name:
        raise InputError(f"{model!r} names no model; write one after the colon, as in {PREFIX}qwen-plus")
    key = api_key or dashscope_api_key()
    server = parse_server(url or dashscope_url(), api_key=key, timeout=timeout, api=DASHSCOPE)
    if key is None and not is_loopback(server.host):
        raise InputError(f"{PREFIX}{name} needs an API key of DashScope; set {DASHSCOPE.key_variable}")
    info = BackendInfo(
        model=name,
        family="remote",
        context_length=0,
        vocab_size=0,
        dtype="remote",
        device=server.url,
        can_chat=True,
        max_window_size=0,
        defaults=SamplingParams(),
        details={"url": server.url, "owned_by": "dashscope"},
    )
    return DashScopeBackend(server, info, max_parallel=max_parallel, inline_reasoning=inline_reasoning)
