"""Where a server elsewhere is, which way leads to it, and in one sentence what is wrong when it does not answer well.

Knows nothing of models or messages.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from qwenkit._version import __version__
from qwenkit.backends.event_stream import EventDecoder
from qwenkit.core.errors import InputError, PromptTooLongError, QwenkitError, RemoteError

_TOO_LONG = re.compile(
    r"context.?(length|size|window)|context holds|maximum context|prompt (is )?too long|range of input length",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"model.{0,200}not (exist|found)", re.IGNORECASE)


class StatusError(RemoteError):
    """An answer with an error status."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What servers of one kind have in common."""

    name: str
    """What such a server is called."""
    root: str
    """Path of its API below a server's address."""
    endpoints: re.Pattern[str]
    """The end of an address that is not part of the server's own."""
    key_variable: str
    """The environment variable that holds a key."""
    models: str
    """Where the names of models are found."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request."""


OPENAI = Api(
    name="an OpenAI-compatible server",
    root="/v1",
    endpoints=re.compile(r"/v1(/chat/completions|/completions|/embeddings|/models)?$"),
    key_variable="QWENKIT_API_KEY",
    models="{url}/v1/models lists what it has",
)
"""What most servers speak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server is and how to talk to it. Make one with ``parse_server``."""

    url: str
    """Address without the path of the API and without a slash at its end, for people too."""
    scheme: str
    host: str
    port: int
    base: str
    """Path before that of the API."""
    api: Api = OPENAI
    api_key: str | None = None
    tls: ssl.SSLContext | None = None
    """Which certificates are trusted; None for plain http."""
    timeout: float = 600.0
    """Seconds without a byte after which the server counts as gone."""

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        headers = {"Accept": "text/event-stream, application/json", "User-Agent": f"qwenkit/{__version__}"}
        headers |= self.api.headers
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


def parse_server(
    url: str, *, api_key: str | None = None, timeout: float = 600.0, api: Api = OPENAI
) -> Server:
    """The server at ``url``: http://host:port, with or without the API's path after it; http:// may be left out.

    Raises:
        InputError: the address or the key is none.
    """
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{url!r} is not a server's address ({error}); write http://host:port") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise InputError(
            f"{url!r} is not a server's address; write http://host:port or https://host{api.root}"
        )
    if parts.username is not None:
        raise InputError("a server's address with user name or password is not used; give an API key instead")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise InputError("the API key holds characters that cannot be sent; check for line ends and blanks")
    if not timeout > 0:
        raise InputError(f"timeout={timeout!r} is not possible; use seconds above 0")
    base = api.endpoints.sub("", parts.path.rstrip("/")).rstrip("/")
    return Server(
        url=f"{parts.scheme}://{parts.netloc}{base}",
        scheme=parts.scheme,
        host=host,
        port=port or (443 if parts.scheme == "https" else 80),
        base=base,
        api=api,
        api_key=api_key or None,
        tls=ssl.create_default_context() if parts.scheme == "https" else None,
        timeout=timeout,
    )


def proxy_of(server: Server) -> SplitResult | None:
    """The proxy that the environment names for this server; none for addresses of this machine.

    Raises:
        InputError: it is not an HTTP proxy.
    """
    proxies = urllib.request.getproxies()
    named = proxies.get(server.scheme) or proxies.get("all")
    if not named or is_loopback(server.host) or urllib.request.proxy_bypass(f"{server.host}:{server.port}"):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise InputError(
            f"the proxy {proxy.scheme}://{proxy.hostname} for {server.url} is not an http:// proxy; "
            "name another in the environment, or put the host into NO_PROXY"
        )
    return proxy


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def refusal(server: Server, message: str, verb: str) -> QwenkitError:
    """The error for what a server says about a request; a prompt too long for the model has its own kind."""
    if is_too_long(message):
        return PromptTooLongError(
            f"{server.url} says that this does not fit the model's context ({one_line(message)}); "
            "shorten the prompt, or forget earlier turns"
        )
    return RemoteError(f"{server.url} {verb}: {one_line(message)}")


def is_too_long(message: str) -> bool:
    """Whether a server's message says that a prompt does not fit the context."""
    return _TOO_LONG.search(message) is not None


def parse_retry_after(text: str) -> float | None:
    """Seconds that a Retry-After header asks for, which holds seconds or a date; None: neither."""
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


def transport_sentence(error: BaseException, server: Server) -> str:
    """What is wrong when a server is not reached or stops answering."""
    url = server.url
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {url}; start the server, or check host and port"
    if isinstance(error, socket.gaierror):
        return f"the host name of {url} is not known here ({error.strerror}); check it"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {url} is not trusted ({error.verify_message}); "
            "set SSL_CERT_FILE to a file with the certificate of its authority"
        )
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection to {url} ({error.reason or error}); does the server speak https?"
    if isinstance(error, TimeoutError):
        return (
            f"{url} does not answer; check that it runs, or allow a longer timeout than {server.timeout:g} s"
        )
    if isinstance(error, http.client.IncompleteRead | ConnectionError):
        return f"{url} closed the connection before its answer was complete; see the server's log, then ask again"
    if isinstance(error, http.client.HTTPException):
        return f"what {url} answers is not HTTP ({type(error).__name__}); check the address, http or https"
    return f"{url} is not reached: {getattr(error, 'strerror', None) or error}; check address and network"


def status_sentence(
    status: int, message: str, server: Server, path: str, retry_after: str | None = None
) -> str:
    """What an answer with an error status means."""
    url, api, why = server.url, server.api, f" ({one_line(message)})" if message else ""
    if status in (401, 403):
        cure = "check the API key" if server.api_key else f"give an API key, or set {api.key_variable}"
        return f"{url} refuses access with status {status}{why}; {cure}"
    if (status == 404 and "model" in message.lower()) or (status == 400 and _NO_MODEL.search(message)):
        return f"{url} does not have this model{why}; {api.models.format(url=url)}"
    if status in (404, 405):
        return f"{url} has no {api.root}/{path}{why}; give the address of {api.name}"
    if status == 429:
        later = f"in {retry_after} seconds" if retry_after and retry_after.isdigit() else "later"
        return f"{url} has too many requests{why}; try again {later}, or ask for less at once"
    if status >= 500:
        return f"{url} failed with status {status}{why}; see the server's log, then ask again"
    return f"{url} refuses the request with status {status}{why}; change what it names"


def message_of_body(data: bytes) -> str:
    """The error message in a body: of an error object, by itself or as an event, or the beginning of the text."""
    decoder = EventDecoder()
    found = ""
    for each in (data, *decoder.feed(data), *decoder.flush()):
        with contextlib.suppress(ValueError, RecursionError):
            found = found or message_of(json.loads(each))
    return found or ("" if data.lstrip()[:1] == b"<" else excerpt(data))


def message_of(body: Any) -> str:
    """The error message in a JSON body. OpenAI: error.message; others: error, message or detail as text."""
    if not isinstance(body, Mapping):
        return ""
    error = body.get("error")
    if isinstance(error, Mapping):
        error = error.get("message")
    for found in (error, body.get("message"), body.get("detail")):
        if isinstance(found, str) and found:
            return found
    return ""


def excerpt(data: bytes) -> str:
    """The beginning of some bytes as one line."""
    return one_line(data[:400].decode("utf-8", errors="replace"))


def one_line(text: str) -> str:
    """A message without line ends and final stop, shortened."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 300 else line[:299] + "…"
