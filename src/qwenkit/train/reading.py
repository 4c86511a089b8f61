"""Reads samples from JSON and JSONL files, and names the broken ones by file and line. Knows nothing of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenkit.core.errors import InputError
from qwenkit.train.formats import DataFormat, read_sample
from qwenkit.train.samples import Sample

if TYPE_CHECKING:
    from hashlib import _Hash

_SUFFIXES = (".json", ".jsonl")
_SHOWN = 5
"""Broken samples that an error lists."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken sample."""

    source: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.source}: {self.sentence}"


@dataclass(slots=True)
class Reading:
    """What files held."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """Broken samples that were skipped, or the first of very many."""
    num_skipped: int = 0
    dropped_turns: int = 0
    """Turns of the assistant before the first of the user."""
    digest: str = ""
    """SHA-256 of all bytes read, to know the data again."""


def read_samples(
    paths: Sequence[Path | str], *, data_format: DataFormat = "auto", skip_bad: bool = False
) -> Reading:
    """All samples of files and folders, in order.

    Args:
        paths: ``.json`` (a list of samples, or one), ``.jsonl`` (one a line), or folders with such files.
        data_format: of every sample; "auto" decides for each.
        skip_bad: leave out broken samples and count them.

    Raises:
        InputError: a file that cannot be read, or samples are broken; lists the first few and says how many.
    """
    reading, digest = Reading(), hashlib.sha256()
    for item in iter_samples(paths, data_format=data_format, digest=digest):
        if isinstance(item, Sample):
            reading.samples.append(item)
            reading.dropped_turns += item.dropped_turns
            continue
        reading.num_skipped += 1
        if len(reading.problems) < 100:
            reading.problems.append(item)
    reading.digest = digest.hexdigest()
    if reading.num_skipped and not (skip_bad and reading.samples):
        raise InputError(_complaint(reading))
    return reading


def _complaint(reading: Reading) -> str:
    total = len(reading.samples) + reading.num_skipped
    listed = "; ".join(map(str, reading.problems[:_SHOWN]))
    more = f"; and {reading.num_skipped - _SHOWN} more" if reading.num_skipped > _SHOWN else ""
    verb = "is" if reading.num_skipped == 1 else "are"
    cure = (
        "mend them, or leave them out with --skip-bad" if reading.samples else "nothing is left to learn from"
    )
    return f"{reading.num_skipped} of {total} samples {verb} broken ({listed}{more}); {cure}"


def iter_samples(
    paths: Sequence[Path | str], *, data_format: DataFormat = "auto", digest: _Hash | None = None
) -> Iterator[Sample | Problem]:
    """Samples and broken samples one by one; lines of a JSONL file are read as they are needed.

    Raises:
        InputError: a path does not exist or holds no data, or a whole file cannot be read.
    """
    files = find_files(paths)
    names = [path.name for path in files]
    for path in files:
        # a name alone says which file, unless two have it
        shown = path.name if names.count(path.name) == 1 else str(path)
        records = (
            _lines(path, shown, digest) if path.suffix.lower() == ".jsonl" else _whole(path, shown, digest)
        )
        is_empty = True
        for source, record in records:
            is_empty = False
            if isinstance(record, Problem):
                yield record
                continue
            try:
                yield read_sample(record, source, data_format)
            except InputError as error:
                yield Problem(source, str(error))
        if is_empty:
            raise InputError(f"{path} holds no samples; give a file with conversations")


def find_files(paths: Sequence[Path | str]) -> list[Path]:
    """The files that paths name; those of a folder in the order of their names.

    Raises:
        InputError: no path, one that does not exist, a file of another kind, a folder without such files.
    """
    if not paths:
        raise InputError("no data is given; name a .json or .jsonl file, or a folder of them")
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                p
                for p in path.iterdir()
                if p.suffix.lower() in _SUFFIXES and p.name[0] != "." and p.is_file()
            )
            if not inside:
                raise InputError(f"folder {path} holds no .json or .jsonl file; name one that does")
            files += inside
        elif not path.exists():
            raise InputError(f"{path} does not exist; name a .json or .jsonl file, or a folder of them")
        elif path.suffix.lower() not in _SUFFIXES:
            raise InputError(f"{path} is neither .json nor .jsonl; convert or rename it")
        else:
            files.append(path)
    return files


def _lines(path: Path, shown: str, digest: _Hash | None) -> Iterator[tuple[str, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if digest is not None:
                    digest.update(line)
                yield from _line(line, number, f"{shown}:{number}")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; name another file") from None


def _line(line: bytes, number: int, source: str) -> Iterator[tuple[str, Any]]:
    """The record of a line, or what is wrong with it; nothing of an empty one."""
    try:
        text = _decoded(line, is_start=number == 1)
        if text.strip():
            yield source, _parsed(text, line=number)
    except InputError as error:
        yield source, Problem(source, str(error))


def _whole(path: Path, shown: str, digest: _Hash | None) -> Iterator[tuple[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; name another file") from None
    if digest is not None:
        digest.update(data)
    try:
        text = _decoded(data, is_start=True)
        if not text.strip():
            return
        parsed = _parsed(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if isinstance(parsed, Mapping):
        yield f"{shown}, sample 1", parsed
        return
    if not isinstance(parsed, list):
        raise InputError(f"{path} holds neither a list of samples nor one sample; see docs/training-data.md")
    for number, record in enumerate(parsed, 1):
        yield f"{shown}, sample {number}", record


def _decoded(data: bytes, *, is_start: bool) -> str:
    if is_start and data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("the text is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig" if is_start else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start + 1} is not UTF-8; save the text as UTF-8") from None


def _parsed(text: str, line: int | None = None) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno if line is None else line}, column {error.colno}"
        hint = ""
        if line is None and error.msg == "Extra data":
            hint = "; if every line is a sample of its own, name the file .jsonl"
        raise InputError(f"invalid JSON at {where} ({error.msg}){hint}") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        why = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"invalid JSON ({why})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ; of two values under one key nobody could say which was meant."""
    read = dict(pairs)
    if len(read) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"the key {twice!r:.40} stands twice in one object; keep one")
    return read


def _no_constant(name: str) -> Any:
    raise InputError(f"{name} is no JSON; write a number, text or null")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
