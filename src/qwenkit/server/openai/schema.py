"""Request bodies of the OpenAI protocol and the extensions common among servers, as read and as documented."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, FailFast, Field

from qwenkit.server.bodies import Body


class _FirstOnly(FailFast):
    """Of a long list that is of another kind, one complaint is enough."""

    __hash__ = object.__hash__  # members of unions are hashed


_Ids: TypeAlias = Annotated[list[int], _FirstOnly()]
_Texts: TypeAlias = Annotated[list[str], _FirstOnly()]
Prompts: TypeAlias = str | _Texts | _Ids | Annotated[list[_Ids], _FirstOnly()]
"""A text, several, token ids, or several lists of them."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Who may say something."""


class ContentPart(Body):
    """A piece of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCallBody(Body):
    """A call the model made earlier."""

    name: str
    arguments: str


class ToolCallBody(Body):
    """A call the model made earlier, with its id."""

    id: str | None = None
    type: str | None = None
    function: FunctionCallBody


class MessageBody(Body):
    """One turn of a conversation."""

    role: str = Field(json_schema_extra={"enum": list(ROLES)})
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCallBody | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class FunctionBody(Body):
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(Body):
    """A tool the model may use."""

    type: str
    function: FunctionBody | None = None


class NameBody(Body):
    """The name of a function."""

    name: str


class NamedToolBody(Body):
    """A tool by its name."""

    type: str
    function: NameBody | None = None


class AllowedToolsBody(Body):
    """Which of the tools count."""

    mode: Literal["auto", "required"]
    tools: list[NamedToolBody]


class ToolChoiceBody(Body):
    """Which tool must be called."""

    type: str | None = None
    function: NameBody | None = None
    allowed_tools: AllowedToolsBody | None = None


class JsonSchemaBody(Body):
    """The schema of an answer."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormatBody(Body):
    """The form of an answer."""

    type: str = Field(description="text, json_object or json_schema; json and regex with a value")
    json_schema: JsonSchemaBody | None = None
    value: Any = Field(default=None, description="A schema or regular expression, as clients of TGI send it.")


class StructuredOutputsBody(Body):
    """The form of an answer; exactly one field."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptionsBody(Body):
    """What a stream holds besides text."""

    include_usage: bool | None = None


class SamplingBody(Body):
    """What chat and text completion have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormatBody | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: str | list[str] | None = None
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputsBody | None = None


class PromptBody(Body):
    """A conversation, and how to write it as a prompt."""

    messages: list[MessageBody] = Field(min_length=1)
    tools: list[ToolBody] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None


class ChatBody(SamplingBody, PromptBody):
    """POST /v1/chat/completions."""

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tool_choice: str | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionBody] | None = None
    function_call: str | NameBody | None = None


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: Prompts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class LoadAdapterBody(Body):
    """POST /v1/load_lora_adapter."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)


class UnloadAdapterBody(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1)


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every error, whatever the endpoint."""

    error: ErrorDetail
