"""A tokenizer of single bytes with the special tokens of Qwen3, and templates that write replies in different ways."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qwenkit.tokenizer.hf_json import HfTokenizer, TokenizerInfo

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SOFT = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

QWEN2 = """{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}
{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
OPEN_ENDED = """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content }}{%- if not loop.last -%}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_end|>\\n<|im_start|>assistant\\n' }}{%- endif -%}"""
"""Ends a message only when another follows."""
OPENS_THOUGHTS = QWEN2.replace("assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif")
"""Asks for replies in a way it never writes them."""
INSTRUCTIONS = """{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' -%}{{ ' ' + message.content | trim + '<|endoftext|>' }}
{%- else -%}{{ raise_exception('only user and assistant') }}{%- endif -%}{%- endfor -%}"""
"""Has no opening of its own for replies."""


def byte_tokenizer() -> HfTokenizer:
    """Ids below 256 are bytes, specials follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(form, special=True, normalized=False) for form in CONTROL])
    library.add_tokens([AddedToken(form, special=False, normalized=False) for form in SOFT])
    return HfTokenizer(library, TokenizerInfo(eos_token="<|im_end|>"))
