"""Templates that write replies in different ways."""

from __future__ import annotations

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
