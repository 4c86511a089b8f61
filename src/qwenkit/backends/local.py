"""The model in this process: puts source, checkpoint, tokenizer, template and network together and turns tokens into text."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.backends.base import BackendInfo
from qwenkit.chat.template import ChatTemplate, choose_template
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError, PromptTooLongError, QwenkitError, TemplateError, TokenizerError
from qwenkit.core.types import Delta, Message, Request, SamplingParams, Usage
from qwenkit.kernels.cpu import cpu_has_bf16, release_freed_memory
from qwenkit.kernels.native import MAX_THREADS
from qwenkit.model.generate import BatchGenerator, TokenEvent, all_logits, token_logprobs
from qwenkit.model.transformer import Transformer
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.stream import StopMatcher, StreamDecoder
from qwenkit.weights.load import Checkpoint, build_model, check_vocabulary, open_checkpoint
from qwenkit.weights.sources import KNOWN, fetch
from qwenkit.weights.tokenizer import tokenizer_of

_log = logging.getLogger("qwenkit")
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
_DEFAULT_WINDOW = 6144  # max_window_size of the released chat models


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """How to run a model here."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N"""
    dtype: str = "auto"
    """auto, bfloat16, float16, float32; auto is bfloat16 where the hardware computes in it."""
    max_context: int | None = None
    """Most tokens of prompt and reply; None: what the model was made for."""
    max_batch_size: int = 16
    """Sequences decoded at once."""
    prefill_chunk: int = 512
    """Tokens of a prompt read at once."""
    windows: tuple[int | None, ...] | None = None
    """Attention window per layer; None: as the checkpoint says."""
    num_threads: int | None = None
    """CPU threads; None: as torch chooses."""

    def __post_init__(self) -> None:
        for name in ("max_context", "max_batch_size", "prefill_chunk", "num_threads"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name}={value!r} is not possible; use a whole number from 1 up")
        if self.num_threads is not None and self.num_threads > MAX_THREADS:
            raise InputError(f"num_threads={self.num_threads} is not possible; use at most {MAX_THREADS}")
        if any(isinstance(w, bool) or not isinstance(w, int | None) for w in self.windows or ()):
            raise InputError(f"windows={self.windows!r} must hold whole numbers, or None for full attention")


def resolve_device(name: str) -> torch.device:
    """The device a name stands for.

    Raises:
        InputError: unknown, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device={name!r} is not known; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device={name!r} is not there: torch sees {torch.cuda.device_count()} GPUs; use cpu"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type weights and activations get.

    Raises:
        InputError: unknown.
    """
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise InputError(f"dtype={name!r} is not known; use auto, {', '.join(_DTYPES)}")
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


