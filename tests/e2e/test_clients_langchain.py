"""LangChain's client for OpenAI against a server process with a real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.support.live_server import LiveServer

ASKED = "What is the capital of France?"
MESSAGES = [SystemMessage("You are a helpful AI assistant."), HumanMessage(ASKED)]


@pytest.fixture(scope="module")
def model(smollm2_server: LiveServer) -> Iterator[ChatOpenAI]:
    """SmolLM2 as LangChain sees it."""
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "max_retries": 0, "timeout": 60}
    found = ChatOpenAI(
        model=smollm2_server.model, base_url=smollm2_server.base_url, api_key=smollm2_server.key, **options
    )
    yield found
    found.root_client.close()


@tool
def multiply(a: int, b: int) -> int:
    """The product of two numbers."""
    return a * b


class City(pydantic.BaseModel):
    """A city and whether it is a capital."""

    name: str = pydantic.Field(max_length=12)
    is_capital: bool


def test_invoke_stream_and_batch_agree(model: ChatOpenAI) -> None:
    whole = model.invoke(MESSAGES)
    assert "Paris" in whole.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_tokens"] > 10
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    chunks = list(model.stream(MESSAGES))
    assert len(chunks) > 3
    assert "".join(chunk.text for chunk in chunks) == whole.text
    first, second = model.batch([ASKED, ASKED])
    assert first.text == second.text
    assert first.text


def test_tools(model: ChatOpenAI) -> None:
    forced = model.bind_tools([multiply], tool_choice="multiply", parallel_tool_calls=False)
    messages: list[Any] = [HumanMessage("What is 3 times 4?")]
    answer = forced.invoke(messages, max_tokens=60)
    assert isinstance(answer, AIMessage)
    assert not answer.invalid_tool_calls
    (call,) = answer.tool_calls
    assert call["name"] == "multiply"
    assert {type(value) for value in call["args"].values()} == {int}
    result = multiply.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content == str(call["args"]["a"] * call["args"]["b"])
    assert model.bind_tools([multiply], tool_choice="none").invoke([*messages, answer, result]).text


def test_tools_that_stream(model: ChatOpenAI) -> None:
    forced = model.bind_tools([multiply], tool_choice="any", parallel_tool_calls=False)
    chunks = list(forced.stream("What is 3 times 4?", max_tokens=60))
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert [call["name"] for call in total.tool_calls] == ["multiply"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: ChatOpenAI, method: Any) -> None:
    typed = model.with_structured_output(City, method=method)
    assert isinstance(typed.invoke("Paris is the capital of France. Describe Paris.", max_tokens=60), City)


def test_embeddings_of_texts(smollm2_server: LiveServer) -> None:
    # without the flag the class splits texts with a tokenizer that it would have to download
    embeddings = OpenAIEmbeddings(
        model=smollm2_server.model,
        base_url=smollm2_server.base_url,
        api_key=smollm2_server.key,
        check_embedding_ctx_length=False,
    )
    first, second = embeddings.embed_documents(["a cat", "a dog"])
    assert len(first) == len(second) == 576
    assert first == pytest.approx(embeddings.embed_query("a cat"), abs=1e-4)
    embeddings.client._client.close()
