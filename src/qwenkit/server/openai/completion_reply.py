"""Continued texts in the OpenAI shape: whole, or as the chunks of a stream, from the same parts."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwenkit.core.types import Delta, TokenLogprob, Usage
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.openai.shapes import DONE, error_event, new_id, usage_value
from qwenkit.server.sse import to_json
from qwenkit.server.token_text import token_bytes
from qwenkit.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionShape:
    """How an answer has to look."""

    model: str
    created: int
    fingerprint: str
    tokenizer: Tokenizer | None
    texts: tuple[str | None, ...]
    """The prompts as they were given; None for token ids."""
    n: int = 1
    echo: bool = False
    has_logprobs: bool = False
    has_prompt_logprobs: bool = False
    include_usage: bool = False


class Logprobs:
    """Log-probabilities of one choice in four lists, as the text format has them; offsets count characters."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._values: list[float | None] = []
        self._tops: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """Adds a token; the first of a prompt has no log-probability."""
        data = token_bytes(self._tokenizer, token_id)
        self._tokens.append(_text(data))
        self._offsets.append(self._offset)
        self._offset += len(self._decoder.decode(data))
        if logprob is None:
            self._values.append(None)
            self._tops.append(None)
            return
        value = max(logprob.logprob, -9999.0)  # JSON has no infinity
        top: dict[str, float] = {}
        for i, v in logprob.top:
            top.setdefault(_text(token_bytes(self._tokenizer, i)), max(v, -9999.0))
        top.setdefault(self._tokens[-1], value)
        self._values.append(value)
        self._tops.append(top)

    def take(self) -> dict[str, Any]:
        """What was added since the last call."""
        value = {
            "tokens": self._tokens,
            "token_logprobs": self._values,
            "top_logprobs": self._tops,
            "text_offset": self._offsets,
        }
        self._clear()
        return value


def _text(data: bytes) -> str:
    """Bytes of a token as text; pieces of characters are spelled out, so that they stay apart."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class _Choice:
    """One continuation under way."""

    def __init__(self, index: int, prompt: int, shape: CompletionShape, generation: Generation) -> None:
        self.index, self.prompt = index, prompt
        self._shape, self._generation = shape, generation
        self._logprobs = Logprobs(shape.tokenizer) if shape.has_logprobs else None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.prompt_logprobs: Sequence[TokenLogprob | None] | None = None
        self._is_first = True

    def push(self, deltas: Sequence[Delta]) -> str:
        """The new text."""
        text = "".join([d.text for d in deltas])
        if self._is_first:
            self._is_first = False
            if self._shape.echo:
                text = self._prompt_text() + text
        if self._logprobs is not None:
            for p in (p for d in deltas for p in d.logprobs):
                self._logprobs.add(p.token_id, p)
        last = deltas[-1]
        if last.finish_reason is not None:
            self.finish_reason = "length" if last.finish_reason == "length" else "stop"
            self.usage = last.usage
        return text

    def see_prompt(self, logprobs: Sequence[TokenLogprob | None]) -> None:
        """Takes the prompt's log-probabilities, which come before any text."""
        if self.prompt_logprobs is not None:  # each of n replies may bring them
            return
        self.prompt_logprobs = logprobs
        if self._logprobs is not None and self._shape.echo:
            ids = self._generation.requests[self.prompt].prompt
            for token_id, logprob in zip(ids, logprobs, strict=True):
                if isinstance(token_id, int):
                    self._logprobs.add(token_id, logprob)

    def take_logprobs(self) -> dict[str, Any] | None:
        """The log-probabilities since the last call."""
        return None if self._logprobs is None else self._logprobs.take()

    def _prompt_text(self) -> str:
        given = self._shape.texts[self.prompt]
        if given is not None:
            return given
        ids = [i for i in self._generation.requests[self.prompt].prompt if isinstance(i, int)]
        return "" if self._shape.tokenizer is None else self._shape.tokenizer.decode(ids)


