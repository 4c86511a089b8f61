"""A tokenizer whose tokens are bytes, and templates with tools and thoughts for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwenkit.core.errors import InputError
from qwenkit.tokenizer.base import Segment, SpecialChoice, Tokenizer, resolve_specials, split_specials

TEMPLATE = """{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{{- '<tool_call></tool_call><|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}{{- call.function.name + (call.function.arguments | tojson) }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
THINKING_TEMPLATE = TEMPLATE.removesuffix("{%- endif %}") + (
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes; specials follow."""

    def __init__(self, *, chat_template: str | None = TEMPLATE, add_bos: bool = False) -> None:
        self._specials = {"<|im_start|>": 256, "<|im_end|>": 257, "<s>": 258}
        self._forms = {token_id: form for form, token_id in self._specials.items()}
        self._chat_template, self._add_bos = chat_template, add_bos

    vocab_size = 259
    eos_token_id = 257
    bos_token_id = 258
    strips_first_space = False

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._specials

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset(self._forms)

    @property
    def add_bos(self) -> bool:
        return self._add_bos

    @property
    def chat_template(self) -> str | None:
        return self._chat_template

    def encode(
        self, text: str, *, allowed_special: SpecialChoice = "all", disallowed_special: SpecialChoice = ()
    ) -> list[int]:
        allowed = resolve_specials(text, self._specials, allowed_special, disallowed_special)
        pieces: Sequence[Segment] = split_specials(text, allowed)
        return [i for p in pieces for i in ([p] if isinstance(p, int) else p.encode("utf-8", "replace"))]

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self._forms:
            return self._forms[token_id].encode()
        if not 0 <= token_id < 256:
            raise InputError(f"token id {token_id} is not in the vocabulary")
        return bytes([token_id])
