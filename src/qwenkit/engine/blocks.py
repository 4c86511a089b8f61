"""Who holds which page of the key-value cache: reference counts, and a cache of prompt beginnings.

Works on page numbers and token ids alone; knows nothing of tensors. A page that is full of tokens gets a digest of
everything up to its end (and of what else its numbers depend on: the root). Pages nobody holds keep their content until
they are needed, so that a later prompt with the same beginning finds them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from qwenkit.cache import PAGE_SIZE as PAGE_SIZE


def page_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Digest of a full page, given that of the page before it; collisions are out of the question."""
    return hashlib.blake2b(array("q", token_ids).tobytes(), key=parent, digest_size=16).digest()


def root_digest(*parts: object) -> bytes:
    """Where chains of digests start: everything besides the tokens that cached numbers depend on."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def pages_for(num_tokens: int) -> int:
    """Pages that hold this many tokens."""
    return -(-num_tokens // PAGE_SIZE)


class BlockManager:
    """Hands out pages.

    Args:
        num_pages: pages in all, numbered from 0.
        caching: keep the content of full pages for later prompts.
    """

    def __init__(self, num_pages: int, *, caching: bool = True) -> None:
        self.num_pages, self.caching = num_pages, caching
        # The last one is taken first: what was just given back is still warm, and memory never used stays unused.
        self._blank = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # unheld pages with content, the oldest first
        self._holders = [0] * num_pages
        self._digest_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that can be taken now."""
        return len(self._blank) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Pages that somebody holds."""
        return self.num_pages - self.num_free

    @property
    def num_cached(self) -> int:
        """Pages nobody holds that keep their content."""
        return len(self._idle)

    def take(self, count: int) -> list[int] | None:
        """``count`` pages with nothing in them, held once; None when there are not enough."""
        if count > self.num_free:
            return None
        pages = []
        for _ in range(count):
            page = self._blank.pop() if self._blank else self._evict()
            self._holders[page] = 1
            pages.append(page)
        return pages

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._digest_of.pop(page)]
        return page

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each page."""
        for page in pages:
            if self._holders[page] == 0:
                del self._idle[page]
            self._holders[page] += 1

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """The pages of the longest beginning of ``digests`` that is there; they are not held by this."""
        pages = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def num_idle_among(self, pages: Iterable[int]) -> int:
        """How many of these pages nobody holds: sharing them makes so many fewer free."""
        return sum(self._holders[page] == 0 for page in pages)

    def remember(self, page: int, digest: bytes) -> None:
        """A held page is full, and this is its digest. Another page with the same content keeps its place."""
        if self.caching and digest not in self._page_of and page not in self._digest_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def release(self, pages: Sequence[int]) -> None:
        """One holder less for each page; pages of the end become blank again before those of the beginning."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0, f"page {page} was released more often than taken"
            if self._holders[page]:
                continue
            if page in self._digest_of:
                self._idle[page] = None
            else:
                self._blank.append(page)

    def forget(self) -> None:
        """Drops all content that nobody holds."""
        while self._idle:
            self._blank.append(self._evict())

    def check(self) -> None:
        """Asserts that every page is in exactly one place."""
        held = {page for page, holders in enumerate(self._holders) if holders}
        assert not held & set(self._idle)
        assert not held & set(self._blank)
        assert not set(self._blank) & set(self._idle)
        assert len(self._blank) == len(set(self._blank))
        assert len(held) + len(self._idle) + len(self._blank) == self.num_pages
        assert set(self._idle) <= set(self._digest_of)
        assert {page: digest for digest, page in self._page_of.items()} == self._digest_of