class Choices:
    """All continuations of a request."""

    def __init__(self, shape: CompletionShape, generation: Generation) -> None:
        self._shape = shape
        count = len(shape.texts) * shape.n
        self.all = [_Choice(i, i // shape.n, shape, generation) for i in range(count)]

    def push(self, deltas: Sequence[tuple[int, Delta]]) -> list[tuple[_Choice, str]]:
        """For each choice that something came for, its new text."""
        grouped: dict[int, list[Delta]] = {}
        n = self._shape.n
        for prompt, delta in deltas:
            grouped.setdefault(prompt * n + delta.sample, []).append(delta)
            if delta.prompt_logprobs is not None:
                for choice in self.all[prompt * n : (prompt + 1) * n]:
                    choice.see_prompt(delta.prompt_logprobs)
        return [(self.all[index], self.all[index].push(group)) for index, group in grouped.items()]

    def usage(self) -> dict[str, Any]:
        """Token counts of the request; each prompt counts once."""
        usages = [choice.usage or Usage(prompt_tokens=0, completion_tokens=0) for choice in self.all]
        n = self._shape.n
        firsts = (usages[i : i + n] for i in range(0, len(usages), n))
        return usage_value(
            [
                dataclasses.replace(group[0], completion_tokens=sum(u.completion_tokens for u in group))
                for group in firsts
            ]
        )


class CompletionCollector:
    """A whole completion."""

    def __init__(self, shape: CompletionShape, generation: Generation) -> None:
        self._shape = shape
        self._choices = Choices(shape, generation)
        self._texts: dict[int, list[str]] = {choice.index: [] for choice in self._choices.all}

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        for choice, text in self._choices.push(deltas):
            self._texts[choice.index].append(text)

    def value(self) -> dict[str, Any]:
        """See Collector."""
        return {
            **_head(self._shape),
            "choices": [self._choice(choice) for choice in self._choices.all],
            "usage": self._choices.usage(),
        }

    def _choice(self, choice: _Choice) -> dict[str, Any]:
        value = {
            "index": choice.index,
            "text": "".join(self._texts[choice.index]),
            "logprobs": choice.take_logprobs(),
            "finish_reason": choice.finish_reason,
        }
        if self._shape.has_prompt_logprobs and choice.prompt_logprobs is not None:
            value["prompt_logprobs"] = [
                p and {str(i): {"logprob": max(v, -9999.0)} for i, v in (*p.top, (p.token_id, p.logprob))}
                for p in choice.prompt_logprobs
            ]
        return value


class CompletionEncoder:
    """A completion as the events of a stream."""

    def __init__(self, shape: CompletionShape, generation: Generation) -> None:
        self._shape = shape
        self._choices = Choices(shape, generation)
        self._head = b"data: " + to_json(_head(shape))[:-1]
        self._close = b',"usage":null}\n\n' if shape.include_usage else b"}\n\n"

    def opening(self) -> bytes:
        """See Encoder."""
        return b""

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        return b"".join([self._chunk(choice, text) for choice, text in self._choices.push(deltas)])

    def closing(self) -> bytes:
        """See Encoder."""
        if not self._shape.include_usage:
            return DONE
        return self._head + b',"choices":[],"usage":' + to_json(self._choices.usage()) + b"}\n\n" + DONE

    def failure(self, error: ApiError) -> bytes:
        """See Encoder."""
        return error_event(error)

    def _chunk(self, choice: _Choice, text: str) -> bytes:
        logprobs = choice.take_logprobs()
        if not text and choice.finish_reason is None and not (logprobs and logprobs["tokens"]):
            return b""
        return b'%s,"choices":[{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s}]%s' % (
            self._head,
            choice.index,
            to_json(text),
            b"null" if logprobs is None else to_json(logprobs),
            b"null" if choice.finish_reason is None else to_json(choice.finish_reason),
            self._close,
        )


def _head(shape: CompletionShape) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": shape.created,
        "model": shape.model,
        "system_fingerprint": shape.fingerprint,
    }
