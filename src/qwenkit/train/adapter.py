"""Puts a LoRA adapter of PEFT around a network, with the targets and defaults of the Qwen release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwenkit.core.errors import InputError, did_you_mean
from qwenkit.train.base import CHATML_TOKENS, Base
from qwenkit.train.options import FinetuneOptions
from qwenkit.weights.adapter_base import is_adapter
from qwenkit.weights.inspect_adapter import check_adapter_fits


def tables_to_train(base: Base, options: FinetuneOptions) -> str:
    """What is trained of embedding and head: all, chatml or none.

    The ChatML tokens of first-generation base models were never trained, so an adapter alone could not teach them.
    Quantised models keep theirs (the release does so too).
    """
    if options.train_tables != "auto":
        return options.train_tables
    return "none" if base.is_chat or options.method == "qlora" else "all"


def add_adapter(network: Any, base: Base, options: FinetuneOptions) -> Any:
    """The network with an adapter that is trained and everything else frozen.

    Raises:
        InputError: target modules that match nothing, or an adapter of another base.
    """
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    from qwenkit.train.lora_layers import use_fast_layers

    if options.method == "qlora":
        from qwenkit.hf.adapter_training import prepare_for_training

        prepare_for_training(network, gradient_checkpointing=False)
    if options.lora_adapter is not None:
        adapted = _existing(PeftModel, network, options.lora_adapter)
        use_fast_layers(adapted)
        return adapted
    targets = options.lora_targets or base.linears
    trained = tables_to_train(base, options)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(targets),
        bias="none",
        modules_to_save=list(_tables(base)) if trained == "all" else None,
        trainable_token_indices=_chatml_rows(base) if trained == "chatml" else None,
        ensure_weight_tying=bool(base.config.tie_embeddings and trained != "none"),
    )
    adapted = get_peft_model(network, config)
    use_fast_layers(adapted)
    return adapted


def _tables(base: Base) -> tuple[str, ...]:
    embed, head = base.tables
    return (embed,) if base.config.tie_embeddings else (embed, head)


def _chatml_rows(base: Base) -> dict[str, list[int]]:
    specials = base.tokenizer.special_tokens
    missing = [token for token in CHATML_TOKENS if token not in specials]
    if missing:
        raise InputError(
            f"train_tables chatml needs the token {missing[0]}, which {base.folder} does not have"
        )
    return {table: [specials[token] for token in CHATML_TOKENS] for table in _tables(base)}


def check_adapter(base: Base, options: FinetuneOptions) -> None:
    """Refuses, before weights are loaded, targets that match nothing and an adapter that is none.

    Raises:
        InputError: with the names there are.
        QwenkitError: the adapter's configuration cannot be read.
    """
    embed, head = base.tables
    known = (*base.linears, embed, head)
    for target in options.lora_targets:
        if target.split(".")[-1] not in known:
            raise InputError(
                f"lora_targets {target!r} matches no module of this model, which has {', '.join(known)}{did_you_mean(target, known)}"
            )
    if options.lora_adapter is not None:
        folder = Path(options.lora_adapter)
        if not is_adapter(folder):
            raise InputError(
                f"lora_adapter {folder} holds no adapter_config.json; give the folder of an adapter"
            )
        check_adapter_fits(folder, base.folder)
    if tables_to_train(base, options) == "chatml":
        _chatml_rows(base)


def _existing(peft_model: Any, network: Any, folder: str) -> Any:
    """An adapter to go on training."""
    try:
        return peft_model.from_pretrained(network, folder, is_trainable=True)
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"lora_adapter {folder} does not fit this model: {first}") from None
