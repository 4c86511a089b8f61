"""Reads generation_config.json: default sampling, end tokens, chat format, history window."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenkit.core.errors import ConfigError, InputError
from qwenkit.core.types import SamplingParams

_log = logging.getLogger("qwenkit")
# Settings of transformers' generate that change the text, with the value at which they do nothing.
_UNSUPPORTED: Mapping[str, Any] = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": [],
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_new_tokens": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": 0.0,
}
GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What a checkpoint says about generating with it."""

    defaults: SamplingParams = GREEDY
    """Sampling with every field set but max_tokens and seed; greedy unless do_sample is true, as in transformers."""
    eos_ids: tuple[int, ...] = ()
    chat_format: str | None = None
    """Qwen v1 only: "chatml" for chat models, "raw" for base models."""
    max_window_size: int | None = None
    """Qwen v1 only: tokens of history kept."""


def from_generation_config(raw: Mapping[str, Any], model_config: Mapping[str, Any]) -> GenerationConfig:
    """Defaults from generation_config.json, with end tokens from config.json where it has none.

    Raises:
        ConfigError: a value is of the wrong kind or impossible.
    """
    for key, neutral in _UNSUPPORTED.items():
        if raw.get(key, neutral) not in (None, neutral):
            _log.warning("generation_config.json: %s=%r is not supported and has no effect", key, raw[key])
    sample = raw.get("do_sample", False)
    if sample not in (None, True, False):
        raise ConfigError(f"generation_config.json: do_sample={sample!r} must be true or false")
    eos = raw.get("eos_token_id", model_config.get("eos_token_id"))
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    stops = raw.get("stop_words_ids") or []
    try:
        if any(isinstance(i, bool) or not isinstance(i, int) for i in eos_ids):
            raise InputError(f"eos_token_id={eos!r} must be a whole number or a list of them")
        max_tokens = raw.get("max_new_tokens", raw.get("max_generate_size"))
        if max_tokens == 0:
            raise InputError("max_new_tokens=0 would leave every reply empty; use a whole number from 1 up")
        defaults = SamplingParams(
            max_tokens=max_tokens,
            temperature=_or(raw.get("temperature"), 1.0) if sample else 0.0,
            top_k=_or(raw.get("top_k"), 0),
            top_p=_or(raw.get("top_p"), 1.0),
            min_p=_or(raw.get("min_p"), 0.0),
            repetition_penalty=_or(raw.get("repetition_penalty"), 1.0),
            # A sequence that is one end token adds nothing, the end token stops anyway.
            stop_token_sequences=tuple(s for s in stops if s not in [[i] for i in eos_ids]),
        )
    except (InputError, TypeError) as error:
        raise ConfigError(f"generation_config.json: {error}") from None
    window = raw.get("max_window_size", raw.get("max_context_size"))
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigError(
            f"generation_config.json: max_window_size={window!r} must be a whole number from 1 up"
        )
    if raw.get("chat_format") not in (None, "chatml", "raw"):
        raise ConfigError(
            f"generation_config.json: chat_format={raw['chat_format']!r} is not known; use 'chatml' or 'raw'"
        )
    return GenerationConfig(
        defaults=defaults, eos_ids=eos_ids, chat_format=raw.get("chat_format"), max_window_size=window
    )


def _or(value: Any, default: float) -> Any:
    return default if value is None else value
