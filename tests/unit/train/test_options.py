"""Options of a run: what a file and the command line say, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenkit.core.errors import InputError
from qwenkit.train.options import FIELDS, FinetuneOptions, read_options

GIVEN = {"model": "m", "data": ("d.jsonl",), "out": "o"}


def _options(**changes: Any) -> FinetuneOptions:
    return FinetuneOptions(**(GIVEN | changes))


def test_defaults_are_those_of_the_release() -> None:
    options = _options()
    assert (options.lora_r, options.lora_alpha, options.lora_dropout) == (64, 16.0, 0.05)
    assert (options.batch_size, options.accumulate, options.epochs) == (2, 8, 5.0)
    assert (options.weight_decay, options.adam_beta2, options.warmup_share) == (0.1, 0.95, 0.01)
    assert options.top_rate == 3e-4
    assert _options(method="full").top_rate == 1e-5
    assert _options(learning_rate=2e-4).top_rate == 2e-4


def test_command_line_wins_over_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: base\ndata: chats.jsonl\nout: result\nlearning-rate: 3e-5\nlora_targets: [c_attn, w1]\nepochs: 2\n"
        "packing: true\nmax_steps: null\n"
    )
    options = read_options(file, {"out": "elsewhere", "epochs": 7.0})
    assert options.data == ("chats.jsonl",)
    assert options.out == "elsewhere"
    assert options.epochs == 7.0
    assert options.learning_rate == 3e-5
    assert options.lora_targets == ("c_attn", "w1")
    assert options.packing
    assert options.max_steps is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1", "option 'lr' is unknown"),
        ("learning_rat: 1", "did you mean 'learning_rate'?"),
        ("epochs: many", "epochs must be a number, got 'many'"),
        ("batch_size: 1.5", "batch_size must be a whole number, got 1.5"),
        ("batch_size: true", "batch_size must be a whole number"),
        ("packing: 1", "packing must be true or false, got 1"),
        ("data: [1]", "data must be a list of texts"),
        ("seed: null", "seed must be a whole number, got None"),
        ("- model", "must hold options"),
        ("", "must hold options"),
        ("model: [\nx", "line"),
        ("model: a\n b: c: d", "line 2"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_options(file, GIVEN)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes("model: é".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_options(file, {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ""}, "model is not given"),
        ({"data": ()}, "data is not given"),
        ({"out": ""}, "out is not given"),
        ({"method": "qlor"}, "did you mean 'qlora'"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"lora_r": 0}, "lora_r must be 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate must be 0 or more"),
        ({"eval_share": 0.1, "eval_data": ("x",)}, "exclude"),
        ({"eval_share": 1.0}, "below 1"),
        ({"lora_dropout": 1.5}, "below 1"),
        ({"adam_beta2": 1.0}, "below 1"),
        ({"epochs": 0.0}, "trains nothing"),
        ({"patience": 2}, "patience needs samples"),
        ({"eval_every": 2}, "eval_every needs samples"),
        ({"deepspeed": "zero2", "fsdp": True}, "exclude"),
        ({"method": "full", "lora_r": 8}, "lora_r says nothing with method full"),
        ({"method": "full", "lora_targets": ("w1",)}, "lora_targets says nothing"),
        ({"lora_adapter": "a", "lora_r": 8}, "lora_r says nothing with lora_adapter"),
        ({"lora_adapter": "a", "train_tables": "all"}, "train_tables says nothing with lora_adapter"),
        ({"schedule": "constant", "warmup_share": 0.1}, "warmup_share says nothing with schedule constant"),
        ({"eval_share": 0.1, "patience": 2, "save_every": 7}, "save_every says nothing with patience"),
        ({"loggers": ("wandb",)}, "loggers 'wandb' is unknown"),
    ],
)
def test_impossible_values(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        _options(**changes)
    assert said in str(caught.value)


def test_every_option_says_what_it_is() -> None:
    for name, each in FIELDS.items():
        assert each.metadata["help"].endswith("."), name
