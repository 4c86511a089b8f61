"""generation_config.json, with the values that released models carry."""

from __future__ import annotations

from typing import Any

import pytest

from qwenkit.config.generation import GREEDY, from_generation_config
from qwenkit.core.errors import ConfigError
from qwenkit.core.types import SamplingParams

QWEN1_BASE = {
    "chat_format": "raw",
    "eos_token_id": 151643,
    "pad_token_id": 151643,
    "stop_words_ids": [[151643]],
    "max_new_tokens": 512,
    "do_sample": True,
    "top_k": 0,
    "top_p": 0.8,
}
QWEN1_CHAT = {**QWEN1_BASE, "chat_format": "chatml", "max_window_size": 24000, "repetition_penalty": 1.1}
QWEN25 = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
}


def sampling(**values: Any) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0} | values
    )


def test_first_generation_base() -> None:
    config = from_generation_config(QWEN1_BASE, {})
    assert config.defaults == sampling(top_p=0.8, max_tokens=512)
    assert (config.eos_ids, config.chat_format, config.max_window_size) == ((151643,), "raw", None)


def test_first_generation_chat() -> None:
    config = from_generation_config(QWEN1_CHAT, {})
    assert config.defaults == sampling(top_p=0.8, max_tokens=512, repetition_penalty=1.1)
    assert (config.chat_format, config.max_window_size) == ("chatml", 24000)


def test_first_release() -> None:
    raw = {**QWEN1_CHAT, "max_window_size": None, "max_new_tokens": None}
    raw = {k: v for k, v in raw.items() if v is not None} | {
        "max_context_size": 1024,
        "max_generate_size": 512,
    }
    config = from_generation_config(raw, {})
    assert (config.max_window_size, config.defaults.max_tokens) == (1024, 512)


def test_later_generations() -> None:
    config = from_generation_config(QWEN25, {"eos_token_id": 151643})
    assert config.defaults == sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    assert config.eos_ids == (151645, 151643)


def test_greedy_unless_sampling_is_asked_for() -> None:
    config = from_generation_config({"do_sample": False, "max_new_tokens": 2048, "temperature": 0.6}, {})
    assert config.defaults == SamplingParams(
        temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, max_tokens=2048
    )
    assert from_generation_config({}, {}).defaults == GREEDY


def test_end_tokens_of_config_json_where_there_are_no_others() -> None:
    assert from_generation_config({}, {"eos_token_id": 2}).eos_ids == (2,)
    assert from_generation_config({"eos_token_id": 3}, {"eos_token_id": 2}).eos_ids == (3,)
    assert from_generation_config({}, {}).eos_ids == ()


def test_stop_words() -> None:
    config = from_generation_config({"eos_token_id": 5, "stop_words_ids": [[5], [1, 2]]}, {})
    assert config.defaults.stop_token_sequences == ((1, 2),)


@pytest.mark.parametrize(
    "raw",
    [
        {"eos_token_id": "2"},
        {"eos_token_id": [True]},
        {"do_sample": True, "temperature": -1},
        {"top_p": 0},
        {"top_k": 0.5},
        {"stop_words_ids": [3]},
        {"stop_words_ids": [[]]},
        {"max_new_tokens": 0},
        {"max_window_size": "6144"},
        {"max_window_size": 0},
    ],
)
def test_impossible_values_name_the_file(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json: "):
        from_generation_config(raw, {})


@pytest.mark.parametrize(
    "raw",
    [
        {"chat_format": "foo"},
        {"stop_words_ids": [["a"]]},
        {"stop_words_ids": "abc"},
        {"stop_words_ids": [5]},
        {"do_sample": True, "temperature": 10**400},
    ],
    ids=lambda raw: next(iter(raw)),
)
def test_values_of_the_wrong_kind(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        from_generation_config(raw, {})


def test_settings_without_effect_are_named(caplog: pytest.LogCaptureFixture) -> None:
    from_generation_config(
        {"num_beams": 4, "no_repeat_ngram_size": 3, "typical_p": 1.0, "min_new_tokens": None}, {}
    )
    assert "num_beams=4" in caplog.text
    assert "no_repeat_ngram_size=3" in caplog.text
    assert "typical_p" not in caplog.text
    assert "min_new_tokens" not in caplog.text
    with pytest.raises(ConfigError, match="do_sample='false'"):
        from_generation_config({"do_sample": "false"}, {})
