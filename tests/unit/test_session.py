"""Conversations: what is remembered, what is sent, what is kept when things go wrong, saving and loading."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.core.errors import InputError, NumericsError, PromptTooLongError, QwenkitError, TemplateError
from qwenkit.core.types import Message, SamplingParams
from qwenkit.llm import LLM, Chat
from qwenkit.tokenizer.hf_json import HfTokenizer
from tests.support.backends import FailingBackend, tiny_backend

SHORT = SamplingParams(max_tokens=6)


def scripted(*replies: str, **options: Any) -> tuple[Chat, FailingBackend]:
    backend = FailingBackend(replies or ["one", "two", "three"])
    return Chat(LLM.from_backend(backend), **options), backend


def turns(chat: Chat) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in chat.messages]


class TestHistory:
    def test_turns_are_remembered_and_sent(self) -> None:
        chat, backend = scripted(system="S")
        assert chat.send("a").text == "one"
        assert chat.send("b").text == "two"
        assert turns(chat) == [("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")]
        sent = [m.content for m in backend.requests[1].prompt if isinstance(m, Message)]
        assert sent == ["S", "a", "one", "b"]

    def test_options_and_parameters_are_sent(self) -> None:
        chat, backend = scripted(params=SamplingParams(seed=3, max_tokens=2), enable_thinking=False)
        assert chat.send("a").finish_reason == "length"
        assert backend.requests[0].params.seed == 3
        assert backend.requests[0].template_options == {"enable_thinking": False}

    def test_undo_and_clear(self) -> None:
        chat, _ = scripted(system="S")
        assert chat.undo() is None
        chat.send("a")
        chat.send("b")
        assert chat.undo() == Message("user", "b")
        assert turns(chat) == [("user", "a"), ("assistant", "one")]
        chat.clear()
        assert (chat.messages, chat.system) == ([], "S")

    def test_thoughts_are_kept_apart(self) -> None:
        chat, _ = scripted("<think>\nhm\n</think>\n\nyes")
        chat.send("a")
        assert chat.messages[-1] == Message("assistant", "yes", reasoning="hm")

    def test_nothing_is_asked_until_the_stream_is_read(self) -> None:
        chat, backend = scripted()
        chat.stream("a")
        assert (chat.messages, backend.requests) == ([], [])


class TestInterruption:
    def test_a_partial_reply_is_kept(self) -> None:
        chat, _ = scripted("one two three")
        stream = chat.stream("a")
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert turns(chat) == [("user", "a"), ("assistant", "one")]

    def test_a_failure_keeps_what_was_said(self) -> None:
        chat, backend = scripted("one two three")
        backend.fails_after = 2
        with pytest.raises(NumericsError):
            chat.send("a")
        assert turns(chat) == [("user", "a"), ("assistant", "one tw")]

    def test_a_failure_before_the_first_word_forgets_the_question(self) -> None:
        chat, backend = scripted()
        chat.send("a")
        backend.fails_after = 0
        with pytest.raises(NumericsError):
            chat.send("b")
        assert turns(chat) == [("user", "a"), ("assistant", "one")]

    def test_a_finished_empty_reply_counts(self) -> None:
        chat, _ = scripted("")
        chat.send("a")
        assert turns(chat) == [("user", "a"), ("assistant", "")]


class TestRegenerate:
    def test_the_new_answer_takes_the_place_of_the_old(self) -> None:
        chat, backend = scripted()
        chat.send("a")
        assert "".join(d.text for d in chat.regenerate()) == "two"
        assert turns(chat) == [("user", "a"), ("assistant", "two")]
        assert len(backend.requests[1].prompt) == 1

    @pytest.mark.parametrize("stopped", [True, False])
    def test_the_old_answer_stays_when_the_new_one_has_no_word(self, stopped: bool) -> None:
        chat, backend = scripted()
        chat.send("a")
        if stopped:
            stream = chat.regenerate()
            stream.close()  # type: ignore[attr-defined]
        else:
            backend.fails_after = 0
            with pytest.raises(NumericsError):
                list(chat.regenerate())
        assert turns(chat) == [("user", "a"), ("assistant", "one")]

    def test_without_a_question(self) -> None:
        with pytest.raises(InputError, match="say something first"):
            scripted()[0].regenerate()


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        chat, _ = scripted("<think>\nhm\n</think>\n\n好", system="S 🙂")
        chat.send("a\nb")
        chat.save(tmp_path / "talk.json")
        other, _ = scripted()
        other.load(str(tmp_path / "talk.json"))
        assert (other.messages, other.system) == (chat.messages, "S 🙂")
        assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]

    def test_a_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        chat, _ = scripted()
        with pytest.raises(InputError, match="cannot be written: No such file"):
            chat.save(tmp_path / "no" / "talk.json")
        with pytest.raises(InputError, match="cannot be written: Is a directory"):
            chat.save(tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "cannot be read: No such file"),
            (b"\xff\xfe", "not a saved conversation"),
            (b"{", "not a saved conversation"),
            (b"[]", "not a conversation saved by qwenkit"),
            (b"[" * 100_000, "not a saved conversation"),
            ({"messages": []}, "no format 'qwenkit-chat-1'"),
            ({"format": "qwenkit-chat-1", "messages": {}}, "not a conversation"),
            ({"format": "qwenkit-chat-1", "messages": [], "system": 3}, "not a conversation"),
            ({"format": "qwenkit-chat-1", "messages": [3]}, "needs the keys 'role' and 'content'"),
            (
                {"format": "qwenkit-chat-1", "messages": [{"role": "king", "content": ""}]},
                "'king' is unknown",
            ),
            ({"format": "qwenkit-chat-1", "messages": [{"role": "user", "content": 3}]}, "must be text"),
            (
                {"format": "qwenkit-chat-1", "messages": [{"role": "assistant", "tool_calls": 3}]},
                "must be a list, got 3",
            ),
        ],
    )
    def test_files_that_are_no_conversation(self, content: Any, said: str, tmp_path: Path) -> None:
        path = tmp_path / "talk.json"
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        chat, _ = scripted(system="S")
        chat.send("a")
        before = chat.messages
        with pytest.raises(InputError, match=said):
            chat.load(path)
        assert (chat.messages, chat.system) == (before, "S")


class TestTrimming:
    @pytest.fixture
    def chat(self, smollm2_tokenizer: HfTokenizer) -> Chat:
        return Chat(LLM.from_backend(tiny_backend(smollm2_tokenizer)), params=SHORT)

    def prompt(self, chat: Chat, query: str) -> list[str]:
        return [m.content for m in chat._prompt(chat.messages, Message("user", query))]

    def talk(self, chat: Chat, count: int, words: int = 30) -> None:
        for i in range(count):
            chat.messages += [Message("user", f"q{i} " + "word " * words), Message("assistant", f"a{i}")]

    def test_a_real_network_answers(self, chat: Chat) -> None:
        first = chat.send("hi")
        assert len(first.token_ids) == first.usage.completion_tokens == 6
        chat.send("and?")
        assert [m.role for m in chat.messages] == ["user", "assistant"] * 2

    def test_all_that_fits_is_sent(self, chat: Chat) -> None:
        self.talk(chat, 3)
        assert len(self.prompt(chat, "now?")) == 7

    def test_the_oldest_turns_give_way_to_the_window(self, chat: Chat) -> None:
        self.talk(chat, 8)
        sent = self.prompt(chat, "now?")
        assert sent[0].startswith("q")
        assert sent[0] != chat.messages[0].content
        assert sent[-1] == "now?"
        assert len(sent) % 2 == 1
        assert len(chat.messages) == 16, "nothing is forgotten"
        assert chat.count_tokens() <= chat.max_window_size

    def test_a_smaller_window_keeps_less(self, chat: Chat) -> None:
        self.talk(chat, 6)
        long = len(self.prompt(chat, "now?"))
        chat.max_window_size = 120
        assert len(self.prompt(chat, "now?")) < long
        chat.max_window_size = 1
        assert self.prompt(chat, "now?") == ["now?"]

    def test_a_long_question_pushes_history_out_of_the_context(self, chat: Chat) -> None:
        self.talk(chat, 6)
        query = "long " * 380
        sent = self.prompt(chat, query)
        assert sent[-1] == query
        assert len(sent) < len(self.prompt(chat, "now?"))
        assert chat.send(query).token_ids

    def test_the_system_text_always_stays(self, chat: Chat) -> None:
        chat.system = "Be brief."
        self.talk(chat, 8)
        assert self.prompt(chat, "now?")[0] == "Be brief."

    def test_a_question_that_cannot_fit_is_refused_and_forgotten(self, chat: Chat) -> None:
        chat.send("hi")
        before = chat.messages
        with pytest.raises(PromptTooLongError, match="the context holds 512"):
            chat.send("long " * 600)
        assert chat.messages == before

    def test_counting_tokens(self, chat: Chat) -> None:
        assert chat.count_tokens() == 0
        self.talk(chat, 1)
        one = chat.count_tokens()
        self.talk(chat, 1)
        assert 30 < one < chat.count_tokens()


def test_a_model_that_cannot_chat(smollm2_tokenizer: HfTokenizer) -> None:
    backend = tiny_backend(smollm2_tokenizer)
    backend.template = None
    backend.info = dataclasses.replace(backend.info, can_chat=False)
    with pytest.raises(TemplateError, match="base model"):
        Chat(LLM.from_backend(backend))


def test_impossible_window() -> None:
    with pytest.raises(QwenkitError, match="max_window_size=0"):
        Chat(LLM.from_backend(ScriptedBackend(["x"])), max_window_size=0)


def test_a_long_question_drops_no_more_history_than_it_must(smollm2_tokenizer: HfTokenizer) -> None:
    llm = LLM.from_backend(tiny_backend(smollm2_tokenizer, context_length=512))
    chat = Chat(llm, params=SamplingParams(max_tokens=20))
    chat.messages = [
        m for i in range(40) for m in (Message("user", f"number {i}"), Message("assistant", "yes"))
    ]
    template = llm.backend.template
    assert template is not None

    def size(messages: list[Message]) -> int:
        return len(smollm2_tokenizer.encode_segments(template.render(messages)))

    for words in range(0, 440, 20):
        sent = chat._prompt(chat.messages, Message("user", "word " * words))
        assert size(sent) <= 492
        one_more = chat.messages[-(len(sent) + 1) :]
        in_window = len(chat._trimmed([*chat.messages, sent[-1]], chat.max_window_size))
        assert len(sent) == in_window or size([*one_more, sent[-1]]) > 492


@pytest.mark.parametrize("path", ["~nosuchuser/x", "a\0b"])
def test_paths_that_cannot_be(path: str) -> None:
    chat, _ = scripted()
    with pytest.raises(InputError):
        chat.save(path)
    with pytest.raises(InputError):
        chat.load(path)


def test_half_a_surrogate_pair_can_be_saved(tmp_path: Path) -> None:
    chat, _ = scripted()
    chat.messages = [Message("user", "a\ud800"), Message("assistant", "b")]
    chat.save(tmp_path / "chat.json")
    chat.load(tmp_path / "chat.json")
    assert chat.messages[0].content == "a?"
    assert [p.name for p in tmp_path.iterdir()] == ["chat.json"]
