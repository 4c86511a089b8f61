"""Values that clients may come back to: in memory, by id and by who stored them, the least recently used dropped.

Knows nothing of what they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")
MAX_BYTES = 256 * 2**20
"""All values together."""


@dataclass(slots=True)
class _Entry(Generic[V]):
    owner: bytes | None
    value: V
    size: int


class Store(Generic[V]):
    """All of it belongs to one event loop.

    Args:
        max_entries: most values; 0 keeps none.
        max_bytes: most bytes of all together.
    """

    def __init__(self, max_entries: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._entries: OrderedDict[str, _Entry[V]] = OrderedDict()
        self._size = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._max_entries > 0

    def put(self, id_: str, owner: bytes | None, value: V, size: int) -> list[V]:
        """Keeps a value, or changes one; returns those that had to go for it, which may be the value itself."""
        self.pop(id_, owner)
        self._entries[id_] = _Entry(owner, value, size)
        self._size += size
        dropped = []
        while self._entries and (len(self._entries) > self._max_entries or self._size > self._max_bytes):
            _, entry = self._entries.popitem(last=False)
            self._size -= entry.size
            dropped.append(entry.value)
        return dropped

    def get(self, id_: str, owner: bytes | None) -> V | None:
        """A value, if it is there and belongs to who asks; it counts as used."""
        entry = self._entries.get(id_)
        if entry is None or entry.owner != owner:
            return None
        self._entries.move_to_end(id_)
        return entry.value

    def pop(self, id_: str, owner: bytes | None) -> V | None:
        """The same, and forgets it."""
        entry = self._entries.get(id_)
        if entry is None or entry.owner != owner:
            return None
        del self._entries[id_]
        self._size -= entry.size
        return entry.value

    def all_of(self, owner: bytes | None) -> Iterator[V]:
        """All values of who asks, the last used first."""
        return (entry.value for entry in reversed(self._entries.values()) if entry.owner == owner)
