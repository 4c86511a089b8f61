"""Request bodies and errors of text-generation-inference, as read and as documented."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from qwenkit.server.bodies import Body


class TgiGrammarBody(Body):
    """The form of an answer."""

    type: str = Field(description="json, json_schema or regex")
    value: Any = None


class TgiParametersBody(Body):
    """How to continue a text, and what to tell of it."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: int | None = None
    watermark: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: TgiGrammarBody | None = None
    adapter_id: str | None = None


class TgiBody(Body):
    """POST /generate, /generate_stream and /."""

    inputs: str = Field(min_length=1)
    parameters: TgiParametersBody | None = None
    stream: bool | None = None
    add_special_tokens: bool | None = None


class TgiErrorBody(BaseModel):
    """Every error."""

    error: str
    error_type: str
