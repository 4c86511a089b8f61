"""Tool calls as Qwen2.5 and Qwen3 write them: JSON in ``<tool_call>`` tags ("Hermes" style).

Also writes them for models whose template knows no tools. Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenkit.chat.hermes_parser import HermesParser
from qwenkit.chat.reply import NewId, ReplyParser, new_call_id
from qwenkit.chat.tools import (
    THOUGHT_RULE,
    ToolChoice,
    ToolFormat,
    arguments_rule,
    chosen_tools,
    quoted,
    results_in_order,
)
from qwenkit.core.types import Constraint, Message, ToolCall, ToolSpec

_BLOCK = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class HermesFormat(ToolFormat):
    """Calls as JSON objects with ``name`` and ``arguments`` in ``<tool_call>`` tags."""

    writes_thoughts: bool = False
    """Whether a thought in ``<think>`` tags may come before a forced call."""

    @property
    def name(self) -> str:
        """``hermes``."""
        return "hermes"

    @property
    def stop(self) -> tuple[str, ...]:
        """None: the model ends its turn after its calls."""
        return ()

    def constraint(
        self,
        tools: Sequence[ToolSpec],
        choice: ToolChoice,
        *,
        parallel: bool = True,
        starts_in_thought: bool = False,
    ) -> Constraint | None:
        """See `ToolFormat.constraint`; the reply is then nothing but a thought, if any, and calls."""
        chosen = chosen_tools(tools, choice)
        if not chosen:
            return None
        rules = [f"start: {self._thought(starts_in_thought)}call" + (' ("\\n" call)*' if parallel else "")]
        if starts_in_thought or self.writes_thoughts:
            rules.append(THOUGHT_RULE)
        rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(chosen))))
        tail = quoted("}\n</tool_call>")
        for i, tool in enumerate(chosen):
            head = quoted(
                f'<tool_call>\n{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
            )
            rules.append(f"call_{i}: {head} {arguments_rule(tool)} {tail}")
        return Constraint(kind="grammar", value="\n".join(rules))

    def _thought(self, starts_in_thought: bool) -> str:
        if starts_in_thought:
            return 'thought "\\n"{0,2} '
        return '("<think>" thought "\\n"{0,2})? ' if self.writes_thoughts else ""

    def parser(
        self, *, parallel: bool = True, new_id: NewId = new_call_id, is_whole: bool = False
    ) -> ReplyParser:
        """See `ToolFormat.parser`; the same for whole and streamed replies."""
        return HermesParser(parallel=parallel, new_id=new_id)


def write_as_text(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """A conversation with tools as one without, for templates that know none.

    Tools are described at the end of the system text, calls become text of the assistant, and results that follow
    each other one turn of the user.
    """
    written: list[Message] = []
    if tools:
        block = _BLOCK.format(tools="\n".join(json.dumps(t.to_dict(), ensure_ascii=False) for t in tools))
        has_system = bool(messages) and messages[0].role == "system"
        text = f"{messages[0].content}\n\n{block}" if has_system and messages[0].content else block
        written, messages = [Message("system", text)], messages[1:] if has_system else messages
    results: list[str] = []
    for message in [*results_in_order(messages), None]:
        if message is not None and message.role == "tool":
            results.append(f"<tool_response>\n{message.content}\n</tool_response>")
            continue
        if results:
            written.append(Message("user", "\n".join(results)))
            results = []
        if message is not None:
            written.append(_with_calls_as_text(message))
    return written


def _with_calls_as_text(message: Message) -> Message:
    if not message.tool_calls:
        return message
    parts = [message.content] if message.content else []
    return replace(message, content="\n".join([*parts, *map(_call_text, message.tool_calls)]), tool_calls=())


def _call_text(call: ToolCall) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'
