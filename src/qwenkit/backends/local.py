"""The model in this process: network, tokenizer, chat format and engine put together."""

from __future__ import annotations

import functools
import logging
import math
import queue
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from qwenkit.backends.base import BackendInfo, EngineStats, Job, Sink
from qwenkit.backends.options import LocalOptions, num_pages
from qwenkit.backends.scoring import hidden_mean, sequence_logits
from qwenkit.cache.paged import PAGE_SIZE, PagePool
from qwenkit.chat.template import ChatTemplate
from qwenkit.config.families import Family
from qwenkit.core.errors import (
    InputError,
    NumericsError,
    PromptTooLongError,
    QwenkitError,
    TemplateError,
    TokenizerError,
    did_you_mean,
)
from qwenkit.core.types import Delta, Message, Request, SamplingParams
from qwenkit.engine.admission import EngineModel
from qwenkit.engine.blocks import BlockManager
from qwenkit.engine.engine import Engine, EngineJob, EngineOptions, Prepared
from qwenkit.engine.runner import Runner
from qwenkit.layers.lora import Adapter
from qwenkit.model.generate import explain_nonfinite
from qwenkit.model.step import make_forward
from qwenkit.model.transformer import Transformer
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.weights.adapters import load_adapter

_log = logging.getLogger("qwenkit")


