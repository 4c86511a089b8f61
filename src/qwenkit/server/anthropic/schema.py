"""Request bodies of Anthropic's protocol, as read and as documented."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from qwenkit.server.bodies import Body

ROLES = ("user", "assistant", "system")
"""Who may say something."""


class SourceBody(Body):
    """Where the text of a document is."""

    type: str
    media_type: str | None = None
    data: str | None = None
    content: str | list[BlockBody] | None = None


class BlockBody(Body):
    """A piece of a turn; which fields it has depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    is_error: bool | None = None
    content: str | list[BlockBody] | None = None
    source: SourceBody | str | None = None
    title: str | None = None
    context: str | None = None


class TurnBody(Body):
    """One turn of a conversation."""

    role: str = Field(json_schema_extra={"enum": list(ROLES)})
    content: str | list[BlockBody]


class OfferedToolBody(Body):
    """A function the model may call."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None


class WantedToolBody(Body):
    """Whether and what the model must call."""

    type: str = Field(description="auto, any, tool or none")
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(Body):
    """Whether the model should think first."""

    type: str = Field(description="enabled, disabled or adaptive")
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class FormatBody(Body):
    """The form of an answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputBody(Body):
    """How the answer should be."""

    format: FormatBody | None = None
    effort: str | None = None


class EditBody(Body):
    """What may be taken out of a long conversation."""

    type: str


class ContextBody(Body):
    """How a long conversation is kept short."""

    edits: list[EditBody] | None = None


class CountTokensBody(Body):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[TurnBody] = Field(min_length=1, max_length=100_000)
    system: str | list[BlockBody] | None = None
    tools: list[OfferedToolBody] | None = None
    tool_choice: WantedToolBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputBody | None = None
    output_format: FormatBody | None = None
    context_management: ContextBody | None = None


class MessagesBody(CountTokensBody):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class AnthropicErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """Every error of Anthropic's protocol."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str
