"""What every tokenizer offers: text to ids, ids to text, and where specials end and plain text begins.

Knows nothing of models or chat formats. A *special* is a token that text cannot spell unless the caller allows it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from itertools import chain
from typing import Literal, Protocol, TypeAlias

from qwenkit.core.errors import InputError

Segment: TypeAlias = int | str
"""A piece of a prompt: a token id, or text in which specials are never recognised."""

SpecialChoice: TypeAlias = Literal["all"] | Collection[str]
"""Which surface forms a rule is about: every special, or those listed."""

DecodeErrors: TypeAlias = Literal["replace", "ignore", "strict"]
"""What to do with bytes that are not UTF-8."""


class Tokenizer(Protocol):
    """Text to token ids and back; implementations inherit the methods that have a body."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id the tokenizer can produce."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Surface form to id, of every token that ordinary text must not become (control and added tokens)."""

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids that are left out of readable text (``skip_special_tokens``)."""

    @property
    def eos_token_id(self) -> int | None:
        """The end token the tokenizer files name, if any."""

    @property
    def bos_token_id(self) -> int | None:
        """The start token the tokenizer files name, if any."""

    @property
    def add_bos(self) -> bool:
        """Whether a raw prompt starts with the start token."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja template the tokenizer files carry, if any."""

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding drops one space at the very start (SentencePiece puts one there when encoding)."""

    def encode(
        self,
        text: str,
        *,
        allowed_special: SpecialChoice = "all",
        disallowed_special: SpecialChoice = (),
    ) -> list[int]:
        """Token ids of ``text``; surface forms in ``allowed_special`` become specials, others stay text.

        No start token is added. An empty ``allowed_special`` is safe for text of unknown origin.

        Raises:
            InputError: the text holds a special named in ``disallowed_special`` and not in ``allowed_special``.
        """

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for (UTF-8 of the surface form for a special).

        Raises:
            InputError: an id the tokenizer does not have.
        """

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Token ids of a prompt given in segments; each text is encoded alone, with no special recognised."""
        parts = ([s] if isinstance(s, int) else self.encode(s, allowed_special=()) for s in segments)
        return list(chain.from_iterable(parts))

    def split_specials(self, text: str) -> list[Segment]:
        """Cuts ``text`` at every special's surface form: ids for specials, text for what lies between."""
        return split_specials(text, self.special_tokens)

    def decode(
        self,
        token_ids: Iterable[int],
        *,
        skip_special_tokens: bool = False,
        errors: DecodeErrors = "replace",
    ) -> str:
        """Text of ``token_ids``; each run of bytes between control tokens is decoded by itself.

        Raises:
            InputError: an id the tokenizer does not have, or bytes that are not UTF-8 with ``errors="strict"``.
        """
        runs, run, control_ids = [], bytearray(), self.control_ids
        for token_id in map(int, token_ids):
            if token_id not in control_ids:
                run += self.token_bytes(token_id)
                continue
            runs.append(_to_text(run, errors))
            run = bytearray()
            if not skip_special_tokens:
                runs.append(self.token_bytes(token_id).decode())
        text = "".join(runs) + _to_text(run, errors)
        return text[1:] if self.strips_first_space and text.startswith(" ") else text


def _to_text(run: bytearray, errors: DecodeErrors) -> str:
    try:
        return run.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the tokens do not decode to UTF-8 ({error.reason}); use errors='replace'"
        ) from None


def split_specials(text: str, specials: Mapping[str, int]) -> list[Segment]:
    """Cuts ``text`` at every surface form in ``specials``, leftmost first and the longest of those that fit."""
    if not specials:
        return [text] if text else []
    pieces = surface_pattern(frozenset(specials)).split(text)
    # split() with one capturing group alternates text, form, text, ...
    return [specials[p] if i % 2 else p for i, p in enumerate(pieces) if p]


@lru_cache(maxsize=64)
def surface_pattern(forms: frozenset[str]) -> re.Pattern[str]:
    """A pattern with one group that finds any of ``forms``, the longest where several start together."""
    ordered = sorted(filter(None, forms), key=lambda form: (-len(form), form))
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")" if ordered else "((?!))")


def resolve_specials(
    text: str, specials: Mapping[str, int], allowed: SpecialChoice, disallowed: SpecialChoice
) -> Mapping[str, int]:
    """The specials that ``text`` may spell, after checking that it holds none of the disallowed.

    Raises:
        InputError: ``text`` holds a disallowed special, or a choice is a word other than "all".
    """
    chosen = specials
    if allowed != "all":
        forms = _listed("allowed_special", allowed)
        chosen = {form: specials[form] for form in forms if form in specials}
    names = set(specials if disallowed == "all" else _listed("disallowed_special", disallowed)) - set(chosen)
    if names and (match := surface_pattern(frozenset(names)).search(text)):
        raise InputError(
            f"the text holds {match.group()!r}, which disallowed_special forbids; "
            "remove it from the text, or list it in allowed_special"
        )
    return chosen


def _listed(argument: str, choice: SpecialChoice) -> Collection[str]:
    if isinstance(choice, str):
        raise InputError(f"{argument}={choice!r} is not possible; use 'all' or a set of surface forms")
    return choice


def replace_surrogates(text: str) -> str:
    """``text`` with surrogate pairs joined and lone surrogates, which UTF-8 cannot hold, as U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
