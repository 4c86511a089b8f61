"""Request bodies and errors of Ollama's protocol, as read and as documented."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from qwenkit.server.bodies import Body, Refusals

_NO_IMAGES = "this model reads text only; leave images out"
_NO_PICTURES = "this model makes no pictures; leave {} out"
REFUSED: Refusals = {
    "images": (([],), _NO_IMAGES),
    "suffix": (("",), "filling in before a suffix is not offered here; leave suffix out"),
    "template": (("",), "a request cannot bring its own template; leave it out, or use raw"),
    "truncate": (
        (False,),
        "a single prompt is never truncated here; leave truncate out and shorten the prompt",
    ),
    "shift": ((False,), "a full context ends the reply here, with done_reason length; leave shift out"),
    "_debug_render_only": ((False,), "prompts are not shown here; leave _debug_render_only out"),
    "width": ((0,), _NO_PICTURES.format("width")),
    "height": ((0,), _NO_PICTURES.format("height")),
    "steps": ((0,), _NO_PICTURES.format("steps")),
}
REFUSED_IN_MESSAGES: Refusals = {"images": (([],), _NO_IMAGES)}
REFUSED_OPTIONS: Refusals = {
    "typical_p": ((1.0,), "typical sampling is not offered here; leave typical_p out, or use top_p"),
    "tfs_z": ((1.0,), "tail-free sampling is not offered here; leave tfs_z out, or use min_p"),
    "mirostat": ((0,), "mirostat is not offered here; leave it out, or use temperature and top_p"),
    "penalize_newline": ((True,), "penalties know no exceptions here; leave penalize_newline out"),
}
NEUTRAL_OPTIONS = (
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "numa",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "embedding_only",
    "use_mmap",
    "use_mlock",
    "mirostat_tau",
    "mirostat_eta",
)
"""Settings of how a model is loaded or of what is off; they change no answer here."""


class OllamaOptionsBody(Body):
    """How to pick tokens."""

    num_predict: int | None = None
    num_ctx: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class OllamaFunctionCallBody(Body):
    """A call the model made earlier."""

    name: str
    arguments: dict[str, Any] | None = None


class OllamaToolCallBody(Body):
    """The same, with its id."""

    id: str | None = None
    function: OllamaFunctionCallBody


class OllamaMessageBody(Body):
    """One turn of a conversation."""

    role: str = Field(description="system, user, assistant or tool")
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaToolCallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaFunctionBody(Body):
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OllamaToolBody(Body):
    """A tool the model may use."""

    type: str | None = None
    function: OllamaFunctionBody


class OllamaRequestBody(Body):
    """What chats and single prompts have in common."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: OllamaOptionsBody | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class OllamaChatBody(OllamaRequestBody):
    """POST /api/chat."""

    messages: list[OllamaMessageBody] | None = None
    tools: list[OllamaToolBody] | None = None
    truncate: bool | None = None


class OllamaGenerateBody(OllamaRequestBody):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: list[int] | None = None


class OllamaEmbedBody(Body):
    """POST /api/embed."""

    model: str = Field(min_length=1)
    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = None


class OllamaEmbeddingsBody(Body):
    """POST /api/embeddings."""

    model: str = Field(min_length=1)
    prompt: str | None = None


class OllamaShowBody(Body):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None


class OllamaChangeBody(Body):
    """What would change the models."""

    model: str | None = None


class OllamaErrorBody(BaseModel):
    """Every error."""

    error: str
