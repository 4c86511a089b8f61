"""How tokens are picked: the settings of one request, checked when they are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from qwenkit.core.errors import InputError

MAX_SAMPLES = 128
MAX_LOGPROBS = 20
ConstraintKind: TypeAlias = Literal["json_object", "json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the reply must look like: every token that would break it is masked."""

    kind: ConstraintKind
    """grammar: a Lark grammar in llguidance's dialect."""
    value: Any = None
    """The schema (mapping or JSON text), the regular expression, the list of choices, the grammar; None for json_object."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise InputError(
                f"constraint kind {self.kind!r} is unknown; use one of {', '.join(get_args(ConstraintKind))}"
            )
        if self.kind in ("regex", "grammar") and not (isinstance(self.value, str) and self.value):
            raise InputError(f"a {self.kind} constraint needs non-empty text, got {self.value!r:.80}")
        if self.kind == "json_schema" and not isinstance(self.value, Mapping | str | bool):
            raise InputError(f"a json_schema constraint needs a schema object, got {self.value!r:.80}")
        if self.kind == "choice":
            choices = _items("choice", self.value)
            if not choices or any(not isinstance(c, str) or not c for c in choices):
                raise InputError(f"choice={self.value!r:.80} must be a list of non-empty texts")
            object.__setattr__(self, "value", choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to pick tokens and when to stop. ``None`` means: as the model's generation_config says."""

    n: int = 1
    """Replies to draw for one prompt."""
    max_tokens: int | None = None
    """Most tokens to generate; 0 only scores the prompt; None: up to the end of the context."""
    min_tokens: int = 0
    """The model's end tokens and stop_token_ids are not chosen before this many tokens."""
    temperature: float | None = None
    """0 picks the most likely token; higher is more random."""
    top_k: int | None = None
    """Sample among the k most likely tokens; 0 turns it off."""
    top_p: float | None = None
    """Sample among the smallest set whose probability reaches top_p."""
    min_p: float | None = None
    """Drop tokens less likely than min_p times the most likely one."""
    repetition_penalty: float | None = None
    """Divide positive, multiply negative logits of tokens already seen; 1 turns it off."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit for every time the reply has used it; -2 to 2."""
    presence_penalty: float | None = None
    """Subtracted from the logits of tokens the reply has used at all; -2 to 2."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens; -100 to 100."""
    bad_words: tuple[str, ...] = ()
    """Texts the reply must not contain: the token that would complete one is masked."""
    allowed_token_ids: tuple[int, ...] | None = None
    """Only these tokens may be chosen; None: all."""
    constraint: Constraint | None = None
    """What the reply must look like."""
    seed: int | None = None
    """Makes sampling repeatable, whatever else runs in the batch."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the reply, besides the model's own."""
    stop_token_sequences: tuple[tuple[int, ...], ...] = ()
    """Runs of token ids that end the reply when they are its tail (stop_words_ids of Qwen v1)."""
    ignore_eos: bool = False
    """Go on after the model's end tokens; explicit stops still count."""
    include_stop: bool = False
    """Keep the stop string that ended the reply in its text."""
    skip_special_tokens: bool = True
    """Leave control tokens out of the text."""
    logprobs: int | None = None
    """Report each token's log-probability and that many likeliest alternatives (0: none); None: nothing."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        stop: Any = self.stop
        set_(self, "stop", (stop,) if isinstance(stop, str) else _items("stop", stop))
        set_(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        sequences = _items("stop_token_sequences", self.stop_token_sequences)
        set_(self, "stop_token_sequences", tuple(_token_ids("stop_token_sequences", s) for s in sequences))
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise InputError(f"stop={self.stop!r}: every stop string must be non-empty text")
        if any(not s for s in self.stop_token_sequences):
            raise InputError("stop_token_sequences holds an empty sequence; remove it")
        self._check_vocabulary_fields()
        _check_whole("n", self.n, 1, MAX_SAMPLES)
        _check_whole("max_tokens", self.max_tokens, 0)
        _check_whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InputError(
                f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}; lower it"
            )
        _check_whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check_whole("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _check_whole("top_k", self.top_k, 0)
        _check_whole("seed", self.seed, 0, 2**63 - 1)
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)

    def _check_vocabulary_fields(self) -> None:
        set_ = object.__setattr__
        words: Any = self.bad_words
        set_(self, "bad_words", (words,) if isinstance(words, str) else _items("bad_words", words))
        if any(not isinstance(w, str) or not w for w in self.bad_words):
            raise InputError(f"bad_words={self.bad_words!r:.80}: every bad word must be non-empty text")
        if self.allowed_token_ids is not None:
            set_(self, "allowed_token_ids", _token_ids("allowed_token_ids", self.allowed_token_ids))
            if not self.allowed_token_ids:
                raise InputError("allowed_token_ids is empty, so no token could be chosen; leave it out")
        if not isinstance(self.logit_bias, Mapping):
            raise InputError(f"logit_bias={self.logit_bias!r:.80} must map token ids to numbers")
        _token_ids("logit_bias", tuple(self.logit_bias))
        for token, bias in self.logit_bias.items():
            _check_range(f"logit_bias[{token}]", bias, -100.0, 100.0)
            if bias is None:
                raise InputError(f"logit_bias[{token}]=None is not possible; use a number from -100 to 100")

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """These settings, with ``defaults`` where a field is None; stops of both apply."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            mine, theirs = getattr(self, item.name), getattr(defaults, item.name)
            if isinstance(mine, tuple) and isinstance(theirs, tuple):
                values[item.name] = tuple(dict.fromkeys(mine + theirs))
            else:
                values[item.name] = theirs if mine is None else mine
        return SamplingParams(**values)

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature == 0 or self.top_k == 1


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InputError(f"{name}={value!r} is not possible; use a list")
    return tuple(value)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    ids = _items(name, value)
    bad = next((i for i in ids if isinstance(i, bool) or not isinstance(i, int)), None)
    if bad is not None:
        raise InputError(f"{name} holds {bad!r}; use token ids, which are whole numbers")
    return ids


def _check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    if value is None:
        return
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < low
        or (high is not None and value > high)
    ):
        allowed = f"a whole number from {low}" + (f" to {high}" if high is not None else " up")
        raise InputError(f"{name}={value!r} is not possible; use {allowed}")


def _check_range(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN fails the comparison, as does infinity.
    if not number or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        bound = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
        raise InputError(f"{name}={value!r} is not possible; use a number {bound}")
