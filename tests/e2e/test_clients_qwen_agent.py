"""Qwen-Agent against a server process with a real model: its own form of tool calls, and the API's."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from qwen_agent.agents import Assistant, fncall_agent
from qwen_agent.tools.base import BaseTool

from tests.support.live_server import LiveServer

ASKED = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER_ASKED = [{"role": "user", "content": "How is the weather in Rome?"}]
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Rome|Oslo)"\}\}\n</tool_call>'


class Weather(BaseTool):  # type: ignore[misc]
    """A tool that remembers what it was asked."""

    name = "weather"
    description = "How the weather of a city is."
    parameters = {  # noqa: RUF012
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
    }

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def call(self, params: Any, **kwargs: Any) -> str:
        """Sunny, everywhere."""
        self.asked.append(self._verify_json_format_args(params)["city"])
        return "It is sunny."


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other machine can be reached, and a weak model ends after two calls."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(fncall_agent, "MAX_LLM_CALL_PER_RUN", 2)


def llm(server: LiveServer, **generate: Any) -> dict[str, Any]:
    """The agent's description of a model."""
    common = {"max_tokens": 30, "temperature": 0, "seed": 1, "max_input_tokens": 1500}
    return {
        "model": server.model,
        "model_server": server.base_url,
        "api_key": server.key,
        "generate_cfg": common | generate,
    }


def last(agent: Assistant, messages: Any) -> tuple[int, list[dict[str, Any]]]:
    """How often the agent reported, and what it said in the end."""
    reports = list(agent.run(messages=messages))
    return len(reports), reports[-1]


def test_a_plain_answer_streams(smollm2_server: LiveServer) -> None:
    agent = Assistant(llm=llm(smollm2_server), system_message="You are a helpful AI assistant.")
    count, (answer,) = last(agent, ASKED)
    assert answer["role"] == "assistant"
    assert "Paris" in answer["content"]
    assert count > 3


def test_its_own_prompt_for_tools(smollm2_server: LiveServer) -> None:
    # the client writes tools into the prompt and reads calls from the text, which the server must not touch
    tool = Weather()
    forced = {"extra_body": {"guided_regex": CALL}, "max_tokens": 40}
    agent = Assistant(llm=llm(smollm2_server, **forced), function_list=[tool])
    _, messages = last(agent, WEATHER_ASKED)
    assert [m["role"] for m in messages] == ["assistant", "function"] * 2
    assert json.loads(messages[0]["function_call"]["arguments"])["city"] in ("Rome", "Oslo")
    assert messages[1]["content"] == "It is sunny."
    assert len(tool.asked) == 2


def test_the_tools_of_the_api(smollm2_server: LiveServer) -> None:
    tool = Weather()
    forced = {"use_raw_api": True, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60}
    agent = Assistant(llm=llm(smollm2_server, **forced), function_list=[tool])
    _, messages = last(agent, WEATHER_ASKED)
    assert [m["role"] for m in messages] == ["assistant", "function"] * 2
    first, second = messages[0]["function_call"], messages[2]["function_call"]
    assert first["name"] == second["name"] == "weather"
    assert tool.asked == [json.loads(call["arguments"])["city"] for call in (first, second)]
    assert messages[0]["extra"]["function_id"] != messages[2]["extra"]["function_id"]