class LocalBackend:
    """A network with its tokenizer and chat format. Build one with ``open_local``.

    Args:
        model: the network.
        info: what it is.
        tokenizer: None for checkpoints without tokenizer files; then only token ids are understood.
        template: None when messages cannot be turned into a prompt.
        eos_ids: the model's own end tokens.
        options: batch and chunk sizes.
    """

    def __init__(
        self,
        model: Transformer,
        info: BackendInfo,
        *,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        eos_ids: Sequence[int],
        options: LocalOptions,
    ) -> None:
        self._model: Transformer | None = model
        self._eos, self._options = tuple(eos_ids), options
        self.info, self.tokenizer, self.template = info, tokenizer, template
        self.tokenizer_error: QwenkitError | None = None
        """Why there is no tokenizer."""
        self.template_error: TemplateError | None = None
        """Why there is no template, where there should be one."""

    @property
    def model(self) -> Transformer:
        """The network.

        Raises:
            InputError: the backend was closed.
        """
        if self._model is None:
            raise InputError("the model was closed; open it again")
        return self._model

    def close(self) -> None:
        """See Backend.close."""
        self._model = None

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """See Backend.stream."""
        prompts = [self._prompt_ids(request) for request in requests]
        params = [self._params(request) for request in requests]
        for ids in prompts:
            self._check_length(ids)
        generator = BatchGenerator(
            self.model,
            prompts,
            params,
            eos_ids=self._eos,
            context_length=self.info.context_length,
            max_batch_size=self._options.max_batch_size,
            prefill_chunk=self._options.prefill_chunk,
            vocab_size=self.tokenizer.vocab_size if self.tokenizer else None,
        )
        texts = [
            _TextStream(self.tokenizer, i, len(ids), p)
            for i, (ids, p) in enumerate(zip(prompts, params, strict=True))
        ]
        return self._run(generator, texts)

    @staticmethod
    def _run(generator: BatchGenerator, texts: list[_TextStream]) -> Iterator[Delta]:
        while not generator.is_done:
            for event in generator.step():
                delta = texts[event.index].push(event)
                if delta.finish_reason and not event.finish_reason:
                    generator.stop(event.index)  # a stop string, which the generator knows nothing of
                yield delta

    def _prompt_ids(self, request: Request) -> list[int]:
        if request.prompt and isinstance(request.prompt[0], Message):
            messages = [m for m in request.prompt if isinstance(m, Message)]
            template, tokenizer = self._chat_parts()
            segments = template.render(messages, tools=request.tools, **request.template_options)
            return tokenizer.encode_segments(segments)
        return [i for i in request.prompt if isinstance(i, int)]

    def _chat_parts(self) -> tuple[ChatTemplate, Tokenizer]:
        if self.tokenizer is None:
            raise self.tokenizer_error or TokenizerError("the model has no tokenizer")
        if self.template is None:
            raise self.template_error or TemplateError(
                f"{self.info.model} has no chat template, so it is a base model; use raw generation, or a chat version of the model"
            )
        return self.template, self.tokenizer

    def _params(self, request: Request) -> SamplingParams:
        params = request.params.over(self.info.defaults)
        if self.template is not None and request.prompt and isinstance(request.prompt[0], Message):
            sequences = params.stop_token_sequences + self.template.stop_token_sequences
            params = dataclasses.replace(params, stop_token_sequences=tuple(dict.fromkeys(sequences)))
        if params.stop and self.tokenizer is None:
            raise self.tokenizer_error or TokenizerError("stop strings need a tokenizer")
        return params

    def _check_length(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("an empty prompt cannot be continued; give at least one token")
        limit, vocab = self.info.context_length, self.info.vocab_size
        if len(ids) >= limit:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, the context holds {limit} including the reply; shorten it, or raise max_context if the model allows"
            )
        bad = next((i for i in ids if not 0 <= i < vocab), None)
        if bad is not None:
            raise InputError(f"token id {bad} is outside the model's vocabulary of {vocab}")

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See Backend.logprobs."""
        for ids in token_ids:
            self._check_scored(ids)
        chunk = self._options.prefill_chunk
        return [token_logprobs(self.model, ids, chunk=chunk).tolist() for ids in token_ids]

    def logits(self, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each sequence the logits after every token, (T, V) float32 on the CPU."""
        for ids in token_ids:
            self._check_scored(ids)
        chunk = self._options.prefill_chunk
        return [all_logits(self.model, ids, chunk=chunk).cpu() for ids in token_ids]

    def _check_scored(self, ids: Sequence[int]) -> None:
        if not isinstance(ids, Sequence) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise InputError(f"each sequence must be a list of token ids, got {ids!r:.80}")
        if len(ids) > self.info.context_length:
            raise PromptTooLongError(
                f"the sequence has {len(ids)} tokens, the context holds {self.info.context_length}; cut it"
            )


class _TextStream:
    """Turns the tokens of one request into text deltas."""

    def __init__(
        self, tokenizer: Tokenizer | None, index: int, prompt_tokens: int, params: SamplingParams
    ) -> None:
        self._decoder = StreamDecoder(tokenizer) if tokenizer else None
        self._matcher = StopMatcher(params.stop)
        self._index, self._prompt_tokens, self._count = index, prompt_tokens, 0

    def push(self, event: TokenEvent) -> Delta:
        self._count += 1
        reason, stopped, text = event.finish_reason, False, ""
        if self._decoder and not event.is_stop:
            text, stopped = self._matcher.push(self._decoder.push(event.token_id))
        if stopped:
            reason = "stop"
        elif reason:
            # Bytes of a character the reply was cut in are dropped: half a character is never shown.
            text += self._matcher.flush()
            reason = "stop" if self._matcher.matched else reason
        usage = Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._count) if reason else None
        return Delta(
            index=self._index, text=text, token_ids=(event.token_id,), finish_reason=reason, usage=usage
        )


