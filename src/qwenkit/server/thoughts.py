"""A thought as opaque text that clients send back unread, so that none is lost that was not shown. Knows no protocol."""

from __future__ import annotations

import base64
import binascii

_MARK = "kept:"
"""How ours begins; other servers have other texts in the same place."""


def seal(thought: str) -> str:
    """Text that holds a thought."""
    return _MARK + base64.b64encode(thought.encode("utf-8", "replace")).decode()


def unseal(text: str) -> str:
    """The thought that a text holds; empty where it is no text of ours."""
    if not text.startswith(_MARK):
        return ""
    try:
        return base64.b64decode(text.removeprefix(_MARK), validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""
