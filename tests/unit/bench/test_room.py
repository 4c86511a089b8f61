"""What fits a model's context and the free memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from qwenkit.bench import room as room_module
from qwenkit.bench.room import Room, read_room
from qwenkit.bench.speed import Case
from qwenkit.cache.paged import PAGE_SIZE, page_bytes
from qwenkit.core.errors import InputError
from tests.support.tiny_models import SIZES, write_model

CPU = torch.device("cpu")


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return read_room(write_model(tmp_path, context_length=512), device=CPU, dtype=torch.float32)


def decode(batch: int = 1, context: int = 128, output: int = 64) -> Case:
    return Case(kind="decode", batch=batch, prompt_tokens=context, output_tokens=output)


def test_what_headers_say(room: Room, tmp_path: Path) -> None:
    table = 4 * SIZES["vocab_size"] * SIZES["hidden_size"]
    assert room.unread_weight_bytes == table
    assert room.page_bytes == page_bytes(room.config, torch.float32, False)
    assert room.cache_bytes_per_token == 2 * 4 * 3 * 32  # keys and values of 3 layers, one head of 32
    assert room.free_bytes is not None
    int8 = read_room(tmp_path, device=CPU, dtype=torch.float32, kv_cache="int8", head="int8", max_context=99)
    assert int8.page_bytes < room.page_bytes
    assert int8.weights_bytes < room.weights_bytes
    assert int8.unread_weight_bytes == table
    assert int8.config.context_length == 99


def test_the_cache_holds_the_largest_case(room: Room) -> None:
    cases = [decode(), decode(batch=4), Case(kind="prefill", prompt_tokens=100)]
    pages = 4 * (-(-192 // PAGE_SIZE) + 2)
    assert room.cache_bytes(cases) == pages * room.page_bytes
    room.check(cases)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            decode(batch=3, context=449),
            "449 tokens of context and 64 of output make 513 tokens, .* 512: 448 fit",
        ),
        (decode(output=600), "make 728 tokens, the context holds 512: fewer than 512 output tokens"),
        (Case(kind="prefill", prompt_tokens=512), "a prompt of 512 and its first token make 513 .* 511 fit"),
        (
            Case(kind="generate", prompt_tokens=1, output_tokens=2048),
            "511 generated tokens fit, or give max_context=2049 if the model allows",
        ),
    ],
)
def test_beyond_the_context(case: Case, words: str, room: Room) -> None:
    with pytest.raises(InputError, match=words):
        room.check([decode(), case])
    room.check([decode(context=448)])


def test_beyond_the_memory(room: Room) -> None:
    big = decode(batch=64, context=400)
    tight = dataclasses.replace(room, free_bytes=room.needed_bytes(decode(batch=10, context=400)))
    with pytest.raises(InputError, match=r"64 x 400 tokens .* are free on cpu: a batch of 10 fits$"):
        tight.check([big])
    tight.check([decode(batch=10, context=400)])
    with pytest.raises(InputError, match="not even one token fits"):
        dataclasses.replace(room, free_bytes=1000).check([decode()])
    dataclasses.replace(room, free_bytes=None).check([big])  # where it cannot be told, nothing is refused


def test_generated_tokens_that_fit_the_memory(room: Room) -> None:
    case = Case(kind="generate", prompt_tokens=1, output_tokens=500)
    half = dataclasses.replace(case, output_tokens=250)
    tight = dataclasses.replace(room, free_bytes=room.needed_bytes(half))
    with pytest.raises(InputError, match=r"on cpu: (\d+) generated tokens fit") as raised:
        tight.check([case])
    assert 250 <= int(str(raised.value).split(": ")[1].split()[0]) < 500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_cache": "int4"}, "kv_cache='int4' is not known"),
        ({"head": "int4"}, "head='int4' is not known"),
        ({"max_context": 0}, "max_context=0 is not possible"),
    ],
)
def test_options_that_are_not_possible(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_room(write_model(tmp_path), device=CPU, dtype=torch.float32, **changes)  # type: ignore[arg-type]


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert room_module._free(torch.device("cuda:0")) == 123
    monkeypatch.setattr(room_module, "available_memory", lambda: 0)
    assert room_module._free(CPU) is None
