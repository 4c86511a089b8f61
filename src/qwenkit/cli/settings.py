"""Sampling settings as text: ``key=value`` to typed values and back."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

from qwenkit.cli.texts import Texts
from qwenkit.core.errors import InputError, did_you_mean
from qwenkit.core.types import SamplingParams

# One reply of plain text is what a terminal shows.
_ELSEWHERE = {"n", "logprobs", "prompt_logprobs", "constraint", "logit_bias", "allowed_token_ids"}
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(SamplingParams) if f.name not in _ELSEWHERE}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "text or a JSON list",
}
_SWITCH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _kind(name: str) -> str:
    annotation = str(SamplingParams.__dataclass_fields__[name].type)
    return next(kind for kind in _KINDS if annotation.startswith(kind))


def parse(name: str, text: str) -> Any:
    """The value that ``text`` stands for in the field ``name``; 'none' is the field's default.

    Raises:
        ValueError: the text is of the wrong kind.
    """
    word = text.strip().lower()
    if word in ("none", "default"):
        return _DEFAULTS[name]
    kind = _kind(name)
    if kind == "int":
        return int(word)
    if kind == "float":
        return float(word)
    if kind == "bool":
        if word not in _SWITCH:
            raise ValueError(text)
        return _SWITCH[word]
    return _parse_tuple(name, text)


def _parse_tuple(name: str, text: str) -> tuple[Any, ...]:
    if name in ("stop", "bad_words") and not text.lstrip().startswith("["):
        return (text,)
    items = json.loads(text)
    element: type = {"stop": str, "bad_words": str, "stop_token_ids": int, "stop_token_sequences": list}[name]
    if not isinstance(items, list) or not all(type(item) is element for item in items):
        raise ValueError(text)
    return tuple(items)


def change(params: SamplingParams, argument: str, texts: Texts) -> tuple[SamplingParams, list[str]]:
    """Applies ``key=value key=value``; quotes keep blanks together.

    Returns:
        The new parameters, and each change as text.

    Raises:
        InputError: a key is unknown, a value of the wrong kind or out of range; nothing is changed then.
    """
    values: dict[str, Any] = {}
    for item in _split(argument):
        name, equals, text = item.partition("=")
        if not equals:
            raise InputError(texts.conf_usage.format(item=item))
        if name not in _DEFAULTS:
            raise InputError(texts.conf_unknown.format(name=name, near=did_you_mean(name, _DEFAULTS)))
        try:
            values[name] = parse(name, text)
        except (ValueError, RecursionError):
            raise InputError(
                texts.conf_value.format(name=name, value=text, kind=_KINDS[_kind(name)])
            ) from None
    changed = dataclasses.replace(params, **values)
    return changed, [f"{name}={_show(getattr(changed, name))}" for name in values]


def _split(argument: str) -> list[str]:
    """Splits at blanks outside quotes; a value that is a JSON list stays as it is."""
    name, _, text = argument.partition("=")
    if text.lstrip().startswith("[") and text.rstrip().endswith("]"):
        return [f"{name.strip()}={text}"]
    try:
        return shlex.split(argument)
    except ValueError:
        return [argument]


def show(params: SamplingParams, defaults: SamplingParams, texts: Texts) -> str:
    """All settings, one a line, with the model's own where none is set."""
    width = max(map(len, _DEFAULTS))
    lines = []
    for name, default in _DEFAULTS.items():
        mine = getattr(params, name)
        value = getattr(defaults, name) if mine == default else mine
        note = f"  ({texts.conf_default})" if value != mine else ""
        lines.append(f"  {name:<{width}}  {_show(value)}{note}")
    return "\n".join(lines)


def _show(value: Any) -> str:
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple | bool) else str(value)
