"""Load on a scripted server: what is started when, what is taken down, and what is made of it."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenkit.backends.remote_server import parse_server
from qwenkit.bench.connection import ExchangeError
from qwenkit.bench.load import LoadOptions, LoadResult, Progress, Record, run_load
from qwenkit.bench.plot import check_format, draw
from qwenkit.bench.report import Spread, make_report, requests_table
from qwenkit.bench.workload import Span, Workload
from qwenkit.core.errors import InputError
from tests.support.sse_server import (
    Answer,
    Seen,
    SseServer,
    chat_chunk,
    chat_events,
    error,
    event,
    sse_server,
    tls_server,
)

WORK = Workload(model="m", prompt_tokens=Span(4, 4), output_tokens=Span(8, 8))


@pytest.fixture
def server() -> Iterator[SseServer]:
    with sse_server() as script:
        yield script


def run(server: SseServer, options: LoadOptions, workload: Workload = WORK) -> LoadResult:
    return run_load(parse_server(server.url, timeout=5), workload, options)


def slow(seconds: float) -> Answer:
    return Answer(pieces=chat_events("a", "b", "c"), pause=lambda at: time.sleep(seconds))


class Together:
    """Answers slowly and takes down how many were answered at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def reply(self, seen: Seen) -> Answer:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        pieces = chat_events("a", "b")

        def pause(at: int) -> None:
            time.sleep(0.005)
            if at == len(pieces) - 1:
                with self.lock:
                    self.now -= 1

        return Answer(pieces=pieces, pause=pause)


def test_a_number_of_requests_so_many_at_once(server: SseServer) -> None:
    together = Together()
    server.reply = together.reply
    result = run(server, LoadOptions(num_requests=20, concurrency=4, warmup=3))
    assert together.most == result.most_running == 4
    assert sorted(r.index for r in result.records) == list(range(20))
    assert len(server.asked) == 23
    # Prompts of the warm-up are others, so that none is in a cache already.
    assert len({str(s.body["messages"]) for s in server.asked}) == 23
    report = make_report(result)
    assert (report.ok, report.failed, report.cut) == (20, {}, 0)
    assert (report.prompt_tokens, report.output_tokens, report.counts_are_reported) == (140, 60, True)
    assert report.output_tokens_per_second == pytest.approx(60 / report.seconds)
    assert report.total_tokens_per_second == pytest.approx(200 / report.seconds)


def test_times_are_when_pieces_came(server: SseServer) -> None:
    server.answers = [slow(0.03)]
    report = make_report(run(server, LoadOptions(num_requests=2, concurrency=1)))
    assert report.first_token is not None
    assert report.inter_token is not None
    assert report.end_to_end is not None
    # The role comes first and is no token.
    assert 0.055 < report.first_token.mean < 0.2
    assert 0.025 < report.inter_token.p50 < 0.1
    assert 0.2 < report.end_to_end.p50 < 0.5


def test_a_rate_is_kept_whatever_the_server_does(server: SseServer) -> None:
    server.answers = [slow(0.05)]
    result = run(server, LoadOptions(num_requests=20, rate=100))
    starts = sorted(r.start for r in result.records)
    assert 0.05 < starts[-1] - starts[0] < 0.8
    assert result.most_running > 4
    again = run(server, LoadOptions(num_requests=20, rate=100))
    moments = [r.start - result.start for r in sorted(result.records, key=lambda r: r.index)]
    assert [r.start - again.start for r in sorted(again.records, key=lambda r: r.index)] == pytest.approx(
        moments
    )


def test_all_at_once(server: SseServer) -> None:
    result = run(server, LoadOptions(num_requests=10, rate=float("inf")))
    assert result.most_running == 10
    assert len({r.start for r in result.records}) == 1


@pytest.mark.parametrize("pace", [{"concurrency": 2}, {"rate": 50.0}])
def test_a_duration_ends_starting(server: SseServer, pace: dict[str, float]) -> None:
    server.answers = [slow(0.01)]
    result = run(server, LoadOptions(duration=0.3, **pace))  # type: ignore[arg-type]
    assert len(result.records) > 3
    assert max(r.start for r in result.records) - result.start <= 0.3
    assert make_report(result).cut == 0


def test_errors_are_counted_by_kind(server: SseServer) -> None:
    server.answers = [
        error(429, "slow down"),
        error(500, "boom"),
        error(500, "boom again"),
        Answer(pieces=chat_events("x")[:-1]),
        Answer(pieces=chat_events("x")[:2], is_cut=True),
        Answer(pieces=[event({"error": {"message": "lost"}}), event("[DONE]")]),
        Answer(pieces=[event("{nope"), event("[DONE]")]),
        Answer(pieces=chat_events("fine", usage=None)),
    ]
    report = make_report(run(server, LoadOptions(num_requests=8, concurrency=1)))
    assert report.ok == 1
    assert report.failed == {
        "HTTP 500": 2,
        "HTTP 429": 1,
        "stream cut before its end": 1,
        "connection closed by the server": 1,
        "error event": 1,
        "malformed event": 1,
    }
    assert report.examples["HTTP 500"] == "boom"
    assert (report.output_tokens, report.counts_are_reported, report.prompt_tokens) == (1, False, None)
    assert report.total_tokens_per_second is None


def test_thought_and_calls_are_pieces_too(server: SseServer) -> None:
    pieces = [
        chat_chunk({"role": "assistant", "content": ""}),
        chat_chunk({"reasoning_content": "hm"}),
        chat_chunk({"tool_calls": [{"index": 0}]}),
        *chat_events("x", usage=None)[1:],
    ]
    server.answers = [Answer(pieces=pieces)]
    result = run(server, LoadOptions(num_requests=1, concurrency=1))
    assert len(result.records[0].times) == 3


