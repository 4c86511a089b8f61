"""One reply under way: its tokens, its pages, and how far it has been computed. Knows nothing of tensors or text."""

from __future__ import annotations

from enum import Enum
from typing import Any

from qwenkit.core.sampling import SamplingParams
from qwenkit.engine.blocks import PAGE_SIZE, page_digest
from qwenkit.engine.lookup import Lookup


class Status(Enum):
    """Where a sequence is in its life."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


class Sequence:
    """A prompt and its reply so far.

    Args:
        number: order of arrival.
        prompt: token ids, at least one.
        params: resolved sampling settings.
        limit: most tokens the reply may have.
        root: digest of what cached pages depend on besides tokens.
        leader: the sequence whose prompt this one shares (the first of n replies).
        marks_generated: what is stored for a token depends on whether it is of the prompt or of the reply.
    """

    def __init__(
        self,
        number: int,
        prompt: list[int],
        params: SamplingParams,
        *,
        limit: int,
        root: bytes,
        leader: Sequence | None = None,
        marks_generated: bool = False,
    ) -> None:
        self.number, self.params, self.limit, self.leader = number, params, limit, leader
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.status = Status.NEW
        self.computed = 0
        """Tokens whose keys and values are stored."""
        self.pages: list[int] = []
        self.cached = 0
        """Tokens of the prompt found in the prefix cache when it was first read."""
        self.started = False
        """It has run before, so what it finds in the cache now may be its own work."""
        self.reads_whole_prompt = params.prompt_logprobs is not None
        """Every position of the prompt has to pass through the network."""
        self.lookup: Lookup | None = None
        """Guesses of its next tokens, once they are wanted."""
        self.state: Any = None
        """What the engine keeps with it: sampler, text, where deltas go."""
        self._marks_generated = marks_generated
        self._digests: list[bytes] = [root]

    @property
    def num_output(self) -> int:
        """Tokens of the reply."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens not computed yet: 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def is_decoding(self) -> bool:
        """Whether just the last token waits to be computed."""
        return self.num_pending == 1 and self.computed >= self.num_prompt

    @property
    def has_read_prompt(self) -> bool:
        """Whether the whole prompt has been computed."""
        return self.computed >= self.num_prompt

    def digest(self, page: int) -> bytes:
        """Digest of the n-th page, all of whose tokens are known."""
        while len(self._digests) <= page + 1:
            at = (len(self._digests) - 1) * PAGE_SIZE
            self._digests.append(page_digest(self._digests[-1], self._content(at, at + PAGE_SIZE)))
        return self._digests[page + 1]

    def _content(self, first: int, end: int) -> list[int]:
        """What the numbers stored for some tokens depend on."""
        given = max(self.num_prompt - first, 0)
        tokens = self.tokens[first:end]
        if not self._marks_generated or given >= len(tokens):
            return tokens
        return tokens[:given] + [~token for token in tokens[given:]]

    def full_digests(self, num_tokens: int) -> list[bytes]:
        """Digests of the pages that lie wholly within the first ``num_tokens`` tokens."""
        return [self.digest(page) for page in range(num_tokens // PAGE_SIZE)]

    def __repr__(self) -> str:
        return f"Sequence({self.number}, {self.status.value}, {self.computed}/{len(self.tokens)}, pages {self.pages})"
