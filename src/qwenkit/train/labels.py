"""Renders samples to tokens with labels: what the model reads, and which of it the model learns to write.

Text of a sample never becomes a special token, as in inference. Knows nothing of files or batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from qwenkit.chat.base import ChatTemplate
from qwenkit.chat.chatml import ChatMLTemplate
from qwenkit.core.errors import InputError, TemplateError
from qwenkit.core.types import Message
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.train.chatml_labels import chatml_pieces
from qwenkit.train.pieces import IGNORED as IGNORED
from qwenkit.train.pieces import Piece, Rendered, encode_pieces
from qwenkit.train.samples import Sample, has_calls
from qwenkit.train.template_labels import template_pieces

LossRule: TypeAlias = Literal["all", "last"]
"""Which turns of the assistant are learnt."""

_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRules:
    """What carries loss.

    Raises:
        InputError: an unknown loss rule.
    """

    loss: LossRule = "all"
    """All replies, or only the last of each sample."""
    default_system: str | None = None
    """System text of samples without one; None: the template's own."""
    structure_loss: bool | None = None
    """Loss on start, end and line end of every message; None: in ChatML of the first generation, as it was released."""
    observation_loss: bool | None = None
    """Loss on results of tools inside the assistant's turns (ReAct); None: as ``structure_loss`` comes out."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as enable_thinking of Qwen3."""

    def __post_init__(self) -> None:
        if self.loss not in ("all", "last"):
            raise InputError(f"loss {self.loss!r} is unknown; use all or last")


def render(
    sample: Sample, tokenizer: Tokenizer, template: ChatTemplate | None, rules: LabelRules | None = None
) -> tuple[Rendered, ...]:
    """The training sequences of a sample, uncut: mostly one.

    There are several where a template rewrites earlier turns (see `template_labels`), and where ReAct describes tools
    before the question and there are several questions.

    Args:
        sample: a conversation or a plain text.
        tokenizer: of the model.
        template: of the model; plain texts need none.
        rules: what carries loss.

    Raises:
        TemplateError: no template, or one the conversation does not fit.
        InputError: rules that the template cannot honour.
    """
    rules = rules or LabelRules()
    if sample.text is not None:
        return (encode_pieces(tokenizer, _plain_pieces(sample.text, tokenizer), sample.source),)
    if template is None:
        raise TemplateError(
            "the model has no chat template to write conversations with; "
            'put a chat_template.jinja into its folder, or train on plain texts ({"text": ...})'
        )
    sequences = _pieces(sample, tokenizer, template, rules)
    return tuple(encode_pieces(tokenizer, pieces, sample.source) for pieces in sequences)


def _pieces(
    sample: Sample, tokenizer: Tokenizer, template: ChatTemplate, rules: LabelRules
) -> list[list[Piece]]:
    messages = sample.messages
    if rules.default_system is not None and messages[0].role != "system":
        messages = (Message("system", rules.default_system), *messages)
    only_last = rules.loss == "last"
    if isinstance(template, ChatMLTemplate):
        if rules.template_options:
            names = ", ".join(sorted(rules.template_options))
            raise InputError(f"the ChatML format has no option {names}; leave it out")
        structure = rules.structure_loss is not False
        observations = structure if rules.observation_loss is None else rules.observation_loss
        return chatml_pieces(
            template,
            messages,
            sample.tools,
            only_last=only_last,
            structure_loss=structure,
            observation_loss=observations,
        )
    if rules.observation_loss and (sample.tools or has_calls(messages)):
        raise InputError(
            "observation_loss is for models that write results of tools into the assistant's turn (ReAct), "
            "and this one gets them as turns of the user; leave it out"
        )
    stops = template.stop_token_sequences
    return template_pieces(
        template,
        messages,
        sample.tools,
        only_last=only_last,
        structure_loss=bool(rules.structure_loss),
        control_ids=tokenizer.control_ids,
        end_id=stops[0][0] if stops else tokenizer.eos_token_id,
        options=rules.template_options,
    )


def _plain_pieces(text: str, tokenizer: Tokenizer) -> list[Piece]:
    """All of a text is learnt, and that it ends."""
    start = tokenizer.bos_token_id if tokenizer.add_bos else None
    end = tokenizer.special_tokens.get(_END_OF_TEXT, tokenizer.eos_token_id)
    pieces = [] if start is None else [Piece(start, False)]
    pieces.append(Piece(text, True))
    return pieces if end is None else [*pieces, Piece(end, True)]
