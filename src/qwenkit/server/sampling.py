"""Sampling settings out of any protocol's fields, with complaints that name the client's field. Knows no protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from qwenkit.core.errors import InputError
from qwenkit.core.sampling import MAX_LOGPROBS, MAX_SAMPLES
from qwenkit.core.types import SamplingParams
from qwenkit.server.errors import refuse

V = TypeVar("V")
MAX_STOPS = 64
_MAX_STOP_LENGTH = 1000


def either(value: V | None, default: V) -> V:
    """``value``, or the default where it is null or missing."""
    return default if value is None else value


def make_sampling(names: Mapping[str, str] | None = None, **settings: Any) -> SamplingParams:
    """Sampling settings; ``stop`` may be a text, several or None, ``seed`` a number of up to 64 bits or None.

    Args:
        names: for settings that the client calls otherwise, its name for them.
        settings: fields of `SamplingParams`.

    Raises:
        ApiError: a value is out of range; ``param`` is the client's name of the field.
    """
    names = names or {}
    settings["stop"] = _stops(settings.get("stop"), names.get("stop", "stop"))
    settings["seed"] = _seed(settings.get("seed"), names.get("seed", "seed"))
    n = settings.get("n", 1)
    if not 1 <= n <= MAX_SAMPLES:
        name = names.get("n", "n")
        sentence = f"{name}={n} is not possible; use a whole number from 1 to {MAX_SAMPLES}"
        raise refuse(sentence, name, "invalid_value")
    try:
        return SamplingParams(**settings)
    except InputError as error:
        own = str(error).partition("=")[0].partition(" ")[0].partition("[")[0]
        name = names.get(own, own)
        known = own in SamplingParams.__dataclass_fields__
        sentence = str(error).replace(own, name, 1) if known else str(error)
        raise refuse(sentence, name if known else None, "invalid_value") from None


def read_top_k(value: int | None) -> int | None:
    """Among servers of most protocols 0 and -1 both turn it off; the engine knows 0."""
    return 0 if value == -1 else value


def texts(value: str | list[str] | None) -> tuple[str, ...]:
    """One text, several or none, as several."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _stops(value: str | list[str] | tuple[str, ...] | None, name: str) -> tuple[str, ...]:
    stops = value if isinstance(value, tuple) else texts(value)
    if len(stops) > MAX_STOPS or any(len(stop) > _MAX_STOP_LENGTH for stop in stops):
        limit = f"at most {MAX_STOPS} texts of {_MAX_STOP_LENGTH} characters"
        raise refuse(f"{name} holds too much; use {limit}", name, "invalid_value")
    return stops


def _seed(value: int | None, name: str) -> int | None:
    if value is None:
        return None
    if not -(2**63) <= value < 2**63:
        raise refuse(f"{name}={value} does not fit 64 bits; use a smaller number", name, "invalid_value")
    return value & (2**63 - 1)  # seeds have a sign among clients


def check_limit(name: str, value: int | None) -> int | None:
    """``value``, if it is a possible number of tokens to make.

    Raises:
        ApiError: it is not.
    """
    if value is not None and value < 1:
        raise refuse(f"{name}={value} is not possible; use a whole number from 1 up", name, "invalid_value")
    return value


def check_logprobs(name: str, value: int | None) -> int | None:
    """``value``, if it is a possible number of alternatives.

    Raises:
        ApiError: it is not.
    """
    if value is not None and not 0 <= value <= MAX_LOGPROBS:
        sentence = f"{name}={value} is not possible; use a whole number from 0 to {MAX_LOGPROBS}"
        raise refuse(sentence, name, "invalid_value")
    return value


def check_token_ids(name: str, ids: list[int] | None, vocab_size: int) -> tuple[int, ...] | None:
    """``ids``, if the model has all of them.

    Raises:
        ApiError: it has not.
    """
    for token_id in ids or ():
        if not 0 <= token_id < vocab_size:
            raise refuse(
                f"{name} holds {token_id}; token ids go from 0 to {vocab_size - 1}", name, "invalid_value"
            )
    return None if ids is None else tuple(ids)


def read_logit_bias(bias: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    """What is added to which logits; JSON has token ids as texts there.

    Raises:
        ApiError: a text is no token id.
    """
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            sentence = f"logit_bias holds {key[:40]!r}; its keys are token ids from 0 to {vocab_size - 1}"
            raise refuse(sentence, "logit_bias", "invalid_value")
    return {int(key): value for key, value in bias.items()}


def object_schema(schema: Any) -> Any:
    """A schema that lists properties without a type means objects, among clients of text-generation-inference."""
    is_open = isinstance(schema, dict) and "properties" in schema and "type" not in schema
    return {"type": "object", **schema} if is_open else schema
