"""The tokenizer of first-generation Qwen as a transformers tokenizer, on top of `qwenkit.tokenizer`.

Tokens are bytes, and specials are text. Knows nothing of models.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from transformers import AddedToken, PreTrainedTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from qwenkit.core.errors import InputError, TokenizerError
from qwenkit.hf.chat_template import CHATML_JINJA, chat_segments, is_batch, segments_text
from qwenkit.tokenizer.base import DecodeErrors, SpecialChoice
from qwenkit.tokenizer.bpe import TiktokenTokenizer

Token: TypeAlias = bytes | str

_VOCAB_FILES = {"vocab_file": "qwen.tiktoken", "extra_vocab_file": "qwen_extra.tiktoken"}


class QWenTokenizer(PreTrainedTokenizer):
    """Byte-level BPE from qwen.tiktoken, with the 208 specials of the release.

    Surface forms of specials in text become specials unless ``allowed_special`` leaves them out; conversations given
    to ``apply_chat_template`` are safe from that.

    Args:
        vocab_file: qwen.tiktoken.
        errors: what decoding does with bytes that are not UTF-8: "replace", "ignore" or "strict".
        extra_vocab_file: qwen_extra.tiktoken, whose tokens follow the specials.
        eos_token: the end of a text.
        pad_token: any special.
        kwargs: as for every transformers tokenizer, ``padding_side`` for instance.
    """

    vocab_files_names: ClassVar[dict[str, str]] = _VOCAB_FILES
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str | None = None,
        errors: DecodeErrors = "replace",
        extra_vocab_file: str | None = None,
        eos_token: str = "<|endoftext|>",
        pad_token: str = "<|endoftext|>",
        **kwargs: Any,
    ) -> None:
        if vocab_file is None:
            raise TokenizerError("the tokenizer needs the file qwen.tiktoken; put it into the model folder")
        self.vocab_file, self.extra_vocab_file, self.errors = vocab_file, extra_vocab_file, errors
        self.bpe = TiktokenTokenizer.from_file(vocab_file, extra=extra_vocab_file)
        self._vocab: dict[Token, int] = dict(self.bpe.ranks.items())
        self._vocab.update(self.bpe.special_tokens.items())
        kwargs.pop("auto_map", None)  # names Python files that are neither run nor written
        kwargs.setdefault("chat_template", CHATML_JINJA)
        super().__init__(errors=errors, eos_token=eos_token, pad_token=pad_token, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a folder that has tokenizer.json in place of qwen.tiktoken gives a fast tokenizer."""
        path = pretrained_model_name_or_path
        if _file(path, "qwen.tiktoken", kwargs) is None and _file(path, "tokenizer.json", kwargs) is not None:
            return PreTrainedTokenizerFast.from_pretrained(path, *args, **kwargs)
        return super().from_pretrained(path, *args, **kwargs)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, specials included."""
        return self.bpe.vocab_size

    def __len__(self) -> int:
        return self.bpe.vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Surface form of every special to its id."""
        return self.bpe.special_tokens

    @property
    def eod_id(self) -> int:
        """``<|endoftext|>``"""
        return self.bpe.special_tokens["<|endoftext|>"]

    @property
    def im_start_id(self) -> int:
        """``<|im_start|>``"""
        return self.bpe.special_tokens["<|im_start|>"]

    @property
    def im_end_id(self) -> int:
        """``<|im_end|>``"""
        return self.bpe.special_tokens["<|im_end|>"]

    @property
    def all_special_tokens(self) -> list[str]:
        """The 208 specials."""
        return list(self.bpe.special_tokens)

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of the 208 specials."""
        return list(self.bpe.special_tokens.values())

    def get_vocab(self) -> dict[Token, int]:
        """Every token to its id: bytes for regular tokens, text for specials."""
        return dict(self._vocab)

    def tokenize(
        self,
        text: str,
        allowed_special: SpecialChoice = "all",
        disallowed_special: SpecialChoice = (),
        **kwargs: Any,
    ) -> list[Token]:
        """Tokens of ``text``.

        Args:
            text: is NFC-normalised first.
            allowed_special: which surface forms become specials; an empty set is safe for text of unknown origin.
            disallowed_special: which surface forms are refused, unless allowed.
            kwargs: ``split_special_tokens=True`` is ``allowed_special=()``.

        Raises:
            InputError: the text holds a disallowed special.
        """
        if kwargs.get("split_special_tokens", self.split_special_tokens):
            allowed_special = ()
        ids = self.bpe.encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)
        tokens: list[Token] = self.convert_ids_to_tokens(ids)
        return tokens

    def convert_tokens_to_ids(self, tokens: Token | Sequence[Token] | None) -> Any:
        """The id of a token, or those of several; None for what is no token."""
        if tokens is None:
            return None
        if isinstance(tokens, bytes | str):
            return self._token_id(tokens)
        return [self._token_id(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or those of several."""
        if isinstance(ids, int):
            return self._token(ids)
        control = self.bpe.control_ids if skip_special_tokens else frozenset()
        return [self._token(int(i)) for i in ids if int(i) not in control]

    def convert_tokens_to_string(self, tokens: Iterable[Token]) -> str:
        """The text of tokens; each run of bytes between specials is decoded by itself."""
        return self.bpe.decode(self.convert_tokens_to_ids(list(tokens)), errors=self.errors)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Any] | None = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but built piece by piece: no text of a message can become a special.

        Tools are written in the ReAct format. A template of one's own is left to transformers.

        Args:
            conversation: messages, or several lists of them.
            tools: functions the model may call.
            documents: for templates of one's own.
            chat_template: a template to use instead.
            add_generation_prompt: whether to open the assistant's turn.
            continue_final_message: whether to leave the last message open.
            tokenize: ids, or else the text of the prompt.
            return_dict: ids and masks, or else ids alone.
            kwargs: ``padding``, ``truncation``, ``max_length``, ``return_tensors``, ``tokenizer_kwargs``; the rest are
                variables of templates.

        Raises:
            InputError: a message or tool is malformed.
        """
        prompt = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        own = chat_template or (self.chat_template if self.chat_template != CHATML_JINJA else None)
        if own is not None or documents is not None or kwargs.get("return_assistant_tokens_mask"):
            options = {"tools": tools, "documents": documents, "chat_template": chat_template, **prompt}
            return super().apply_chat_template(
                conversation, tokenize=tokenize, return_dict=return_dict, **options, **kwargs
            )
        several = is_batch(conversation)
        chats = conversation if several else [conversation]
        segments = [chat_segments(self.bpe, chat, tools, **prompt) for chat in chats]
        if not tokenize:
            texts = [segments_text(self.bpe, s) for s in segments]
            return texts if several else texts[0]
        ids = [self.bpe.encode_segments(s) for s in segments]
        names = ("padding", "truncation", "max_length", "return_tensors")
        options = {name: kwargs[name] for name in names if name in kwargs}
        encoded = self(ids if several else ids[0], **options, **kwargs.get("tokenizer_kwargs") or {})
        return encoded if return_dict else encoded["input_ids"]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copies the vocabulary files; returns where they are."""
        saved = []
        for key, name in _VOCAB_FILES.items():
            source = getattr(self, key)
            target = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
            if source is not None:
                if not target.exists() or not target.samefile(source):
                    shutil.copyfile(source, target)
                saved.append(str(target))
        return tuple(saved)

    def _token_id(self, token: Token) -> int | None:
        found = self._vocab.get(token)
        if found is None and isinstance(token, str):
            found = self._vocab.get(token.encode("utf-8", "replace"))
        return found

    def _token(self, token_id: int) -> Token:
        data = self.bpe.token_bytes(token_id)
        return data.decode() if token_id in self.bpe.control_ids else data

    def _decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        errors: DecodeErrors | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        text = self.bpe.decode(ids, skip_special_tokens=skip_special_tokens, errors=errors or self.errors)
        return str(self.clean_up_tokenization(text)) if clean_up_tokenization_spaces else text

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Nothing is ever added: the vocabulary is fixed, and its specials are all there."""
        forms = [str(token) for token in new_tokens]
        unknown = [form for form in forms if form not in self.bpe.special_tokens]
        if unknown or (forms and not special_tokens):
            raise InputError(
                f"{(unknown or forms)[0]!r} cannot be added: the vocabulary of Qwen is fixed; "
                "use one of its specials, such as '<|extra_0|>'"
            )
        return 0


def _file(path: Any, name: str, options: Mapping[str, Any]) -> str | None:
    """Where a file of a local or remote model lies, or None."""
    keys = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
    found: str | None = cached_file(
        path,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **{key: options[key] for key in keys if key in options},
    )
    return found
