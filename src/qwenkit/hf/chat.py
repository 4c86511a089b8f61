"""Conversation methods of a transformers model: replies whole or in pieces, and stop sequences in ``generate``.

Prompts come from `qwenkit.chat`. Knows nothing of the network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList

from qwenkit.chat.chatml import DEFAULT_SYSTEM, ChatMLTemplate
from qwenkit.chat.history import fit_history
from qwenkit.core.errors import InputError
from qwenkit.core.types import Message
from qwenkit.hf.stopping import StopAtSequences, TokenQueue
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.stream import StreamDecoder

History: TypeAlias = Sequence[tuple[str, str]]
"""Questions with their answers, oldest first."""

_MAX_WINDOW_SIZE = 6144
_CHATML = "chatml"
_wrapped: WeakKeyDictionary[Any, Tokenizer] = WeakKeyDictionary()


def plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """The `qwenkit.tokenizer` behind a transformers tokenizer.

    Raises:
        InputError: one that is neither Qwen's own nor of the ``tokenizers`` library.
    """
    own = getattr(tokenizer, "bpe", None)
    if isinstance(own, TiktokenTokenizer):
        return own
    if tokenizer not in _wrapped:
        library = getattr(tokenizer, "backend_tokenizer", None)
        if library is None:
            raise InputError(
                f"a tokenizer of type {type(tokenizer).__name__} cannot be used for chat; load it with AutoTokenizer"
            )
        import tokenizers

        from qwenkit.tokenizer.hf_json import HfTokenizer, TokenizerInfo

        copy = tokenizers.Tokenizer.from_str(library.to_str())
        _wrapped[tokenizer] = HfTokenizer(copy, TokenizerInfo(eos_token=tokenizer.eos_token))
    return _wrapped[tokenizer]


class ChatMixin(GenerationMixin):
    """``chat``, ``chat_stream`` and ``generate`` with stop sequences."""

    def generate(
        self, *args: Any, stop_words_ids: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers, and rows also end at the runs of ids in ``stop_words_ids``.

        Args:
            args: as in transformers.
            stop_words_ids: runs of ids; None: those of the generation configuration.
            kwargs: as in transformers.
        """
        if stop_words_ids is None:
            config = kwargs.get("generation_config") or self.generation_config
            stop_words_ids = getattr(config, "stop_words_ids", None)
        if stop_words_ids:
            criteria = [*(kwargs.pop("stopping_criteria", None) or ()), StopAtSequences(stop_words_ids)]
            kwargs["stopping_criteria"] = StoppingCriteriaList(criteria)
        return super().generate(*args, **kwargs)

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: History | None = None,
        system: str = DEFAULT_SYSTEM,
        stop_words_ids: Sequence[Sequence[int]] | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> tuple[str, list[tuple[str, str]]]:
        """A reply, and the history with the question and the reply added.

        Args:
            tokenizer: of the model.
            query: the question; is never cut.
            history: questions and replies so far; the oldest are left out of a prompt that would be too long. It is
                not changed.
            system: the system text.
            stop_words_ids: runs of ids that also end the reply, and stay part of it.
            generation_config: in place of the model's.
            kwargs: settings of ``generate``, and ``max_window_size``, which bounds the history.

        Raises:
            InputError: the model is none for chat.
        """
        plain = plain_tokenizer(tokenizer)
        inputs, settings = self._chat_inputs(
            plain, query, history, system, stop_words_ids, generation_config, kwargs
        )
        output = self.generate(**inputs, **settings)
        reply = _reply_text(plain, output[0, inputs["input_ids"].shape[1] :].tolist())
        return reply, [*(history or ()), (query, reply)]

    def chat_stream(
        self,
        tokenizer: Any,
        query: str,
        history: History | None = None,
        system: str = DEFAULT_SYSTEM,
        stop_words_ids: Sequence[Sequence[int]] | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """The reply as it grows, each time from its beginning; half characters are held back.

        Generation ends when the iterator is closed. The arguments are those of ``chat``.
        """
        plain = plain_tokenizer(tokenizer)
        inputs, settings = self._chat_inputs(
            plain, query, history, system, stop_words_ids, generation_config, kwargs
        )
        tokens = TokenQueue()
        settings["stopping_criteria"] = [*(settings.get("stopping_criteria") or ()), tokens]
        return _growing_text(plain, tokens, lambda: self.generate(**inputs, **settings, streamer=tokens))

    def _chat_inputs(
        self,
        plain: Tokenizer,
        query: str,
        history: History | None,
        system: str,
        stop_words_ids: Sequence[Sequence[int]] | None,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors and settings for ``generate``."""
        config = deepcopy(generation_config or self.generation_config)
        if getattr(config, "chat_format", _CHATML) != _CHATML:
            raise InputError(
                f"the generation configuration says chat_format={config.chat_format!r}, so this is no chat model; "
                "use generate, or a -Chat model"
            )
        settings = dict(kwargs)
        window = settings.pop("max_window_size", None) or getattr(config, "max_window_size", None)
        template = ChatMLTemplate(plain)
        messages = [Message("system", system)]
        for question, answer in history or ():
            messages += [Message("user", question), Message("assistant", answer)]
        messages.append(Message("user", query))
        messages = fit_history(template, plain, messages, window or _MAX_WINDOW_SIZE)
        ids = torch.tensor([plain.encode_segments(template.render(messages))], device=self.device)
        ends = [token for run in template.stop_token_sequences for token in run]
        settings = config.update(**settings)  # what is left is no setting of generation
        config.eos_token_id = list(dict.fromkeys([*_as_list(config.eos_token_id), *ends]))
        if config.pad_token_id is None:
            config.pad_token_id = config.eos_token_id[0]
        settings |= {"generation_config": config, "stop_words_ids": stop_words_ids}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, settings


def _as_list(ids: Any) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _is_end(plain: Tokenizer, token_id: int) -> bool:
    """Whether a token can only mean that the turn is over."""
    return token_id in (plain.eos_token_id, *(plain.special_tokens[f"<|im_{x}|>"] for x in ("start", "end")))


def _reply_text(plain: Tokenizer, token_ids: Sequence[int]) -> str:
    end = next((i for i, token in enumerate(token_ids) if _is_end(plain, token)), len(token_ids))
    return plain.decode(token_ids[:end]).strip()


def _growing_text(plain: Tokenizer, tokens: TokenQueue, run: Any) -> Iterator[str]:
    def work() -> None:
        try:
            run()
        except BaseException as error:
            tokens.fail(error)

    thread = threading.Thread(target=work, name="qwenkit-chat-stream", daemon=True)
    decoder, text = StreamDecoder(plain), ""
    thread.start()
    try:
        for token_id in tokens:
            new = "" if _is_end(plain, token_id) else decoder.push(token_id)
            if new:
                text += new
                yield text
    finally:
        tokens.cancel()
        thread.join()
