"""Rows of samples: cut, dropped, packed, rendered at once or late, and counted."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.chat.template import ChatMLTemplate, JinjaTemplate
from qwenkit.core.errors import InputError
from qwenkit.core.types import Message
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.train.dataset import TrainingData
from qwenkit.train.labels import IGNORED, LabelRules, render
from qwenkit.train.reading import Reading
from qwenkit.train.samples import Sample
from tests.support.tiny_models import QWEN3_MARKS, byte_level
from tests.unit.train.templates import INSTRUCTIONS, QWEN2

PLAIN = LabelRules(structure_loss=False, default_system="")
OVERHEAD = 31
"""Tokens of a conversation of one exchange with an empty system text, besides its texts."""


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    return byte_level(None, marks=QWEN3_MARKS)


def _sample(ask: int, tell: int, source: str = "f:1") -> Sample:
    return Sample((Message("user", "q" * ask), Message("assistant", "a" * tell)), source=source)


def _data(tokenizer: HfTokenizer, samples: Any, max_length: int = 60, **settings: Any) -> TrainingData:
    settings = {"rules": PLAIN, "max_length": max_length} | settings
    return TrainingData(samples, tokenizer, ChatMLTemplate(tokenizer), **settings)


def test_rows_are_the_rendered_samples(tokenizer: HfTokenizer) -> None:
    samples = [_sample(3, 4), _sample(1, 9)]
    for lazy in (False, True):
        data = _data(tokenizer, samples, lazy=lazy)
        assert len(data) == 2
        for n, sample in enumerate(samples):
            (sequence,) = render(sample, tokenizer, ChatMLTemplate(tokenizer), PLAIN)
            item = data[n]
            assert item["input_ids"].tolist() == sequence.ids.tolist()
            assert item["labels"].tolist() == sequence.labels.tolist()
            assert item["position_ids"].tolist() == list(range(len(sequence)))
            assert {values.dtype for values in item.values()} == {torch.int64}
        assert data.lengths == [OVERHEAD + 7, OVERHEAD + 10]
        with pytest.raises(IndexError):
            data[2]


def test_report(tokenizer: HfTokenizer) -> None:
    reading = Reading([_sample(3, 4), _sample(1, 9)], num_skipped=2)
    report = _data(tokenizer, reading).report
    assert (report.samples, report.sequences, report.skipped, report.truncated) == (2, 2, 2, 0)
    assert (report.tokens, report.longest) == (2 * OVERHEAD + 17, OVERHEAD + 10)
    assert report.loss_tokens == 4 + 9 + 2
    assert report.fill is None
    assert report.to_dict()["loss_tokens"] == 15
    assert report.text() == (
        "2 samples, 2 sequences, 79 tokens, 15 with loss (19%), longest 41\n2 broken samples left out"
    )


def test_long_samples_lose_their_end(tokenizer: HfTokenizer) -> None:
    data = _data(tokenizer, [_sample(3, 4), _sample(3, 50), _sample(80, 5)])
    report = data.report
    assert len(data) == 2
    assert data.lengths == [OVERHEAD + 7, 60]
    assert (report.truncated, report.without_loss) == (2, 1)
    fits = 60 - (OVERHEAD - 2) - 3  # of the reply, before its end and line end
    assert report.loss_tokens == 5 + fits
    assert report.lost_loss_tokens == (51 - fits) + 6
    assert "2 sequences cut at 60 tokens, losing" in report.text()
    assert "1 sequence left out: nothing in it carries loss" in report.text()


def test_long_samples_dropped_or_refused(tokenizer: HfTokenizer) -> None:
    samples = [_sample(3, 4), _sample(3, 50, "f:7")]
    report = _data(tokenizer, samples, too_long="drop").report
    assert (report.samples, report.too_long, report.truncated) == (1, 1, 0)
    assert "1 sample left out: longer than 60 tokens" in report.text()
    with pytest.raises(InputError, match="f:7 has 84 tokens, more than max_length=60; raise it"):
        _data(tokenizer, samples, too_long="refuse")
    with pytest.raises(InputError, match="too_long 'x' is unknown; use cut, drop or refuse"):
        _data(tokenizer, samples, too_long="x")


def test_plain_texts_are_parted_not_cut(tokenizer: HfTokenizer) -> None:
    text = "".join(map(chr, range(33, 33 + 90)))
    data = _data(tokenizer, [Sample((), text=text)], 40)
    assert data.lengths == [40, 40, 11]
    ids = [i for n in range(3) for i in data[n]["input_ids"].tolist()]
    assert tokenizer.decode(ids) == text + "<|endoftext|>"
    assert data.report.truncated == 0


def test_packed_rows(tokenizer: HfTokenizer) -> None:
    draw = random.Random(0)
    samples = [_sample(draw.randint(1, 30), draw.randint(1, 30)) for _ in range(60)]
    loose, packed = _data(tokenizer, samples, 300), _data(tokenizer, samples, 300, packing=True)
    assert max(packed.lengths) <= 300
    assert sum(packed.lengths) == sum(loose.lengths)
    wanted = sorted(loose[n]["input_ids"].tolist() for n in range(60))
    found = []
    for n in range(len(packed)):
        item = packed[n]
        starts = (item["position_ids"] == 0).nonzero().flatten().tolist()
        assert item["labels"][starts[1:]].eq(IGNORED).all()
        for ids, positions in zip(
            item["input_ids"].tensor_split(starts[1:]),
            item["position_ids"].tensor_split(starts[1:]),
            strict=True,
        ):
            assert positions.tolist() == list(range(len(ids)))
            found.append(ids.tolist())
    assert sorted(found) == wanted
    report = packed.report
    assert report.rows == len(packed) < 60 / 2
    assert report.fill == pytest.approx(sum(packed.lengths) / (300 * len(packed)))
    assert f"packed into {len(packed)} rows of 300 tokens" in report.text()
    again = _data(tokenizer, samples, 300, packing=True)
    assert [again[n]["input_ids"].tolist() for n in range(3)] == [
        packed[n]["input_ids"].tolist() for n in range(3)
    ]
    other = _data(tokenizer, samples, 300, packing=True, seed=1)
    assert other[0]["input_ids"].tolist() != packed[0]["input_ids"].tolist()


def test_first_label_of_the_release_is_ignored_where_it_would_cross(tokenizer: HfTokenizer) -> None:
    data = _data(tokenizer, [_sample(1, 1)] * 2, 200, packing=True, rules=LabelRules())
    labels = data[0]["labels"].tolist()
    half = len(labels) // 2
    assert labels[0] == tokenizer.special_tokens["<|im_start|>"]
    assert labels[half] == IGNORED
    assert labels[1:half] == labels[half + 1 :]


def test_parted_samples_are_items_or_rows(tokenizer: HfTokenizer, data_folder: Path) -> None:
    template = JinjaTemplate((data_folder / "chat" / "qwen3_like.jinja").read_text("utf-8"), tokenizer)
    sample = Sample(tuple(Message(role, role) for role in ("user", "assistant") * 2))
    eager = TrainingData([sample], tokenizer, template, max_length=500)
    assert len(eager) == 2
    assert eager.report.parted == 1
    assert "1 sample became several sequences" in eager.report.text()
    lazy = TrainingData([sample], tokenizer, template, max_length=500, lazy=True)
    assert len(lazy) == 1
    both = torch.cat([eager[0]["input_ids"], eager[1]["input_ids"]])
    assert lazy[0]["input_ids"].equal(both)
    assert lazy[0]["position_ids"].eq(0).sum() == 2


def test_lazy_renders_when_needed_and_once(tokenizer: HfTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(sample: Sample, *args: Any) -> Any:
        calls.append(sample.source)
        return render(sample, *args)

    monkeypatch.setattr("qwenkit.train.dataset.render", counted)
    data = _data(tokenizer, [_sample(1, 1, str(n)) for n in range(3)], lazy=True)
    assert calls == []
    assert not data.report.is_complete
    assert "the others are rendered when they are needed" in data.report.text()
    data[1], data[1], data[-1]
    assert calls == ["1", "2"]
    assert data.report.samples == 2
    assert len(data.lengths) == 3
    assert data.report.is_complete


def test_lazy_puts_the_next_good_sample_in_place_of_an_empty_one(tokenizer: HfTokenizer) -> None:
    data = _data(tokenizer, [_sample(1, 1), _sample(90, 1), _sample(2, 1)], lazy=True)
    assert data[1]["input_ids"].equal(data[2]["input_ids"])
    assert data.report.without_loss == 1
    hopeless = _data(tokenizer, [_sample(90, 1)], lazy=True)
    with pytest.raises(InputError, match="no sample has anything to learn from"):
        hopeless[0]


def test_samples_the_template_refuses(tokenizer: HfTokenizer) -> None:
    template = JinjaTemplate(INSTRUCTIONS, tokenizer)
    samples = [_sample(1, 1), Sample((Message("system", "S"), *_sample(1, 1).messages), source="f:9")]
    with pytest.raises(InputError, match=r"f:9: .*only user and assistant"):
        TrainingData(samples, tokenizer, template, max_length=100)
    report = TrainingData(samples, tokenizer, template, max_length=100, skip_bad=True).report
    assert (report.samples, report.refused) == (1, 1)
    assert "1 sample left out: the chat template refuses" in report.text()
    with pytest.raises(InputError, match=r"^the model has no chat template"):
        TrainingData(samples, tokenizer, None, max_length=100, skip_bad=True)


def test_impossible_sets(tokenizer: HfTokenizer) -> None:
    with pytest.raises(InputError, match="there are no samples to train on"):
        _data(tokenizer, [])
    with pytest.raises(InputError, match="no sample has anything to learn from"):
        _data(tokenizer, [_sample(90, 1)])
    with pytest.raises(InputError, match="packing needs the length of every sample"):
        _data(tokenizer, [_sample(1, 1)], packing=True, lazy=True)
    with pytest.raises(InputError, match="max_length must be 2 or more, got 1"):
        _data(tokenizer, [_sample(1, 1)], max_length=1)


def test_progress_and_copies_for_workers(tokenizer: HfTokenizer) -> None:
    seen: list[tuple[int, int]] = []
    data = _data(tokenizer, [_sample(1, 1)] * 100, on_progress=lambda *at: seen.append(at), packing=True)
    assert seen == [(64, 100), (100, 100)]
    assert pickle.loads(pickle.dumps(data._sequences))[99].ids.tolist() == data._sequences[99].ids.tolist()


def test_jinja_and_dropped_turns(tokenizer: HfTokenizer) -> None:
    sample = Sample(_sample(1, 1).messages, (), "f:1", None, 2)
    report = TrainingData([sample], tokenizer, JinjaTemplate(QWEN2, tokenizer), max_length=200).report
    assert report.dropped_turns == 2
    assert "2 turns of the assistant before the first of the user left out" in report.text()
