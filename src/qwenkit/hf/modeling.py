"""First-generation Qwen as a transformers model: caches, masks, loss, generation and loading as its own models have.

Knows nothing of text; `qwenkit.hf.chat` adds the conversation methods.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.hf.chat import ChatMixin
from qwenkit.hf.configuration import QWenConfig
from qwenkit.hf.layers import QWenAttention, QWenBlock, QWenRMSNorm
from qwenkit.hf.ntk import prompt_doublings, remember, remembered
from qwenkit.hf.quantizer_choice import packed_loading
from qwenkit.hf.rotary import RotaryPositions

_SHOWN_NAMES = 8


class QWenPreTrainedModel(PreTrainedModel):
    """What the models share: loading, initialisation and what transformers may do with them."""

    config: QWenConfig
    config_class = QWenConfig
    base_model_prefix = "transformer"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["QWenBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        # Buffers of the released code, which are computed here.
        r"rotary_emb\.inv_freq",
        r"attn\.masked_bias",
        r"attn\.bias",
        r"attn\.logn_tensor",
    ]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": QWenBlock,
        "attentions": QWenAttention,
    }

    @classmethod
    def from_pretrained(
        cls,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but tensors that are missing or of another shape are an error that names them.

        Args:
            args: as in transformers.
            output_loading_info: whether to return what was found too.
            ignore_mismatched_sizes: start tensors of another shape from random numbers.
            kwargs: as in transformers.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        with packed_loading(source, kwargs) as loading:
            model, info = super().from_pretrained(
                *args, output_loading_info=True, ignore_mismatched_sizes=True, **loading
            )
        _check_names(sorted(info["missing_keys"]), "the checkpoint lacks {} of the model's tensors ({})")
        if not ignore_mismatched_sizes:
            shapes = sorted(
                f"{name}: {tuple(got)} in the file, {tuple(expected)} by config.json"
                for name, got, expected in info["mismatched_keys"]
            )
            _check_names(shapes, "{} of the checkpoint's tensors have another shape ({})")
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """normal(0, initializer_range), less for the two projections that add to the residual stream."""
        super()._init_weights(module)
        if getattr(module, "starts_smaller", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            initialization.normal_(module.weight, mean=0.0, std=std)


def _check_names(names: list[str], problem: str) -> None:
    if names:
        shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
        raise CheckpointError(
            f"{problem.format(len(names), shown)}; fetch it again, or mend config.json where the two do not fit"
        )


class QWenModel(QWenPreTrainedModel):
    """Embedding, layers and the last norm."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.wte: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(QWenBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = QWenRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self._positions = RotaryPositions(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding."""
        self.wte = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the last layer.

        Args:
            input_ids: (B, T) new tokens; or ``inputs_embeds``.
            attention_mask: (B, past + T), 1 = keep; or a four-dimensional mask, used as it is.
            position_ids: (B or 1, T); None: counted from the mask. Where they restart in a row without mask and
                past, samples that are packed there do not see each other.
            past_key_values: what came before; also keeps the NTK factor of each row.
            inputs_embeds: (B, T, D) instead of ``input_ids``.
            use_cache: whether to return a cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds, not both and not neither")
        embedded: Tensor = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        given_positions = position_ids
        if position_ids is None:
            position_ids = _count_positions(embedded, attention_mask, past_length)
        # Before a new cache is made: with one, packed samples would not be recognised.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        packed_ids = given_positions if attention_mask is None and past_key_values is None else None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        doublings = self._doublings(
            past_key_values,
            batch_size=embedded.shape[0],
            length=embedded.shape[1] + past_length,
            attention_mask=attention_mask,
            position_ids=packed_ids,
            device=embedded.device,
        )
        rotation = self._positions(position_ids, doublings, scale_queries=not self.training)
        hidden_states = self.drop(embedded)
        for layer in self.h:
            hidden_states = layer(
                hidden_states,
                rotation,
                mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.ln_f(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )

    def _doublings(self, cache: Cache | None, **prompt: Any) -> Tensor | None:
        """NTK state of every row: what the cache remembers, else chosen from the prompt now and remembered."""
        if self.training or not self.config.use_dynamic_ntk:
            return None
        doublings = remembered(cache)
        if doublings is None:
            doublings = prompt_doublings(self.config.seq_length, **prompt)
            if cache is not None and doublings.ndim == 1:
                remember(cache, doublings)
        return doublings.to(prompt["device"])


def _count_positions(embedded: Tensor, attention_mask: Any, past_length: int | Tensor) -> Tensor:
    """(B or 1, T) positions: tokens before each one, padding not counted."""
    length = embedded.shape[1]
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        counted = attention_mask.to(embedded.device).long().cumsum(-1) - 1
        return counted.clamp(min=0)[:, -length:]
    return (torch.arange(length, device=embedded.device) + past_length)[None]


class QWenLMHeadModel(QWenPreTrainedModel, ChatMixin, GenerationMixin):
    """The language model: `QWenModel` and an output head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the output head."""
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where there are labels; see `QWenModel.forward` for the other arguments.

        Args:
            labels: (B, T) tokens to predict, shifted inside; -100 carries no loss.
            logits_to_keep: how many of the last positions to compute logits for, or which; 0: all.
            kwargs: ``num_items_in_batch`` divides the summed loss in place of the number of labels here.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        states = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(states[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Fixes the NTK factors from the whole prompt, which may then be read in chunks."""
        cache = model_kwargs.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()) == 0:
            prompt = input_ids if model_kwargs.get("inputs_embeds") is None else model_kwargs["inputs_embeds"]
            self.transformer._doublings(
                cache,
                batch_size=prompt.shape[0],
                length=prompt.shape[1],
                attention_mask=model_kwargs.get("attention_mask"),
                position_ids=None,
                device=prompt.device,
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
