"""What the parameters of a DashScope request mean for the engine, and which are refused."""

from __future__ import annotations

from typing import Any

from qwenkit.backends.base import Backend
from qwenkit.core.errors import InputError
from qwenkit.core.types import Constraint, SamplingParams
from qwenkit.server.bodies import Refusals
from qwenkit.server.conversation import template_knows
from qwenkit.server.dashscope.schema import DashScopeFormat, DashScopeParameters
from qwenkit.server.errors import refuse
from qwenkit.server.exchange import Exchange
from qwenkit.server.sampling import (
    MAX_STOPS,
    check_limit,
    check_logprobs,
    check_token_ids,
    either,
    make_sampling,
)
from qwenkit.tokenizer.base import Tokenizer

_TEXT_ONLY = "this model reads and writes text only; leave {name} out"
_MEDIA: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "asr_options": (),
    "ocr_options": (),
    "vl_high_resolution_images": (False,),
    "vl_enable_image_hw_output": (False,),
}
REFUSED: Refusals = {
    "enable_code_interpreter": ((False,), "no code is run here; leave enable_code_interpreter out"),
    "max_input_tokens": (
        (),
        "prompts are never cut here; leave max_input_tokens out, and shorten the prompt",
    ),
    "translation_options": (
        (),
        "translation has no mode here; ask for it in a message, not with translation_options",
    ),
    "plugins": ((), "there are no plugins here; offer tools instead of plugins"),
    "skill": ((), "there are no skills here; leave skill out"),
    "output_format": ((), "there is no research mode here; leave output_format out"),
    **{name: (harmless, _TEXT_ONLY.format(name=name)) for name, harmless in _MEDIA.items()},
}
"""Parameters that would change the answer and are not offered."""
REFUSED_INPUT: Refusals = {
    "customized_model_id": (
        (),
        "there are no customised models here; name the model in model, not in customized_model_id",
    ),
    "file_urls": (([],), "files cannot be read here; put their text into a message instead of file_urls"),
}
"""The same for what is beside the messages."""
_SAMPLING = (
    *("n", "max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "seed", "stop", "stop_token_ids", "logprobs"),
)
_TOP_K_OFF = 100
"""Above it, the protocol says, all tokens may be chosen."""


def check_search(parameters: DashScopeParameters, exchange: Exchange) -> None:
    """Refuses the search for facts on the web; how to search then has no effect.

    Raises:
        ApiError: it was asked for.
    """
    if parameters.enable_search:
        sentence = "parameters.enable_search=true is not offered: this server searches nothing on the web; leave it out"
        raise refuse(sentence, "parameters.enable_search", "unsupported_field")
    if parameters.search_options is not None:
        exchange.ignored_fields.append("parameters.search_options")


def thinking_options(parameters: DashScopeParameters, backend: Backend, exchange: Exchange) -> dict[str, Any]:
    """Variables of the chat template that say whether the model should think.

    Raises:
        ApiError: it cannot do what is wanted.
    """
    wanted, template = parameters.enable_thinking, backend.template
    if parameters.thinking_budget is not None:
        if wanted is not False:
            sentence = "a thought cannot be cut short here; leave it out, or limit the reply with max_tokens"
            raise refuse(
                f"parameters.thinking_budget: {sentence}", "parameters.thinking_budget", "unsupported_field"
            )
        exchange.ignored_fields.append("parameters.thinking_budget")
    if wanted is None:
        return {}
    if template is None or template_knows(backend, "enable_thinking"):
        return {"enable_thinking": wanted}
    if wanted != template.writes_thoughts:
        what = "this model does not think" if wanted else "this model always thinks"
        sentence = f"parameters.enable_thinking={str(wanted).lower()} is not possible: {what}; leave it out"
        raise refuse(sentence, "parameters.enable_thinking", "unsupported_field")
    return {}


def sampling_params(parameters: DashScopeParameters, backend: Backend) -> SamplingParams:
    """The engine's settings for a request.

    Raises:
        ApiError: a value is out of range; ``param`` names the field.
    """
    if parameters.top_logprobs is not None and not parameters.logprobs:
        sentence = "parameters.top_logprobs needs logprobs=true; leave it out, or set both"
        raise refuse(sentence, "parameters.top_logprobs", "invalid_value")
    top = check_logprobs("parameters.top_logprobs", parameters.top_logprobs)
    return make_sampling(
        {name: f"parameters.{name}" for name in _SAMPLING},
        n=either(parameters.n, 1),
        max_tokens=check_limit("parameters.max_tokens", parameters.max_tokens),
        temperature=parameters.temperature,
        top_k=0 if parameters.top_k is not None and parameters.top_k > _TOP_K_OFF else parameters.top_k,
        top_p=parameters.top_p,
        repetition_penalty=parameters.repetition_penalty,
        presence_penalty=parameters.presence_penalty,
        frequency_penalty=parameters.frequency_penalty,
        seed=parameters.seed,
        logprobs=either(top, 0) if parameters.logprobs else None,
        constraint=_constraint(parameters.response_format),
        **_stops(parameters.stop, backend),
    )


def _stops(given: str | list[str | int | list[int]] | None, backend: Backend) -> dict[str, Any]:
    """Stops as texts or as token ids: a list of ids is one stop, a list of lists several."""
    field = "parameters.stop"
    if isinstance(given, str) or not given:
        return {"stop": given or None}
    texts = [item for item in given if isinstance(item, str)]
    if len(texts) == len(given):
        return {"stop": texts}
    flat = [item for item in given if isinstance(item, int)]
    runs = [flat] if flat else [item for item in given if isinstance(item, list)]
    if texts or len(flat) not in (0, len(given)):
        sentence = f"{field} mixes texts and token ids; use only one kind"
        raise refuse(sentence, field, "invalid_value")
    if len(runs) > MAX_STOPS or any(not run for run in runs):
        sentence = f"{field} must hold 1 to {MAX_STOPS} lists of token ids, none of them empty"
        raise refuse(sentence, field, "invalid_value")
    if backend.info.vocab_size:  # not every model elsewhere says
        check_token_ids(field, [i for run in runs for i in run], backend.info.vocab_size)
    if backend.tokenizer is None:
        return {"stop_token_sequences": tuple(map(tuple, runs))}
    # What ends a reply is not shown, and only texts and single tokens can be kept back while they come.
    longer = [_text_of(run, backend.tokenizer, field) for run in runs if len(run) > 1]
    return {"stop": longer, "stop_token_ids": tuple(run[0] for run in runs if len(run) == 1)}


def _text_of(run: list[int], tokenizer: Tokenizer, field: str) -> str:
    text = tokenizer.decode(run)
    if not text or "\ufffd" in text or tokenizer.control_ids.intersection(run):
        sentence = f"{field} holds {str(run)[:80]}, which stands for no text; use ids of whole characters"
        raise refuse(sentence, field, "invalid_value")
    return text


def _constraint(body: DashScopeFormat | None) -> Constraint | None:
    field = "parameters.response_format"
    if body is None or body.type == "text":
        return None
    if body.type == "json_object":
        return Constraint(kind="json_object")
    if body.type != "json_schema":
        sentence = f"{field}.type={body.type!r:.80} is unknown; use text, json_object or json_schema"
        raise refuse(sentence, f"{field}.type", "invalid_value")
    if body.json_schema is None or body.json_schema.schema_ is None:
        sentence = f"{field}.json_schema.schema is missing; it is required for the type json_schema"
        raise refuse(sentence, f"{field}.json_schema", "missing_field")
    try:
        return Constraint(kind="json_schema", value=body.json_schema.schema_)
    except InputError as error:
        raise refuse(str(error), f"{field}.json_schema", "invalid_value") from None
