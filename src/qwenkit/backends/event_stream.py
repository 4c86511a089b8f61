"""Server-sent events out of bytes, however they were cut on their way; knows nothing of what they carry."""

from __future__ import annotations

DONE = b"[DONE]"
"""Data of the event that ends a stream of the OpenAI API."""


class EventDecoder:
    """Takes bytes as they come and gives the data of every event that is whole.

    Lines end with LF or CRLF. Names and ids of events are dropped, comments too.
    """

    def __init__(self) -> None:
        self._held = b""

    @property
    def held_size(self) -> int:
        """Bytes of the event that is not whole yet."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that are whole now, their lines joined by LF."""
        data = self._held + data if self._held else data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._held = data.split(b"\n\n")
        return [found for event in events if (found := _data_of(event)) is not None]

    def flush(self) -> list[bytes]:
        """The data of an event whose blank line is missing at the end of the stream."""
        found = _data_of(self._held.rstrip(b"\r\n"))
        self._held = b""
        return [] if found is None else [found]


def _data_of(event: bytes) -> bytes | None:
    if b"\n" not in event:  # as nearly all are
        return event[5:].lstrip(b" ") if event.startswith(b"data:") else None
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
