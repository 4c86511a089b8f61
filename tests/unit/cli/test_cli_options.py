"""Shared options: spread over a command, and turned into sampling parameters."""

from __future__ import annotations

import inspect
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from qwenkit.cli.options import ModelOptions, SamplingOptions, spread
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
