"""Shared options: spread over a command, and turned into sampling parameters."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from qwenkit.cli import loading
from qwenkit.cli.main import app
from qwenkit.cli.options import ModelOptions, SamplingOptions, ServerOptions, SpeculativeOptions, spread
from qwenkit.core.errors import InputError
from qwenkit.core.types import SamplingParams


def test_nothing_given_is_nothing_set() -> None:
    assert SamplingOptions().to_params() == SamplingParams()


def test_greedy() -> None:
    assert SamplingOptions(greedy=True).to_params().is_greedy
    assert SamplingOptions(greedy=True, temperature=0.0).to_params().temperature == 0
    for options in ({"temperature": 0.7}, {"seed": 3}, {"top_k": 4}):
        with pytest.raises(InputError, match="contradict"):
            SamplingOptions(greedy=True, **options).to_params()


def test_out_of_range() -> None:
    with pytest.raises(InputError, match="max_tokens=-1"):
        SamplingOptions(max_tokens=-1).to_params()


def test_spread_through_typer() -> None:
    app = typer.Typer()
    seen: list[object] = []

    @app.command()
    @spread
    def command(
        word: Annotated[str, typer.Argument()],
        *,
        model: ModelOptions,
        sampling: SamplingOptions,
        loud: bool = False,
    ) -> None:
        seen.extend([word, model, sampling.to_params(), loud])

    arguments = ["hi", "-m", "x", "--threads", "2", "--top-k", "3", "--stop", "a\\n", "--stop", "b", "--loud"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    params = SamplingParams(top_k=3, stop=("a\\n", "b"))
    assert seen == ["hi", ModelOptions(model="x", threads=2), params, True]


def test_spread_signature_has_every_option_once() -> None:
    def command(*, model: ModelOptions, sampling: SamplingOptions) -> None: ...

    names = list(inspect.signature(spread(command)).parameters)
    assert len(names) == len(set(names))
    assert {"model", "device", "temperature", "greedy"} <= set(names)


def test_speculation_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    class Noted:
        def __init__(self, model: str, **options: object) -> None:
            given.update(options)

    monkeypatch.setattr("qwenkit.llm.LLM", Noted)
    monkeypatch.setattr(loading, "fetch", lambda model: Path(model))
    loading.open_llm(ModelOptions())
    assert (given["speculative"], given["speculative_tokens"]) == ("off", None)
    loading.open_llm(
        ModelOptions(), speculation=SpeculativeOptions(speculative="ngram", speculative_tokens=3)
    )
    assert (given["speculative"], given["speculative_tokens"]) == ("ngram", 3)


@pytest.mark.parametrize(
    "given", [{"speculative": "ngram"}, {"speculative_tokens": 3}], ids=lambda g: next(iter(g))
)
def test_speculation_is_not_for_a_server_elsewhere(given: dict[str, Any]) -> None:
    name = next(iter(given)).replace("_", "-")
    with pytest.raises(InputError, match=f"--{name} is for a model in this process"):
        loading.open_remote(
            ServerOptions(server="http://localhost:1"),
            ModelOptions(),
            speculation=SpeculativeOptions(**given),
            is_model_named=False,
        )


@pytest.mark.parametrize("command", [["chat", "hi"], ["generate", "hi"], ["serve", "--port", "0"]])
def test_an_unknown_kind_of_speculation_is_named(command: list[str], smollm2_gguf: Path) -> None:
    arguments = [*command, "-m", str(smollm2_gguf), "--speculative", "draft"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "speculative='draft' is not known; use off or ngram" in result.output