def open_local(
    model: str | Path,
    options: LocalOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> LocalBackend:
    """Finds, fetches if needed, checks and loads a model.

    Args:
        model: folder, .gguf file, built-in name, hub id or modelscope:ID.
        options: how to run it.
        on_progress: called with (bytes loaded, bytes in all).

    Raises:
        QwenkitError: any of its kinds, with one sentence that says what to do.
    """
    started = time.perf_counter()
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    checkpoint = open_checkpoint(fetch(str(model)))
    try:
        config = _with_options(checkpoint, options)
        tokenizer, error = _tokenizer_or_error(checkpoint)
        if tokenizer is not None:
            check_vocabulary(config, tokenizer.vocab_size)
        network = build_model(checkpoint, device=device, dtype=dtype, config=config, on_progress=on_progress)
    finally:
        checkpoint.store.close()
    template, template_error = None, None
    if tokenizer is not None and checkpoint.generation.chat_format != "raw":
        try:
            template = choose_template(checkpoint.family.chat_format, tokenizer)
        except TemplateError as malformed:  # raw text needs no template
            template_error = malformed
    info = _info(str(model), checkpoint, config, network, can_chat=template is not None)
    info.details["load_seconds"] = time.perf_counter() - started
    eos = checkpoint.generation.eos_ids or _eos_of(tokenizer)
    backend = LocalBackend(
        network, info, tokenizer=tokenizer, template=template, eos_ids=eos, options=options
    )
    backend.tokenizer_error, backend.template_error = error, template_error
    return backend


def _tokenizer_or_error(checkpoint: Checkpoint) -> tuple[Tokenizer | None, QwenkitError | None]:
    """A checkpoint without tokenizer files still runs on token ids; the error waits until text is asked for."""
    try:
        return tokenizer_of(checkpoint.path, checkpoint.metadata), None
    except TokenizerError as error:
        return None, error
    finally:
        # The vocabulary as text is large beside a small model, and weights come next.
        checkpoint.metadata.clear()
        release_freed_memory()


def _eos_of(tokenizer: Tokenizer | None) -> tuple[int, ...]:
    return () if tokenizer is None or tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def _with_options(checkpoint: Checkpoint, options: LocalOptions) -> ModelConfig:
    config = checkpoint.config
    if options.max_context is not None and options.max_context != config.context_length:
        if options.max_context > config.context_length:
            _log.warning(
                "max_context=%d is beyond the %d tokens the model was made for; long input may go wrong",
                options.max_context,
                config.context_length,
            )
        config = dataclasses.replace(config, context_length=options.max_context)
    if options.windows is not None:
        config = dataclasses.replace(config, windows=tuple(options.windows))
    return config


def _info(
    name: str, checkpoint: Checkpoint, config: ModelConfig, network: Transformer, *, can_chat: bool
) -> BackendInfo:
    generation = checkpoint.generation
    defaults = generation.defaults
    if name in KNOWN and KNOWN[name].sampling is not None:
        defaults = KNOWN[name].sampling.over(defaults)  # type: ignore[union-attr]
    window = generation.max_window_size or _DEFAULT_WINDOW
    return BackendInfo(
        model=name,
        family=checkpoint.family.name,
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        dtype=str(network.dtype).removeprefix("torch."),
        device=str(network.device),
        can_chat=can_chat,
        max_window_size=min(window, config.context_length * 3 // 4),
        defaults=defaults,
        details={
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "quantisation": str(checkpoint.quant) if checkpoint.quant else None,
            "num_params": config.num_params,
            "threads": torch.get_num_threads(),
        },
    )
