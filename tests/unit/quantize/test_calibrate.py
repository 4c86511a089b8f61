"""Calibration files: what is drawn from each kind, and one sentence for each that cannot be used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from qwenkit.chat.template import ChatTemplate, choose_template
from qwenkit.core.errors import InputError, TemplateError
from qwenkit.core.types import Message
from qwenkit.quantize.calibrate import Calibration, read_calibration
from tests.support.tiny_models import byte_level

TOKENIZER = byte_level()
TEMPLATE = choose_template(None, TOKENIZER)
CHATS = [{"id": str(i), "conversations": [{"from": "user", "value": f"question {i}"}, {"from": "assistant", "value": f"answer {i}"}]} for i in range(10)]  # fmt: skip


def read(path: Path, template: ChatTemplate | None = TEMPLATE, **changes: Any) -> Calibration:
    options = {"num_samples": 4, "length": 50, "seed": 0} | changes
    return read_calibration(path, TOKENIZER, template, **options)


def put(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rendered(*turns: tuple[str, str]) -> tuple[int, ...]:
    assert TEMPLATE is not None
    messages = [Message(role, text) for role, text in turns]  # type: ignore[arg-type]
    return tuple(TOKENIZER.encode_segments(TEMPLATE.render(messages, add_generation_prompt=False)))


def test_plain_text_becomes_whole_blocks(tmp_path: Path) -> None:
    text = "".join(chr(97 + i % 26) + str(i) for i in range(300))
    path = put(tmp_path / "a.txt", text)
    found = read(path)
    ids = TOKENIZER.encode(text)
    blocks = {tuple(ids[at : at + 50]) for at in range(0, len(ids) - 49, 50)}
    assert len(set(found.samples)) == 4
    assert set(found.samples) <= blocks
    assert found.num_tokens == 200
    assert found.notes == ()
    assert found.source == "a.txt"
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_seed_decides(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "".join(str(i) for i in range(2000)))
    assert read(path).samples == read(path).samples
    assert read(path).samples != read(path, seed=1).samples


def test_text_never_becomes_a_special_token(tmp_path: Path) -> None:
    found = read(put(tmp_path / "a.txt", "<|im_start|>" * 10), num_samples=1)
    assert max(found.samples[0]) < 256


def test_fewer_samples_than_asked_for_are_all_used_and_said(tmp_path: Path) -> None:
    found = read(put(tmp_path / "a.txt", "x" * 120))
    assert [len(s) for s in found.samples] == [50, 50]
    assert found.notes == ("a.txt has 2 samples, fewer than the 4 asked for; all are used",)


def test_fine_tuning_json_is_written_with_the_template_and_cut(tmp_path: Path) -> None:
    found = read(put(tmp_path / "a.json", CHATS), length=1000)
    whole = {rendered(("user", f"question {i}"), ("assistant", f"answer {i}")) for i in range(10)}
    assert len(set(found.samples)) == 4
    assert set(found.samples) <= whole
    cut = read(put(tmp_path / "a.json", CHATS), length=20)
    assert {len(s) for s in cut.samples} == {20}
    assert {s[:20] for s in whole} >= set(cut.samples)


def test_chat_jsonl(tmp_path: Path) -> None:
    turns = [("system", "be brief"), ("user", "hi <|im_end|>"), ("assistant", "hello")]
    line = json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})
    found = read(put(tmp_path / "a.jsonl", f"{line}\n\n{line}\n"), length=1000)
    assert found.samples == (rendered(*turns), rendered(*turns))
    assert found.samples[0].count(258) == 3  # the user's own text spells none


def test_turns_before_the_first_of_the_user_are_dropped(tmp_path: Path) -> None:
    sample = {"conversations": [{"from": "assistant", "value": "no"}, {"from": "user", "value": "yes"}]}
    assert read(put(tmp_path / "a.json", [sample]), length=1000).samples == (rendered(("user", "yes")),)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n", "is empty"),
        ("a.txt", "x" * 49, "has 49 tokens, fewer than one sample of 50"),
        ("a.json", "[", "is not valid JSON"),
        ("a.json", "[]", "holds no list of conversations"),
        ("a.json", {"conversations": []}, "holds no list of conversations"),
        ("a.json", [{"text": "x"}], "sample 0: no conversation"),
        ("a.json", ["x"], "sample 0: no conversation"),
        ("a.json", [{"conversations": [{"from": "human", "value": "x"}]}], "to be one of user, assistant"),
        ("a.json", [{"conversations": [{"from": "user", "value": 3}]}], "'value' to be text"),
        ("a.json", [{"messages": ["x"]}], "got x"),
        ("a.json", [{"conversations": [{"from": "assistant", "value": "x"}]}], "no turn of the user"),
        ("a.jsonl", '{"messages": []}', "no turn of the user"),
    ],
)
def test_unusable_files(name: str, content: object, complaint: str, tmp_path: Path) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(InputError, match=complaint) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt cannot be read: No such file"):
        read(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(InputError, match=r"is not UTF-8 \(byte 3\)"):
        read(tmp_path / "a.txt")


def test_conversations_need_a_template(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        read(put(tmp_path / "a.json", CHATS), template=None)
