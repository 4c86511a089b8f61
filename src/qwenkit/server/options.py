"""Settings of a server. Knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from qwenkit.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a server allows, and how long it waits."""

    served_names: tuple[str, ...] = ()
    """Names of the model in requests; empty: the backend's own."""
    api_keys: tuple[str, ...] = ()
    """Keys of which every request must carry one; empty: none is needed."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the server; * allows all."""
    max_body_bytes: int = 16 * 2**20
    """Largest request body."""
    request_timeout: float | None = None
    """Seconds after which a request is aborted; None: never."""
    stall_timeout: float = 60.0
    """Seconds a client may leave a stream unread before the request is aborted."""
    drain_timeout: float = 30.0
    """Seconds that running requests get when the server stops."""
    allow_lora_loading: bool = False
    """Whether clients may load adapters, which reads folders of this machine."""
    has_access_log: bool = True
    """Whether to log one line per request."""
    protocols: tuple[str, ...] = ()
    """Names of the protocols that are offered; empty: all."""

    store_responses: int = 1000
    """Most responses that are kept in memory for clients to come back to; 0 keeps none."""

    def __post_init__(self) -> None:
        if any(not key or key != key.strip() or not key.isascii() for key in self.api_keys):
            raise InputError("an API key must be ASCII text without blanks around it; change the key")
        if self.max_body_bytes < 1:
            raise InputError(f"max_body_bytes={self.max_body_bytes} is not possible; use a number from 1 up")
        if self.store_responses < 0:
            raise InputError(
                f"store_responses={self.store_responses} is not possible; use a number from 0 up"
            )
        for name in ("request_timeout", "stall_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name}={value} is not possible; use seconds above 0")
        if not 0 <= self.drain_timeout < float("inf"):
            raise InputError(f"drain_timeout={self.drain_timeout} is not possible; use seconds from 0 up")
        for origin in self.cors_origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise InputError(
                    f"cors origin {origin!r} is not possible; use * or one like https://example.org"
                )
