"""The public Python API: ``LLM`` for prompts and conversations in batches, thin over a Backend."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from qwenkit.core.errors import InputError, TokenizerError
from qwenkit.core.types import Completion, Delta, Message, Request, SamplingParams, ToolSpec, collect
from qwenkit.session import Chat

if TYPE_CHECKING:
    from torch import Tensor

    from qwenkit.backends.base import Backend, BackendInfo
    from qwenkit.tokenizer.base import Tokenizer

__all__ = ["LLM", "Chat", "load_tokenizer"]

Prompt: TypeAlias = str | Sequence[int]
"""Text, or token ids."""

_RAW_MAX_TOKENS = 256
_SCORE_WINDOW = 2048


def load_tokenizer(model: str | Path = "smollm2-135m") -> Tokenizer:
    """The tokenizer of a model, without its weights.

    Args:
        model: as for LLM.

    Raises:
        SourceError: the model cannot be found or fetched.
        TokenizerError: it has no tokenizer files, or they cannot be read.
    """
    from qwenkit.weights.sources import fetch
    from qwenkit.weights.tokenizer import tokenizer_of

    return tokenizer_of(fetch(str(model)))


class LLM:
    """A language model, ready to generate.

    Example:
        >>> llm = LLM("smollm2-135m")
        >>> llm.chat([Message("user", "What is the capital of France?")]).text

    Args:
        model: folder with config.json, .gguf file, built-in name, hub id ("org/name", "org/name@revision",
            "org/name:file.gguf") or "modelscope:ID"; "dashscope:NAME" is run by DashScope, with the key in
            DASHSCOPE_API_KEY, and takes none of the settings below.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, bfloat16, float16 or float32; auto is bfloat16 where the hardware computes in it.
        max_context: most tokens of prompt and reply together; None: what the model was made for.
        max_batch_size: sequences computed together.
        prefill_chunk: tokens computed in one step; long prompts are read in pieces of this size.
        activations: what 4- and 8-bit weights are multiplied with on the CPU: auto, int8 (rounded, fast), float (as in the dtype).
        head: auto keeps the output head as the checkpoint has it; int8 rounds it to 8 bits while it is read.
        packed_cache: auto keeps large packed weights, rearranged for the CPU, in the user's cache folder for the next
            start; off does not.
        kv_cache: auto stores keys and values in the model's dtype; int8 takes half the memory of bfloat16.
        cache_memory: bytes of the key-value cache; None: what max_batch_size whole contexts take, at most 40 % of
            the free memory.
        prefix_caching: find beginnings of prompts that were read before.
        speculative: ngram guesses tokens by looking up the last ones in the text so far, which makes replies that
            repeat their prompt faster and changes no token; off does not.
        speculative_tokens: most tokens guessed at once with ngram; None: 7.
        deterministic: refuse to run where results could depend on the batch (plain torch, GPU); compiled CPU kernels
            never let them.
        windows: attention window of each layer, None for full; None: as the checkpoint says.
        num_threads: CPU threads; None: as torch chooses.
        on_progress: called with (bytes loaded, bytes in all) while weights load.

    Raises:
        QwenkitError: of the kind that fits, with one sentence that says what to do.
    """

    def __init__(
        self,
        model: str | Path = "smollm2-135m",
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_context: int | None = None,
        max_batch_size: int = 64,
        prefill_chunk: int = 512,
        activations: str = "auto",
        head: str = "auto",
        packed_cache: str = "auto",
        kv_cache: str = "auto",
        cache_memory: int | None = None,
        prefix_caching: bool = True,
        speculative: str = "off",
        speculative_tokens: int | None = None,
        deterministic: bool = False,
        windows: Sequence[int | None] | None = None,
        num_threads: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        settings = {
            "device": device,
            "dtype": dtype,
            "max_context": max_context,
            "max_batch_size": max_batch_size,
            "prefill_chunk": prefill_chunk,
            "activations": activations,
            "head": head,
            "packed_cache": packed_cache,
            "kv_cache": kv_cache,
            "cache_memory": cache_memory,
            "prefix_caching": prefix_caching,
            "speculative": speculative,
            "speculative_tokens": speculative_tokens,
            "deterministic": deterministic,
            "windows": None if windows is None else tuple(windows),
            "num_threads": num_threads,
        }
        self.backend: Backend = _open(str(model), settings, on_progress)

    @classmethod
    def from_backend(cls, backend: Backend) -> LLM:
        """An LLM over any backend, for example a scripted one in tests."""
        self = cls.__new__(cls)
        self.backend = backend
        return self

    @property
    def info(self) -> BackendInfo:
        """Name, family, context length, dtype, device, default sampling."""
        return self.backend.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            TokenizerError: it has none, or it is elsewhere.
        """
        if self.backend.tokenizer is None:
            raise getattr(self.backend, "tokenizer_error", None) or TokenizerError(
                f"{self.info.model} has no tokenizer here; give token ids, or add the tokenizer files"
            )
        return self.backend.tokenizer

    def close(self) -> None:
        """Frees the model's memory."""
        self.backend.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = None) -> Completion: ...  # type: ignore[overload-overlap]
    @overload
    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]: ...
    def generate(
        self, prompts: str | Sequence[Prompt], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Continues raw text, without chat format.

        Args:
            prompts: one text, or a list of texts and token id lists. Special tokens written in a text count as such.
            params: sampling; without ``max_tokens`` here or in the model's defaults, 256 tokens at most.

        Returns:
            One completion for one text, else a list in the order of the prompts.

        Raises:
            InputError: an empty or too long prompt, or impossible sampling values.
        """
        results = _gather(
            self.stream_generate(prompts, params), 1 if isinstance(prompts, str) else len(prompts)
        )
        return results[0] if isinstance(prompts, str) else results

    def stream_generate(
        self, prompts: str | Sequence[Prompt], params: SamplingParams | None = None
    ) -> Iterator[Delta]:
        """As ``generate``, yielding text as it comes; ``Delta.index`` says of which prompt."""
        many: Sequence[Prompt] = [prompts] if isinstance(prompts, str) else prompts
        params = params or SamplingParams()
        if params.max_tokens is None and self.info.defaults.max_tokens is None:
            params = dataclasses.replace(params, max_tokens=_RAW_MAX_TOKENS)
        return self.backend.stream([Request(prompt=self._ids(p), params=params) for p in many])

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            given: Any = prompt
            if not isinstance(given, Sequence) or any(type(i) is not int for i in given):
                raise InputError(f"a prompt must be text or a list of token ids, got {given!r:.80}")
            return tuple(prompt)
        tokenizer = self.tokenizer
        ids = tokenizer.encode(prompt)
        bos = tokenizer.bos_token_id
        return (bos, *ids) if tokenizer.add_bos and bos is not None else tuple(ids)

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]] | str,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[ToolSpec] = (),
        **template_options: Any,
    ) -> Completion:
        """Answers a conversation.

        Args:
            messages: Message objects or OpenAI message dictionaries; a text is one user message.
            params: sampling; what is None comes from the model's generation_config.
            tools: functions the model may call.
            **template_options: variables of the chat template, e.g. ``enable_thinking=False``.

        Raises:
            TemplateError: the model has no chat format, or it refuses the conversation.
            PromptTooLongError: the conversation does not fit the context.
        """
        return collect(list(self.stream_chat(messages, params, tools=tools, **template_options)))

    def stream_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]] | str,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[ToolSpec] = (),
        **template_options: Any,
    ) -> Iterator[Delta]:
        """As ``chat``, yielding text as it comes."""
        request = self._chat_request(messages, params, tools, template_options)
        return self.backend.stream([request])

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message | Mapping[str, Any]] | str],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[ToolSpec] = (),
        **template_options: Any,
    ) -> list[Completion]:
        """Answers many conversations together; the same answers as one at a time."""
        requests = [self._chat_request(c, params, tools, template_options) for c in conversations]
        return _gather(self.backend.stream(requests), len(requests))

    @staticmethod
    def _chat_request(
        messages: Sequence[Message | Mapping[str, Any]] | str,
        params: SamplingParams | None,
        tools: Sequence[ToolSpec],
        template_options: Mapping[str, Any],
    ) -> Request:
        turns: Sequence[Message | Mapping[str, Any]]
        turns = [Message("user", messages)] if isinstance(messages, str) else messages
        if not isinstance(turns, Sequence):
            raise InputError(f"a conversation must be text or a list of messages, got {turns!r}")
        prompt = tuple(m if isinstance(m, Message) else Message.from_dict(m) for m in turns)
        if not prompt:
            raise InputError("an empty conversation cannot be answered; give at least one message")
        return Request(
            prompt=prompt,
            params=params or SamplingParams(),
            tools=tuple(tools),
            template_options=template_options,
        )

    def logits(self, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits after every token of each sequence.

        Args:
            token_ids: one list of ids per sequence, of any lengths.

        Returns:
            One (T, V) float32 tensor on the CPU per sequence.

        Raises:
            InputError: an id is outside the vocabulary, a sequence too long, or the model is not in this process.
        """
        compute = getattr(self.backend, "logits", None)
        if compute is None:
            raise InputError(
                f"{self.info.model} does not run in this process, so its logits are out of reach"
            )
        result: list[Tensor] = compute(token_ids)
        return result

    @property
    def score_window(self) -> int:
        """Tokens per window of ``perplexity`` when none is given: 2048, or the context length if that is shorter."""
        return min(_SCORE_WINDOW, self.info.context_length)

    def perplexity(
        self,
        text: str,
        *,
        window: int | None = None,
        on_progress: Callable[[int, int, float], None] | None = None,
    ) -> float:
        """exp of the mean negative log-likelihood of ``text``, in windows that do not overlap.

        The first token of each window only conditions the others. Special tokens in the text count as text.

        Args:
            text: at least two tokens.
            window: tokens per window; None: ``score_window``.
            on_progress: called with (tokens done, tokens in all, perplexity so far) after each window.

        Raises:
            InputError: the text is too short or the window impossible.
        """
        tokenizer, context = self.tokenizer, self.info.context_length
        window = self.score_window if window is None else window
        if not 2 <= window <= context:
            raise InputError(f"window={window} is not possible; use 2 to {context}, the model's context")
        ids = tokenizer.encode(text, allowed_special=())
        if len(ids) < 2:
            raise InputError(f"perplexity needs at least 2 tokens of text, got {len(ids)}")
        total, count = 0.0, 0
        for at in range(0, len(ids) - 1, window):
            scores = self.backend.logprobs([ids[at : at + window]])[0]
            total, count = total - math.fsum(scores), count + len(scores)
            if on_progress:
                on_progress(min(at + window, len(ids)), len(ids), math.exp(total / max(count, 1)))
        return math.exp(total / count)


def _open(model: str, settings: Mapping[str, Any], on_progress: Callable[[int, int], None] | None) -> Backend:
    from qwenkit.backends.dashscope_http import is_dashscope, open_dashscope

    if not is_dashscope(model):
        from qwenkit.backends.opening import open_local
        from qwenkit.backends.options import LocalOptions

        return open_local(model, LocalOptions(**settings), on_progress=on_progress)
    usual = inspect.signature(LLM).parameters
    for name, value in settings.items():
        if value != usual[name].default:
            raise InputError(
                f"{name} is for a model in this process, and {model} runs elsewhere; leave it out"
            )
    return open_dashscope(model)


def _gather(deltas: Iterator[Delta], count: int) -> list[Completion]:
    parts: list[list[Delta]] = [[] for _ in range(count)]
    for delta in deltas:
        parts[delta.index].append(delta)
    return [collect(p) for p in parts]
