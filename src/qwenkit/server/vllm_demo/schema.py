"""Request bodies and errors of vLLM's demo server, as read and as documented."""

from __future__ import annotations

from pydantic import BaseModel, Field

from qwenkit.server.bodies import Body, Refusals

REFUSED: Refusals = {
    "use_beam_search": ((False,), "beam search is not offered here; leave use_beam_search out"),
    "length_penalty": ((1.0,), "length_penalty is for beam search, which is not offered; leave it out"),
    "early_stopping": ((False,), "early_stopping is for beam search, which is not offered; leave it out"),
    "logits_processors": (([],), "logits processors are not offered here; leave them out"),
    "truncate_prompt_tokens": ((), "prompts are never truncated here; shorten the prompt yourself"),
    "guided_decoding": ((), "use /v1/completions for texts of a given form; leave guided_decoding out"),
    "structured_outputs": ((), "use /v1/completions for texts of a given form; leave structured_outputs out"),
}


class DemoBody(Body):
    """POST /generate with a prompt."""

    prompt: str = Field(min_length=1)
    stream: bool | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None


class DemoErrorBody(BaseModel):
    """Every error."""

    detail: str
