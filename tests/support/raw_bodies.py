"""Bodies and headers that no protocol can read."""

from __future__ import annotations

NOT_JSON: list[bytes] = [
    b"",
    b"{",
    b'{"a": 1,}',
    b"\xff{}",
    b'{"a": "\xc3("}',
    b"[]",
    b"5",
    b"null",
    b'"text"',
    b'{"a": "\\ud83d"}',
    b'{"\\udc00": 1}',
    b'{"a": NaN}',
    b'{"a": -Infinity}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a": ' + b'{"a":' * 300 + b"1" + b"}" * 301,
]
"""Bodies that are no JSON object."""
OTHER_TYPES = ["text/plain", "multipart/form-data", "application/octet-stream", "json"]
"""Content types that are not JSON's, whoever asks."""