class LocalBackend:
    """A network with its tokenizer, chat format and engine. Build one with ``opening.open_local``.

    Args:
        model: the network.
        info: what it is.
        tokenizer: None for checkpoints without tokenizer files; then only token ids are understood.
        template: None when messages cannot be turned into a prompt.
        eos_ids: the model's own end tokens.
        options: sizes of batch, cache and queue.
        family: how the model names its parts; None: adapters cannot be loaded.
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
        family: Family | None = None,
    ) -> None:
        self._model: Transformer | None = model
        self._family, self._options = family, options
        self.info, self.tokenizer, self.template = info, tokenizer, template
        self.tokenizer_error: QwenkitError | None = None
        """Why there is no tokenizer."""
        self.template_error: TemplateError | None = None
        """Why there is no template, where there should be one."""
        self._adapters: dict[str, Adapter] = {}
        self._own_adapter: Adapter | None = None
        """The one that belongs to the model as it was opened."""
        self._engine = _make_engine(model, info, tokenizer, tuple(eos_ids), options)
        # The engine's thread keeps the model alive, so it has to end when nobody can ask any more.
        self._stop = weakref.finalize(self, self._engine.close)

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
        self._stop()
        self._model = None

    def submit(self, request: Request, sink: Sink) -> Job:
        """See Backend.submit."""
        return self._engine.submit(self._prepare(request, 0), sink)

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """See Backend.stream."""
        return self._run([self._prepare(request, index) for index, request in enumerate(requests)])

    def _run(self, prepared: Sequence[Prepared]) -> Iterator[Delta]:
        arrived: queue.SimpleQueue[Delta | BaseException] = queue.SimpleQueue()
        open_replies = sum(len(p.replies) for p in prepared)
        jobs: list[EngineJob] = []
        try:
            jobs += (self._engine.submit(p, arrived.put, bounded=False) for p in prepared)
            while open_replies:
                delta = arrived.get()
                if isinstance(delta, BaseException):
                    raise delta
                open_replies -= delta.finish_reason is not None
                yield delta
        finally:
            for job in jobs:
                job.abort()

    def _prepare(self, request: Request, index: int) -> Prepared:
        if self._model is None:
            raise InputError("the model was closed; open it again")
        return self._engine.prepare(
            self._prompt_ids(request), self._params(request), adapter=self._adapter(request), index=index
        )

    def _prompt_ids(self, request: Request) -> list[int]:
        if request.prompt and isinstance(request.prompt[0], Message):
            messages = [m for m in request.prompt if isinstance(m, Message)]
            template, tokenizer = self._chat_parts()
            segments = template.render(
                messages,
                tools=request.tools,
                continue_final=request.continue_final,
                **request.template_options,
            )
            return tokenizer.encode_segments(segments)
        return self._checked([i for i in request.prompt if isinstance(i, int)])

    def _checked(self, ids: list[int]) -> list[int]:
        bad = next((i for i in ids if not 0 <= i < self.info.vocab_size), None)
        if bad is not None:
            raise InputError(f"token id {bad} is outside the model's vocabulary of {self.info.vocab_size}")
        return ids

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
            tools = self.template.tool_format if request.tools else None
            ends = () if params.ignore_eos else self.template.stop_token_sequences
            own = SamplingParams(stop=tools.stop if tools else (), stop_token_sequences=ends)
            params = params.over(own)
        if params.stop and self.tokenizer is None:
            raise self.tokenizer_error or TokenizerError("stop strings need a tokenizer")
        return params

    def logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See Backend.logprobs."""
        self._check_scored(token_ids)
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        asked = [i for i, ids in enumerate(token_ids) if len(ids) > 1]
        found: list[list[float]] = [[] for _ in token_ids]
        own = self._own_adapter
        prepared = [self._engine.prepare(list(token_ids[i]), params, adapter=own, index=i) for i in asked]
        for delta in self._run(prepared):
            scores = [p.logprob for p in delta.prompt_logprobs or () if p is not None]
            if not all(map(math.isfinite, scores)):
                raise NumericsError(explain_nonfinite(self.model, list(token_ids[delta.index])))
            found[delta.index] = scores
        return found

    def embed(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See Backend.embed."""
        self._check_scored(token_ids)
        if not all(token_ids):
            raise InputError("an empty text has no embedding; give at least one token")
        task = hidden_mean(self.model, token_ids, *self._reading)
        result: list[list[float]] = self._engine.call(task).result()
        return result

    def logits(self, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each sequence the logits after every token, (T, V) float32 on the CPU."""
        self._check_scored(token_ids)
        task = sequence_logits(self.model, token_ids, *self._reading)
        result: list[Tensor] = self._engine.call(task).result()
        return result

    @property
    def _reading(self) -> tuple[int, str, Adapter | None]:
        """How sequences are read beside the batch."""
        return self._options.prefill_chunk, self._options.activations, self._own_adapter

    def _check_scored(self, token_ids: Sequence[Sequence[int]]) -> None:
        for ids in token_ids:
            if not isinstance(ids, Sequence) or any(
                isinstance(i, bool) or not isinstance(i, int) for i in ids
            ):
                raise InputError(f"each sequence must be a list of token ids, got {ids!r:.80}")
            if len(ids) > self.info.context_length:
                raise PromptTooLongError(
                    f"the sequence has {len(ids)} tokens, the context holds {self.info.context_length}; cut it"
                )
            self._checked(list(ids))

    def stats(self) -> EngineStats:
        """See Backend.stats."""
        core = self._engine.core
        counters, blocks, scheduler = core.counters, core.blocks, core.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages=blocks.num_pages,
            pages_used=blocks.num_used,
            pages_cached=blocks.num_cached,
            prompt_tokens=counters.prompt_tokens,
            generated_tokens=counters.generated_tokens,
            cached_tokens=counters.cached_tokens,
            preemptions=scheduler.num_preemptions,
            steps=counters.steps,
            proposed_tokens=counters.proposed_tokens,
            accepted_tokens=counters.accepted_tokens,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        """See Backend.adapters."""
        return tuple(self._adapters)

    def load_adapter(self, name: str, path: str | Path) -> None:
        """See Backend.load_adapter."""
        if name in self._adapters:
            raise InputError(
                f"an adapter named {name!r} is loaded already; unload it first, or use another name"
            )
        if self._family is None:
            raise InputError("adapters cannot be loaded for a model without a checkpoint")
        self._adapters[name] = load_adapter(path, name, family=self._family, model=self.model)

    def set_own_adapter(self, path: str | Path) -> None:
        """Makes an adapter part of the model: requests that name none are answered with it.

        Raises:
            QwenkitError: the folder cannot be read or does not fit the model.
        """
        if self._family is None:
            raise InputError("adapters cannot be loaded for a model without a checkpoint")
        self._own_adapter = load_adapter(path, str(path), family=self._family, model=self.model)

    def unload_adapter(self, name: str) -> None:
        """See Backend.unload_adapter."""
        self._named_adapter(name)
        del self._adapters[name]

    def _adapter(self, request: Request) -> Adapter | None:
        return self._own_adapter if request.adapter is None else self._named_adapter(request.adapter)

    def _named_adapter(self, name: str) -> Adapter:
        found = self._adapters.get(name)
        if found is None:
            raise InputError(f"no adapter named {name!r} is loaded{did_you_mean(name, self._adapters)}")
        return found


def _make_engine(
    model: Transformer,
    info: BackendInfo,
    tokenizer: Tokenizer | None,
    eos_ids: tuple[int, ...],
    options: LocalOptions,
) -> Engine:
    pages = num_pages(model.config, options, model.dtype, model.device)
    pool = PagePool(
        model.config,
        num_pages=pages,
        dtype=model.dtype,
        device=model.device,
        int8=options.kv_cache == "int8",
    )
    forward = make_forward(model, pool, options.activations)
    if options.deterministic and not forward.is_deterministic:
        raise InputError(
            f"deterministic results need the compiled CPU kernels, and {forward.name} on {model.device} runs instead; leave the option out"
        )
    if options.max_draft and not forward.is_deterministic:
        _log.warning(
            "speculative decoding is exact up to rounding here: %s on %s may round a token's numbers otherwise when others are computed with it",
            forward.name,
            model.device,
        )
    info.details["kernels"] = forward.name
    info.details["deterministic"] = forward.is_deterministic
    info.details["cache"] = {
        "tokens": pages * PAGE_SIZE,
        "bytes": pool.nbytes,
        "type": "int8" if pool.int8 else info.dtype,
    }
    vocab_size = min(tokenizer.vocab_size, info.vocab_size) if tokenizer else info.vocab_size
    engine_model = EngineModel(
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        context_length=info.context_length,
        end_ids=eos_ids,
        ntk_length=model.config.rope.ntk_length,
        explain=functools.partial(explain_nonfinite, model),
        tells_generated=forward.tells_generated,
    )
    engine_options = EngineOptions(
        max_running=options.max_batch_size,
        max_step_tokens=options.prefill_chunk,
        max_queue=options.max_queue,
        max_draft=options.max_draft,
    )
    blocks = BlockManager(pages, caching=options.prefix_caching)
    return Engine(Runner(forward, pool, vocab_size), blocks, engine_model, engine_options)
