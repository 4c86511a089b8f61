"""The tables of ``inspect`` and ``doctor``, printed from made-up reports."""

from __future__ import annotations

import json
import types

import pytest

import qwenkit.kernels.doctor
import qwenkit.weights.doctor
import qwenkit.weights.inspect
import qwenkit.weights.inspect_adapter
from qwenkit.cli.doctor import doctor
from qwenkit.cli.inspect_model import inspect_model


@pytest.fixture
def _reports(monkeypatch: pytest.MonkeyPatch) -> None:
    row = types.SimpleNamespace(
        dtype="bfloat16", context=2048, weights_bytes=2**30, kv_bytes=2**20, total_bytes=2**31
    )
    facts = {
        "path": "/models/" + "long" * 30,
        "format": "gguf",
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "num_params": 134_515_008,
        "sizes": {"hidden_size": 576},
        "features": {"rope": "default"},
        "dtype": "bfloat16",
        "quantisation": None,
        "runnable": True,
        "context_length": 8192,
        "tokenizer_problem": None,
        "chat_template": "jinja",
        "file_bytes": 92 * 2**20,
        "tensors": {"F32": 100, "Q4_1": 3000},
        "in_memory": {"F32": "numbers", "Q4_1": "packed"},
        "head": "Q8_0",
        "problem": None,
        "kernels": "native amx",
        "memory": (row,),
        "to_dict": lambda: {"format": "gguf"},
    }
    check = qwenkit.kernels.doctor.Check(
        "modelscope", "not installed", "missing", "pip install 'qwenkit[hub]'"
    )
    monkeypatch.setattr(
        qwenkit.weights.inspect, "inspect_model", lambda model: types.SimpleNamespace(**facts)
    )
    monkeypatch.setattr(qwenkit.weights.inspect_adapter, "find_adapter", lambda model: None)
    speed = qwenkit.kernels.doctor.Check("memory read", "20.0 GB/s", numbers={"bytes_per_second": 2e10})
    monkeypatch.setattr(qwenkit.weights.doctor, "report", lambda: [check])
    monkeypatch.setattr(qwenkit.weights.doctor, "speed_report", lambda: [speed])


@pytest.mark.usefixtures("_reports")
def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_model("m")
    text = capsys.readouterr().out
    for part in ("134.5 M (134,515,008)", "92.0 MiB", "8,192", "hidden size", "1.0 GiB", "2.0 GiB", "jinja"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("Q4_1") < text.index("F32")
    inspect_model("m", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"format": "gguf"}


@pytest.mark.usefixtures("_reports")
def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    text = capsys.readouterr().out
    assert "missing" in text
    assert "'qwenkit[hub]'" in text
    assert "20.0 GB/s" in text
    doctor(as_json=True)
    row, speed = json.loads(capsys.readouterr().out)
    assert row["name"] == "modelscope"
    assert row["status"] == "missing"
    assert speed["numbers"] == {"bytes_per_second": 2e10}
    doctor(no_speed=True)
    assert "GB/s" not in capsys.readouterr().out
