"""``qwenkit serve``: a model over HTTP, with the chat page; what ``qwenkit web`` does as well is here, too."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.options import ModelOptions, SpeculativeOptions, spread
from qwenkit.cli.texts import EN
from qwenkit.core.environment import server_api_keys
from qwenkit.core.errors import InputError
from qwenkit.core.lazy import import_extra

if TYPE_CHECKING:
    from qwenkit.backends.base import Backend, BackendInfo
    from qwenkit.server.options import ServerOptions

_MIB, _GIB = 2**20, 2**30


def _option(panel: str, *names: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel)


def _engine(*names: str, metavar: str | None = None, text: str) -> Any:
    return _option("Engine", *names, metavar=metavar, text=text)


def _server(*names: str, metavar: str | None = None, text: str) -> Any:
    return _option("Server", *names, metavar=metavar, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How many requests run together, and with how much memory."""

    max_batch_size: Annotated[
        int, _engine("--max-batch-size", metavar="N", text="Replies computed together; others wait.")
    ] = 64
    max_queue: Annotated[
        int,
        _engine("--max-queue", metavar="N", text="Replies that may wait; further requests get status 429."),
    ] = 1024
    prefill_chunk: Annotated[
        int, _engine("--prefill-chunk", metavar="N", text="Tokens computed in one step.")
    ] = 512
    cache_gb: Annotated[
        float | None,
        _engine(
            "--cache-gb", metavar="X", text="Memory of the key-value cache; else a part of what is free."
        ),
    ] = None
    no_prefix_caching: Annotated[
        bool,
        _engine(
            "--no-prefix-caching", text="Read every prompt anew, also where it begins like an earlier one."
        ),
    ] = False
    lora: Annotated[
        list[str] | None,
        _engine(
            "--lora",
            metavar="NAME=PATH",
            text="LoRA adapter to load, chosen by its name; repeat for several.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """Where the server listens, and what it does beside the API."""

    host: Annotated[str, _server("--host", metavar="ADDRESS", text="0.0.0.0 lets other machines in.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, _server("--port", "-p", metavar="N", text="0 takes any free one.")] = 8000
    no_page: Annotated[bool, _server("--no-page", text="Do not serve the chat page at /.")] = False
    no_access_log: Annotated[bool, _server("--no-access-log", text="Do not log a line per request.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Whom the server answers, in which words, and how long it waits."""

    served_model_name: Annotated[
        list[str] | None,
        _server(
            "--served-model-name", metavar="NAME", text="Name of the model in requests; repeat for several."
        ),
    ] = None
    api_key: Annotated[
        list[str] | None,
        _server("--api-key", metavar="KEY", text="Key that requests must carry; repeat for several."),
    ] = None
    api_key_file: Annotated[
        Path | None, _server("--api-key-file", metavar="FILE", text="File with one key per line.")
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        _server(
            "--cors-origin",
            metavar="ORIGIN",
            text="Origin whose web pages may call; * for all; repeat for several.",
        ),
    ] = None
    max_body_mb: Annotated[float, _server("--max-body-mb", metavar="X", text="Largest request body.")] = 16.0
    request_timeout: Annotated[
        float | None,
        _server("--request-timeout", metavar="S", text="Seconds after which a request is aborted."),
    ] = None
    stall_timeout: Annotated[
        float, _server("--stall-timeout", metavar="S", text="Seconds a client may leave a stream unread.")
    ] = 60.0
    drain_timeout: Annotated[
        float,
        _server("--drain-timeout", metavar="S", text="Seconds running requests get when the server stops."),
    ] = 30.0
    allow_lora_loading: Annotated[
        bool,
        _server("--allow-lora-loading", text="Let clients load adapters from folders of this machine."),
    ] = False
    protocols: Annotated[
        str | None,
        _server("--protocols", metavar="NAMES", text="What is spoken, such as openai; all unless given."),
    ] = None
    store_responses: Annotated[
        int,
        _server("--store-responses", metavar="N", text="Most responses kept for clients; 0 keeps none."),
    ] = 1000

    def to_server_options(self, *, has_access_log: bool) -> ServerOptions:
        """The same as the server wants it.

        Args:
            has_access_log: whether to log a line per request.

        Raises:
            InputError: a value makes no sense, or the file of keys cannot be used.
        """
        from qwenkit.server.endpoints import chosen
        from qwenkit.server.options import ServerOptions

        keys = [*(self.api_key or ()), *server_api_keys()]
        if self.api_key_file is not None:
            found = _keys_in(self.api_key_file)
            if not found:
                raise InputError(f"{self.api_key_file} holds no key; write one per line")
            keys += found
        if not 0 < self.max_body_mb < 2**20:
            raise InputError(f"--max-body-mb {self.max_body_mb} is not possible; use a number above 0")
        options = ServerOptions(
            served_names=tuple(self.served_model_name or ()),
            api_keys=tuple(dict.fromkeys(keys)),
            cors_origins=tuple(self.cors_origin or ()),
            max_body_bytes=max(int(self.max_body_mb * _MIB), 1),
            request_timeout=self.request_timeout,
            stall_timeout=self.stall_timeout,
            drain_timeout=self.drain_timeout,
            allow_lora_loading=self.allow_lora_loading,
            store_responses=self.store_responses,
            has_access_log=has_access_log,
            protocols=tuple(name.strip() for name in (self.protocols or "").split(",") if name.strip()),
        )
        chosen(options.protocols)  # a wrong name is told before the model loads
        return options


def _keys_in(file: Path) -> list[str]:
    lines = pipes.decode(file.read_bytes(), str(file)).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@spread
def serve(
    *,
    model: ModelOptions,
    speculation: SpeculativeOptions,
    engine: EngineOptions,
    listen: ListenOptions,
    http: HttpOptions,
) -> None:
    """Serve a model over HTTP, with a page to chat on. Ctrl-C lets running requests end; a second one does not."""
    check_extra()
    options = http.to_server_options(has_access_log=not listen.no_access_log)

    def announce(backend: Backend, url: str) -> None:
        print("\n".join(_summary(backend, options, engine, url)), flush=True)
        if not listen.no_page:
            print(f"chat page: {url}/", flush=True)

    with listening(listen.host, listen.port) as listener, opened(model, speculation, engine) as backend:
        serve_backend(backend, options, listener, has_page=not listen.no_page, on_start=announce)


def check_extra() -> None:
    """Raises MissingDependencyError unless everything a server needs is installed."""
    for module in ("fastapi", "uvicorn", "uvloop", "httptools", "prometheus_client"):
        import_extra(module, "server")


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there; before the model is read, which may take minutes."""
    from qwenkit.server.run import bind

    if not 0 <= port < 2**16:
        raise InputError(f"--port {port} is not possible; use 0 to 65535")
    with contextlib.closing(bind(host, port)) as listener:
        yield listener


@contextlib.contextmanager
def opened(model: ModelOptions, speculation: SpeculativeOptions, engine: EngineOptions) -> Iterator[Backend]:
    """The model with its adapters."""
    adapters = [_adapter(text) for text in engine.lora or ()]
    with contextlib.closing(_open(model, speculation, engine)) as backend:
        for name, path in adapters:
            backend.load_adapter(name, path)
        yield backend


def serve_backend(
    backend: Backend,
    options: ServerOptions,
    listener: socket.socket,
    *,
    has_page: bool,
    on_start: Callable[[Backend, str], None],
) -> None:
    """Serves until a signal says to stop.

    Args:
        backend: what is served.
        options: limits and switches.
        listener: where.
        has_page: whether the chat page is served, too.
        on_start: called with the backend and the address once requests are taken.
    """
    from qwenkit.server.app import create_app
    from qwenkit.server.run import serve, url_of
    from qwenkit.web.page import page_handlers

    _log_to_stderr()
    app = create_app(backend, options, pages=page_handlers() if has_page else None)
    url = url_of(listener)
    serve(app, listener, on_start=lambda: on_start(backend, url))


def _adapter(text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise InputError(f"--lora {text} is not possible; use NAME=PATH")
    return name, path


def _open(model: ModelOptions, speculation: SpeculativeOptions, engine: EngineOptions) -> Backend:
    if loading.is_elsewhere(model.model):
        from qwenkit.backends.dashscope_http import open_dashscope

        loading.refuse_local(model, speculation, engine)
        return open_dashscope(model.model)
    loading.fetch_with_base(model.model)
    with loading.spinner(EN.loading.format(model=model.model)) as on_progress:
        from qwenkit.backends.opening import open_local
        from qwenkit.backends.options import LocalOptions

        if engine.cache_gb is not None and not 0 < engine.cache_gb < 2**20:
            raise InputError(f"--cache-gb {engine.cache_gb} is not possible; use a number above 0")
        options = LocalOptions(
            device=model.device,
            dtype=model.dtype,
            max_context=model.max_context,
            num_threads=model.threads,
            max_batch_size=engine.max_batch_size,
            max_queue=engine.max_queue,
            prefill_chunk=engine.prefill_chunk,
            activations=model.activations,
            head=model.head,
            packed_cache=model.packed_cache,
            kv_cache=model.kv_cache,
            speculative=speculation.speculative,
            speculative_tokens=speculation.speculative_tokens,
            deterministic=model.deterministic,
            cache_memory=None if engine.cache_gb is None else int(engine.cache_gb * _GIB),
            prefix_caching=not engine.no_prefix_caching,
        )
        return open_local(model.model, options, on_progress=on_progress)


def _summary(backend: Backend, options: ServerOptions, engine: EngineOptions, url: str) -> list[str]:
    """What runs, with which limits, and where."""
    keys = f"{len(options.api_keys)} keys" if options.api_keys else "no key needed"
    is_here = backend.info.dtype != "remote"
    limits = [
        *([f"{engine.max_batch_size} replies together, {engine.max_queue} waiting"] if is_here else []),
        f"bodies up to {options.max_body_bytes / _MIB:g} MB",
        keys,
    ]
    lines = [describe(backend.info), *_cache(backend.info), f"limits: {'; '.join(limits)}"]
    if backend.adapters:
        lines.append(f"adapters: {', '.join(backend.adapters)}")
    lines.append(f"serving on {url}")
    if not options.api_keys and "//127." not in url and "//[::1]" not in url:
        lines.append("anyone who reaches this address can use the model; --api-key changes that")
    return lines


def _cache(info: BackendInfo) -> list[str]:
    found = info.details.get("cache")
    if found is None:
        return []
    alike = "replies do not" if info.details.get("deterministic") else "rounding may make replies"
    size = f"{found['tokens']:,} tokens in up to {found['bytes'] / _GIB:.1f} GiB as {found['type']}"
    return [f"cache: {size}; {alike} depend on the batch"]


def describe(info: BackendInfo) -> str:
    """One line on a model and how it runs."""
    facts = [info.model, info.dtype, info.device]
    if info.context_length:  # not every service says
        facts.append(f"context {info.context_length}")
    for name in ("base", "format", "quantisation", "head", "kernels", "threads"):
        value = info.details.get(name)
        if value not in (None, info.dtype):  # a head like the rest needs no word
            facts.append(f"{name} {value}")
    return "model: " + " · ".join(facts)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("qwenkit")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
