"""The text of one reply as its tokens come: no half characters, nothing of a stop string. Knows nothing of models."""

from __future__ import annotations

from qwenkit.core.sampling import SamplingParams
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.stream import StopMatcher, StreamDecoder


class TextStream:
    """Decodes one reply.

    Args:
        tokenizer: None: there is no text, only tokens.
        params: stop strings, and whether they and control tokens are shown.
    """

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams) -> None:
        self._decoder = (
            StreamDecoder(tokenizer, skip_special_tokens=params.skip_special_tokens) if tokenizer else None
        )
        self._matcher = StopMatcher(params.stop)
        self._skips_ends = params.skip_special_tokens
        self._min_tokens, self._include_stop = params.min_tokens, params.include_stop
        self._count = 0

    @property
    def stop(self) -> str | None:
        """The stop string that was hit."""
        return self._matcher.matched

    def push(self, token_id: int, *, is_end: bool) -> str:
        """The text that can be shown now; look at ``stop`` afterwards.

        Args:
            token_id: the new token.
            is_end: it only ends the reply and is shown just where control tokens are.
        """
        self._count += 1
        if self._decoder is None or (is_end and self._skips_ends):
            return ""
        text = self._decoder.push(token_id)
        if self._count < self._min_tokens:
            return text  # stop strings count only from min_tokens on
        shown, stopped = self._matcher.push(text)
        return shown + (self.stop or "") if stopped and self._include_stop else shown

    def finish(self) -> str:
        """What was held back, once no token comes any more.

        Bytes of a character the reply was cut in are dropped: half a character is never shown.
        """
        text = self._matcher.flush()
        return text + (self.stop or "") if self.stop and self._include_stop else text
