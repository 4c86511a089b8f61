"""Files and folders of samples: broken ones are named by file and line."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from qwenkit.core.errors import InputError
from qwenkit.train.reading import Problem, find_files, iter_samples, read_samples
from qwenkit.train.samples import Sample

GOOD = {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}
LINE = json.dumps(GOOD)


def _write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _sources(paths: list[Path]) -> list[str]:
    return [sample.source for sample in read_samples(paths).samples]


def test_sources(tmp_path: Path) -> None:
    lines = _write(tmp_path / "a.jsonl", f"{LINE}\r\n\n{LINE}")
    listed = _write(tmp_path / "b.json", json.dumps([GOOD, GOOD]))
    single = _write(tmp_path / "c.JSON", LINE)
    _write(tmp_path / "notes.txt", "no data")
    _write(tmp_path / ".hidden.json", "no data")
    expected = ["a.jsonl:1", "a.jsonl:3", "b.json, sample 1", "b.json, sample 2", "c.JSON, sample 1"]
    assert _sources([lines, listed, single]) == expected
    assert _sources([tmp_path]) == expected


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        files.append(_write(tmp_path / name / "a.jsonl", LINE))
    assert _sources(files) == [f"{file}:1" for file in files]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_byte_order_mark(tmp_path: Path, suffix: str) -> None:
    assert len(_sources([_write(tmp_path / f"a.{suffix}", b"\xef\xbb\xbf" + LINE.encode())])) == 1


def test_separators_of_unicode_do_not_part_lines(tmp_path: Path) -> None:
    record = {
        "conversations": [{"from": "user", "value": "a\u2028b\x85c"}, {"from": "assistant", "value": "d"}]
    }
    file = _write(tmp_path / "a.jsonl", json.dumps(record, ensure_ascii=False))
    assert read_samples([file]).samples[0].messages[0].content == "a\u2028b\x85c"


def test_digest_changes_with_the_data(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.jsonl", LINE)
    before = read_samples([file]).digest
    assert before == read_samples([file]).digest
    _write(file, LINE + "\n" + LINE)
    assert read_samples([file]).digest != before


BAD_LINES = [
    ('{"a": [1,}', "invalid JSON at line 2, column 10 ("),
    ("{}", "no conversation"),
    ('{"a": NaN}', "NaN is no JSON"),
    ('{"a": -Infinity}', "-Infinity is no JSON"),
    ('{"text": "x", "text": "y"}', "the key 'text' stands twice in one object"),
    ('{"text": %s}' % ("9" * 5000), "invalid JSON (Exceeds the limit"),
    ('{"text": %s}' % ("[" * 200_000), "invalid JSON (too deeply nested)"),
    (b'{"text": "\xff"}', "byte 11 is not UTF-8"),
]


@pytest.mark.parametrize(("line", "sentence"), BAD_LINES)
def test_bad_lines(tmp_path: Path, line: str | bytes, sentence: str) -> None:
    line = line.encode() if isinstance(line, str) else line
    file = _write(tmp_path / "a.jsonl", LINE.encode() + b"\n" + line + b"\n" + LINE.encode())
    with pytest.raises(InputError) as caught:
        read_samples([file])
    assert f"1 of 3 samples is broken (a.jsonl:2: {sentence}" in str(caught.value)
    reading = read_samples([file], skip_bad=True)
    assert [s.source for s in reading.samples] == ["a.jsonl:1", "a.jsonl:3"]
    assert reading.num_skipped == 1
    assert str(reading.problems[0]).startswith(f"a.jsonl:2: {sentence}")


def test_the_first_few_of_many_are_listed(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.json", json.dumps([GOOD, *[{}] * 7]))
    with pytest.raises(InputError) as caught:
        read_samples([file])
    text = str(caught.value)
    assert text.startswith("7 of 8 samples are broken (a.json, sample 2: no conversation")
    assert "sample 6" in text
    assert "sample 7" not in text
    assert text.endswith("; and 2 more); mend them, or leave them out with --skip-bad")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.jsonl", "{}")
    with pytest.raises(InputError, match=r"1 of 1 samples is broken .*; nothing is left to learn from"):
        read_samples([file], skip_bad=True)


BAD_FILES = [
    ("a.json", "", "a.json holds no samples"),
    ("a.json", "[]", "a.json holds no samples"),
    ("a.jsonl", "\n \n", "a.jsonl holds no samples"),
    ("a.json", "3", "a.json holds neither a list of samples nor one sample"),
    ("a.json", '[\n{"a"}]', "a.json: invalid JSON at line 2, column 5 ("),
    ("a.json", f"{LINE}\n{LINE}", "if every line is a sample of its own, name the file .jsonl"),
    ("a.json", b'["\xff"]', "a.json: byte 3 is not UTF-8; save the text as UTF-8"),
    ("a.json", LINE.encode("utf-16"), "a.json: the text is UTF-16; save it as UTF-8"),
    ("a.csv", "x", "a.csv is neither .json nor .jsonl; convert or rename it"),
]


@pytest.mark.parametrize(("name", "data", "sentence"), BAD_FILES)
def test_bad_files_are_refused_whole(tmp_path: Path, name: str, data: str | bytes, sentence: str) -> None:
    file = _write(tmp_path / name, data)
    for skip_bad in (False, True):
        with pytest.raises(InputError) as caught:
            read_samples([file], skip_bad=skip_bad)
        assert sentence in str(caught.value)


def test_utf16_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl:1: the text is UTF-16"):
        read_samples([_write(tmp_path / "a.jsonl", LINE.encode("utf-16"))])


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data is given"):
        find_files([])
    with pytest.raises(InputError, match=r"gone\.json does not exist"):
        find_files([tmp_path / "gone.json"])
    with pytest.raises(InputError, match=r"holds no \.json or \.jsonl file"):
        find_files([tmp_path])


def test_a_hundred_thousand_lines(tmp_path: Path) -> None:
    file = _write(tmp_path / "big.jsonl", f"{LINE}\n" * 100_000)
    reading = read_samples([file])
    assert len(reading.samples) == 100_000
    assert reading.samples[-1].source == "big.jsonl:100000"


def test_lines_are_not_held(tmp_path: Path) -> None:
    long = json.dumps({"text": "x" * 10_000})
    file = _write(tmp_path / "big.jsonl", f"{long}\n" * 1000)
    tracemalloc.start()
    count = sum(isinstance(item, Sample) for item in iter_samples([file]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1000
    assert peak < 2 * 2**20 < file.stat().st_size


def test_problems_stand_among_samples(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.jsonl", f"{LINE}\n{{}}\n{LINE}")
    assert [type(item) for item in iter_samples([file])] == [Sample, Problem, Sample]
