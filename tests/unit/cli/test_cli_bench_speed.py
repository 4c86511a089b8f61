"""``bench speed``: what its options ask for, and its tables."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qwenkit.bench.sessions import SessionResult, SpeedResult
from qwenkit.bench.speed import Case, Measured, Progress, Sample
from qwenkit.bench.speed_report import speed_rows
from qwenkit.cli import bench_speed
from qwenkit.cli.bench_speed import RoundFlags, SpeedFlags, SpeedModelOptions
from qwenkit.cli.options import ModelOptions
from qwenkit.cli.speed_table import progress_line, render
from qwenkit.core.errors import InputError
from qwenkit.kernels import cpu
from qwenkit.kernels.bandwidth import Bandwidth


def labels(flags: SpeedFlags, context: int = 8192) -> list[str]:
    return [f"{case.label} +{case.output_tokens}" for case in flags.cases(context)]


def test_what_is_measured_unless_told() -> None:
    assert labels(SpeedFlags()) == [
        "prefill 512 +1",
        "decode 1 x 128 +64",
        "decode 4 x 128 +64",
        "decode 16 x 128 +64",
    ]


@pytest.mark.parametrize("context", [16, 100, 150, 300, 513])
def test_what_is_not_told_is_cut_to_a_small_context(context: int) -> None:
    cases = SpeedFlags().cases(context)
    assert max(case.length for case in cases) <= context
    assert len(cases) == 4


def test_lists() -> None:
    flags = SpeedFlags(prefill="16,32", batch="2,8,2", context="64,4096", output_tokens="10")
    assert labels(flags) == [
        "prefill 16 +1",
        "prefill 32 +1",
        "decode 2 x 64 +10",
        "decode 8 x 64 +10",
        "decode 2 x 4096 +10",
        "decode 8 x 4096 +10",
    ]


def test_what_is_told_is_never_cut() -> None:
    assert labels(SpeedFlags(context="9000", batch="1"), context=512)[1] == "decode 1 x 9000 +64"


def test_the_released_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    released = SpeedFlags(protocol="qwen")
    assert labels(released, 32768) == ["generate 2048 +2048", "generate 8192 +8192"]
    assert all(case.prompt_tokens == 1 and case.batch == 1 for case in released.cases(32768))
    assert capsys.readouterr().err == ""
    assert labels(released, 8192) == ["generate 2048 +2048"]
    assert "8192 tokens behind 1 do not fit the context of 8192 and are left out" in capsys.readouterr().err
    assert labels(released, 8193) == labels(released, 32768)
    assert labels(SpeedFlags(protocol="qwen", output_tokens="64,9000"), 8192)[1] == "generate 9000 +9000"
    with pytest.raises(InputError, match=r"context holds 2048 tokens .* give --output-tokens 2047"):
        released.cases(2048)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"prefill": "x"}, "--prefill x is not possible"),
        ({"batch": "1,,2"}, "--batch 1,,2 is not possible"),
        ({"context": "0"}, "--context 0 is not possible"),
        ({"output_tokens": "3,4"}, "--output-tokens 3,4 is a list"),
        ({"protocol": "mlperf"}, "--protocol mlperf is not known; use qwen"),
        ({"protocol": "qwen", "context": "3"}, "--context 3 and --protocol exclude each other"),
    ],
)
def test_flags_that_are_refused(flags: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SpeedFlags(**flags).cases(8192)


def test_rounds() -> None:
    assert RoundFlags().to_options(is_protocol=False).repeats == 3
    assert RoundFlags().to_options(is_protocol=True).repeats == 1
    options = RoundFlags(repeats=5, warmup=0, seed=9).to_options(is_protocol=True)
    assert (options.repeats, options.warmup, options.seed) == (5, 0, 9)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "usable_cores", lambda: 4)
    assert SpeedModelOptions().numbers_of_threads() == (None,)
    assert SpeedModelOptions(threads="1,4").numbers_of_threads() == (1, 4)
    with pytest.raises(InputError, match="--threads 5 is more than the 4 cores"):
        SpeedModelOptions(threads="5").numbers_of_threads()
    with pytest.raises(InputError, match="--threads 0 is not possible"):
        SpeedModelOptions(threads="0").numbers_of_threads()


def test_every_model_option_is_passed_on() -> None:
    given = {
        item.name: f"{item.name}!" for item in dataclasses.fields(ModelOptions) if item.name != "threads"
    }
    options: Any = SpeedModelOptions(threads="1,2", **given)  # type: ignore[arg-type]
    passed = options.with_threads(2)
    assert type(passed) is ModelOptions
    assert dataclasses.asdict(passed) == given | {"threads": 2}


def test_loads_of_a_protocol_have_a_peak_each() -> None:
    cases = SpeedFlags(protocol="qwen").cases(32768)
    sessions = bench_speed._sessions(cases, (1, 2), each_alone=True)
    assert [(s.threads, [c.output_tokens for c in s.cases]) for s in sessions] == [
        (1, [2048]),
        (1, [8192]),
        (2, [2048]),
        (2, [8192]),
    ]
    assert len(bench_speed._sessions(SpeedFlags().cases(8192), (1, 1), each_alone=False)) == 1


def test_files_that_cannot_be_written_are_refused_first(tmp_path: Path) -> None:
    for options in ({"json_file": str(tmp_path / "no" / "a.json")}, {"plot": tmp_path / "a.exe"}):
        with pytest.raises(InputError, match=r"cannot be written|no name of a picture"):
            bench_speed._check_output(SpeedFlags(), options.get("json_file"), options.get("plot"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--plot draws batches and contexts"):
        bench_speed._check_output(SpeedFlags(protocol="qwen"), None, tmp_path / "a.png")


def session(*measured: Measured, threads: int = 2, **changes: Any) -> SessionResult:
    found = Bandwidth(bytes_per_second=28e9, threads=threads, buffer_bytes=1)
    values = {
        "threads": threads,
        "load_seconds": 1.25,
        "weights_bytes": 92 << 20,
        "cache_bytes_per_token": 23040.0,
        "kernels": "native amx",
        "dtype": "bfloat16",
        "quantisation": "GGUF Q4_1, 4 bit, group 32",
        "head": "8 bit",
        "cache_type": "bfloat16",
        "device": "cpu",
        "peak_bytes": 500 << 20,
        "bandwidth": found,
        "measured": list(measured),
    }
    return SessionResult(**values | changes)


def rounds(case: Case, *speeds: float) -> Measured:
    tokens = case.prompt_tokens if case.kind == "prefill" else case.batch * case.output_tokens
    steps = tokens // case.batch
    return Measured(
        case,
        [Sample(tokens=tokens, seconds=tokens / s, steps=steps, first_token_seconds=0.5) for s in speeds],
    )


def shown(result: SpeedResult, *, protocol: str | None = None) -> str:
    about = {
        "model": "my/model\x1b[31m",
        "cpu": "A CPU",
        "num_params": 1_836_828_672,
        "protocol": protocol,
        "repeats": 3,
    }
    out = io.StringIO()
    console = Console(file=out, width=80, highlight=False)
    for part in render(speed_rows(result, 0), result, about):
        console.print(part)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    return text


DECODE = Case(kind="decode", batch=1, prompt_tokens=128, output_tokens=64)
PREFILL = Case(kind="prefill", prompt_tokens=512)
GENERATE = Case(kind="generate", prompt_tokens=1, output_tokens=2048)


def test_tables() -> None:
    many = dataclasses.replace(DECODE, batch=16)
    measured = (rounds(PREFILL, 1500.0, 1400.0, 1600.0), rounds(DECODE, 140.0), rounds(many, 800.0))
    text = shown(SpeedResult(sessions=[session(*measured)]))
    for part in (
        "my/model",
        "A CPU",
        "native amx, bfloat16 on cpu",
        "1.25 s",
        "500.0 MiB of the process",
        "weights 92.0 MiB, cache 22.5 KiB a token",
        "1500.0 (1400.0 - 1600.0)",
        "0.500",
        "50.0      20.00",  # of each, ms a step
        "2 threads can read 28.0 GB/s",
        "14.0 GB/s      50%",
    ):
        assert part in text
    assert "threads  batch" not in text
    assert "stopped" not in text
    assert "other programs" not in text


def test_tables_of_several_numbers_of_threads() -> None:
    result = SpeedResult(sessions=[session(rounds(DECODE, 70.0), threads=1), session(rounds(DECODE, 140.0))])
    text = shown(result)
    assert "threads  batch  context" in text
    assert "1 thread can read 28.0 GB/s" in text
    assert text.count("loading") == 2


def test_the_released_table() -> None:
    longer = dataclasses.replace(GENERATE, output_tokens=8192)
    result = SpeedResult(
        sessions=[
            session(rounds(GENERATE, 40.93)),
            session(rounds(longer, 36.14), quantisation=None, peak_gpu_bytes=22_980_000_000),
        ]
    )
    text = shown(result, protocol="qwen")
    header = next(line for line in text.splitlines() if "Quantization" in line)
    assert header.split("  ")[0] == "Model Size"
    assert "Speed (Tokens/s)" in header
    assert "Memory Usage" in header
    assert "1.8B     GGUF Q4_1      2,048              40.9        0.52GB" in text
    assert "8,192              36.1       22.98GB" in text
    assert text.count("loading") == 1


def test_stopped_early() -> None:
    assert "stopped before anything was measured" in shown(SpeedResult(was_stopped=True))
    text = shown(SpeedResult(sessions=[session(rounds(PREFILL, 9.0), Measured(DECODE))], was_stopped=True))
    assert "stopped early" in text
    assert "Generating" not in text


def test_busy_neighbours_are_named() -> None:
    text = shown(SpeedResult(sessions=[session(rounds(DECODE, 9.0), other_cores=1.26)]))
    assert "other programs kept 1.3 cores busy meanwhile" in text
    assert "other programs" not in shown(
        SpeedResult(sessions=[session(rounds(DECODE, 9.0), other_cores=0.1)])
    )


def test_memory_that_is_not_told() -> None:
    text = shown(SpeedResult(sessions=[session(rounds(DECODE, 9.0), peak_bytes=None, bandwidth=None)]))
    assert "not told by this system" in text
    assert "can read" not in text


def test_the_line_while_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(
        number=2,
        total=4,
        case=DECODE,
        stage="measure",
        round=1,
        rounds=3,
        done=10,
        expected=64,
        seconds_left=7.6,
    )
    assert progress_line(progress).plain == "2/4 decode 1 x 128 · round 1/3 · 10/64 · 8 s left for this one"
    reading = dataclasses.replace(progress, stage="read", seconds_left=None)
    assert progress_line(reading).plain == "2/4 decode 1 x 128 · reading prompts · 10/64"
    line = bench_speed._Line()
    line.show(progress)
    line.clear()
    assert capsys.readouterr() == ("", "")  # stderr is no terminal here
    monkeypatch.setattr(bench_speed.pipes, "is_terminal", lambda stream: stream is sys.stderr)
    monkeypatch.setenv("FORCE_COLOR", "1")
    line.show(progress)
    line.clear()
    out, err = capsys.readouterr()
    assert out == ""
    assert "round 1/3" in err


def test_json_goes_where_it_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = SpeedResult(sessions=[session(rounds(DECODE, 140.0))], was_stopped=True)
    rows = speed_rows(result, 0)
    about = {"model": "m", "cpu": "c", "num_params": 1, "protocol": None, "repeats": 1}
    bench_speed._write(rows, result, about, "-")
    found = json.loads(capsys.readouterr().out)
    assert found["complete"] is False
    assert found["about"] == about
    assert found["sessions"][0]["bandwidth"]["bytes_per_second"] == 28e9
    assert found["results"][0]["tokens_per_second"]["median"] == pytest.approx(140.0)
    bench_speed._write(rows, result, about, str(tmp_path / "a.json"))
    assert "ms a step" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text()) == found


def test_the_command_line_knows_no_torch() -> None:
    code = "import sys, qwenkit.cli.bench_speed; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