def test_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server(tmp_path) as (server, certificate):
        report = make_report(run(server, LoadOptions(num_requests=2, concurrency=1)))
        assert report.failed == {"no connection": 2}
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert make_report(run(server, LoadOptions(num_requests=4, concurrency=2))).ok == 4


def test_the_text_endpoint(server: SseServer) -> None:
    pieces = [event({"choices": [{"text": t}]}) for t in "ab"]
    server.answers = [Answer(pieces=[*pieces, event("[DONE]")])]
    workload = Workload(model="m", endpoint="completions")
    result = run(server, LoadOptions(num_requests=1, concurrency=1), workload)
    assert result.records[0].text == "ab"
    assert server.asked[0].path == "/v1/completions"


def test_another_text_under_load_is_found(server: SseServer) -> None:
    """The server confuses its third and fourth answers, until it is asked alone."""
    texts: dict[str, str] = {}

    def reply(seen: Seen) -> Answer:
        prompt = seen.body["messages"][0]["content"]
        if prompt in texts:
            return Answer(pieces=chat_events(f"for {prompt}"))
        texts[prompt] = prompt
        known = list(texts)
        other = {3: 3, 4: 2}.get(len(known))
        prompts = [WORK.body(i)["messages"][0]["content"] for i in range(6)]
        return Answer(pieces=chat_events(f"for {prompt if other is None else prompts[other]}"))

    server.reply = reply
    result = run(server, LoadOptions(num_requests=6, concurrency=1, verify=6))
    assert result.num_verified == 6
    assert [(m.index, m.owner) for m in result.mismatches] == [(2, None), (3, None)]
    assert make_report(result).mismatches[0]["under_load"] == result.mismatches[0].under_load


def test_the_digest_tells_texts_apart(server: SseServer) -> None:
    def digest() -> str:
        return make_report(run(server, LoadOptions(num_requests=3, concurrency=3))).texts_digest

    first = digest()
    assert digest() == first
    server.answers = [Answer(pieces=chat_events("Hel", "lo!"))]
    assert digest() != first


def test_progress(server: SseServer) -> None:
    server.answers = [slow(0.15)]
    seen: list[Progress] = []
    run_load(parse_server(server.url), WORK, LoadOptions(num_requests=2, concurrency=2), seen.append)
    assert (seen[0].stage, seen[0].started, seen[0].running, seen[0].done) == ("load", 2, 2, 0)
    assert seen[0].pieces > 0


@pytest.mark.parametrize(
    "values",
    [
        {"num_requests": 1},
        {"concurrency": 1},
        {"num_requests": 1, "duration": 1.0, "concurrency": 1},
        {"num_requests": 1, "rate": 1.0, "concurrency": 1},
        {"duration": 1.0, "rate": float("inf")},
        {"num_requests": 0, "concurrency": 1},
        {"num_requests": 1, "rate": float("nan")},
    ],
)
def test_options_that_contradict(values: dict[str, float]) -> None:
    with pytest.raises(InputError):
        LoadOptions(**values)  # type: ignore[arg-type]


def test_spread() -> None:
    assert Spread.of([]) is None
    spread = Spread.of([float(i) for i in range(1, 102)])
    assert spread == Spread(mean=51.0, p50=51.0, p90=91.0, p95=96.0, p99=100.0, max=101.0)


def test_what_was_cut_off_counts_with_what_it_had() -> None:
    whole = Record(0, 0.0, 2.0, array("d", [0.5, 1.0]), "ab", prompt_tokens=3, completion_tokens=2)
    cut = Record(1, 0.0, 2.0, array("d", [1.0, 1.5, 1.8]), "abc", is_cut=True)
    lost = Record(2, 0.0, 2.0, array("d", [1.0]), "a", error=ExchangeError("timeout"))
    report = make_report(LoadResult([whole, cut, lost], end=2.0, was_stopped=True))
    assert (report.ok, report.cut, report.failed) == (1, 1, {"timeout": 1})
    assert (report.output_tokens, report.prompt_tokens, report.output_tokens_per_second) == (5, 3, 2.5)
    assert report.end_to_end is not None
    assert report.end_to_end.max == 2.0


def test_rows(server: SseServer) -> None:
    server.answers = [error(500, "boom"), Answer(pieces=chat_events("x"))]
    rows = requests_table(run(server, LoadOptions(num_requests=2, concurrency=1)))
    assert [row["index"] for row in rows] == [0, 1]
    assert (rows[0]["error"], rows[0]["first_token"]) == ("HTTP 500: boom", None)
    assert rows[1]["error"] is None
    assert 0 < rows[1]["first_token"] <= rows[1]["seconds"]


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_the_picture(server: SseServer, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    server.answers = [error(500, "boom"), Answer(pieces=chat_events("x", "y"))]
    result = run(server, LoadOptions(num_requests=5, concurrency=2))
    check_format(tmp_path / name)
    draw(result, tmp_path / name, "title")
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


def test_a_picture_of_little(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(LoadResult(records=[Record(0, 0.0, 1.0)], end=1.0), tmp_path / "a.svg", "no text at all")
    draw(LoadResult(), tmp_path / "a.svg", "nothing at all")


@pytest.mark.parametrize("name", ["a", "a.exe", "nowhere/a.png"])
def test_what_is_no_picture(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError):
        check_format(tmp_path / name)
