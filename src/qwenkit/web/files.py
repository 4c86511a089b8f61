"""The files of the page, read once into memory with all that HTTP wants to know of them. Knows nothing of requests."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).parent / "static"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".md": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
_PACKED_ALREADY = frozenset({".png", ".webp", ".woff2"})


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    content: bytes
    content_type: str
    digest: str
    """Changes with the content; short enough for a header."""
    packed: bytes | None
    """The same in gzip; None where that is no smaller."""


def read_assets(folder: Path = STATIC) -> dict[str, Asset]:
    """The assets by the path they are served at: the index at ``/``, all others below ``/static/``.

    Only what is in the folder now, and of a type that pages are made of, is ever served, so no path of a request
    reaches the file system.
    """
    found: dict[str, Asset] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _TYPES):
        name = file.relative_to(folder).as_posix()
        found["/" if name == _INDEX else f"/static/{name}"] = _read(file)
    return found


def _read(file: Path) -> Asset:
    content = file.read_bytes()
    packed = None
    if file.suffix not in _PACKED_ALREADY:
        smaller = gzip.compress(content, mtime=0)
        packed = smaller if len(smaller) < len(content) else None
    digest = hashlib.sha256(content).hexdigest()[:32]
    return Asset(content, _TYPES[file.suffix], digest, packed)
