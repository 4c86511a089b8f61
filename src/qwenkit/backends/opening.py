"""Opens a model in this process: finds it, fetches it if needed, checks it, loads it, and puts an engine around it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.backends.base import BackendInfo
from qwenkit.backends.local import LocalBackend
from qwenkit.backends.options import LocalOptions, resolve_device, resolve_dtype, wants_panels
from qwenkit.chat.template import choose_template
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError, QwenkitError, TemplateError, TokenizerError
from qwenkit.kernels.cpu import release_freed_memory
from qwenkit.kernels.panels import PanelWeight
from qwenkit.layers.quant_linear import QuantLinear
from qwenkit.model.transformer import Transformer
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.copy import has_tokenizer
from qwenkit.weights.adapter_base import Located, locate
from qwenkit.weights.adapter_file import read_adapter_config
from qwenkit.weights.checkpoint import Checkpoint, check_vocabulary, open_checkpoint, with_generation
from qwenkit.weights.load import build_model
from qwenkit.weights.memory import held_bytes
from qwenkit.weights.sources import KNOWN
from qwenkit.weights.tokenizer import tokenizer_of

_log = logging.getLogger("qwenkit")
_DEFAULT_WINDOW = 6144  # max_window_size of the released chat models


def open_local(
    model: str | Path,
    options: LocalOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> LocalBackend:
    """Finds, fetches if needed, checks and loads a model.

    Args:
        model: folder, .gguf file, built-in name, hub id or modelscope:ID; of an adapter, its base is loaded with it.
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
    located = locate(str(model))
    checkpoint = _opened(located)
    try:
        config = _with_options(checkpoint, options)
        tokenizer, error = _tokenizer_or_error(checkpoint, located.adapter)
        if tokenizer is not None:
            check_vocabulary(config, tokenizer.vocab_size)
        network = build_model(
            checkpoint,
            device=device,
            dtype=dtype,
            config=config,
            on_progress=on_progress,
            panels=wants_panels(options, device, dtype),
            head=options.head,
            cached=options.packed_cache == "auto",
        )
    finally:
        checkpoint.store.close()
    _check_activations(network, options)
    template, template_error = None, None
    if tokenizer is not None and checkpoint.generation.chat_format != "raw":
        try:
            template = choose_template(checkpoint.family.chat_format, tokenizer)
        except TemplateError as malformed:  # raw text needs no template
            template_error = malformed
    info = _info(str(model), located, checkpoint, config, network, can_chat=template is not None)
    eos = checkpoint.generation.eos_ids or _eos_of(tokenizer)
    backend = LocalBackend(
        network,
        info,
        tokenizer=tokenizer,
        template=template,
        eos_ids=eos,
        options=options,
        family=checkpoint.family,
    )
    backend.tokenizer_error, backend.template_error = error, template_error
    if located.adapter is not None:
        _apply(backend, located.adapter)
    info.details["load_seconds"] = time.perf_counter() - started
    return backend


def _opened(located: Located) -> Checkpoint:
    """The model's headers; what an adapter says of itself is checked before minutes of loading."""
    if located.adapter is None:
        return open_checkpoint(located.model)
    read_adapter_config(located.adapter)
    return with_generation(open_checkpoint(located.model), located.adapter)


def _apply(backend: LocalBackend, adapter: Path) -> None:
    try:
        backend.set_own_adapter(adapter)
    except BaseException:
        backend.close()
        raise


def _check_activations(network: Transformer, options: LocalOptions) -> None:
    """An option without effect is an error."""
    layers = (module for module in network.modules() if isinstance(module, QuantLinear))
    if options.activations == "int8" and not any(
        isinstance(part, PanelWeight) for layer in layers for part in layer.parts
    ):
        raise InputError(
            "activations='int8' is for 4- and 8-bit weights in groups of a multiple of 32, and this model has none; use auto"
        )


def _tokenizer_or_error(
    checkpoint: Checkpoint, adapter: Path | None
) -> tuple[Tokenizer | None, QwenkitError | None]:
    """A checkpoint without tokenizer files still runs on token ids; the error waits until text is asked for."""
    own = adapter is not None and has_tokenizer(adapter)
    try:
        return tokenizer_of(adapter if adapter and own else checkpoint.path, checkpoint.metadata), None
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
    name: str,
    located: Located,
    checkpoint: Checkpoint,
    config: ModelConfig,
    network: Transformer,
    *,
    can_chat: bool,
) -> BackendInfo:
    generation = checkpoint.generation
    defaults = generation.defaults
    known = KNOWN.get(located.base or name)
    if known is not None and known.sampling is not None:
        defaults = known.sampling.over(defaults)
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
            "base": located.base,
            "format": checkpoint.format,
            "quantisation": str(checkpoint.quant) if checkpoint.quant else None,
            "head": _head_type(network),
            "num_params": config.num_params,
            "weights_bytes": held_bytes(network),
            "threads": torch.get_num_threads(),
        },
    )


def _head_type(network: Transformer) -> str:
    """What the output head is kept in: a type, or its bits."""
    part = network.head.parts[0]
    return str(part.dtype).removeprefix("torch.") if isinstance(part, Tensor) else f"{part.bits} bit"
