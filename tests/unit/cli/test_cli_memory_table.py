"""``qwenkit inspect --memory``: its options, its tables, its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenkit.cli.inspect_model import inspect_model
from qwenkit.cli.memory_table import numbers
from qwenkit.config.families import FAMILIES
from qwenkit.core.errors import InputError
from qwenkit.weights.save import save_model
from tests.support.networks import family_config, random_network


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model of 2 layers with 2 key heads of 32, 3.0 MB in float32."""
    save_model(tmp_path / "m", random_network(family_config("qwen2")), FAMILIES["qwen2"])
    return str(tmp_path / "m")


def test_a_table_per_cache(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_model(folder, memory=True, batch="1,64", lengths="32,256", dtype="float32")
    first, own, int8 = capsys.readouterr().out.split("Cache in ")
    assert first.startswith("Weights 2.8 MiB.")
    assert (own.split()[0], int8.split()[0]) == ("float32", "int8")
    cells = [
        [float(c) for c in line.split()[1::2]]
        for table in (own, int8)
        for line in table.splitlines()
        if line.split()[:1] == ["64"]
    ]
    # 64 x 256 tokens of 2 x 2 x 2 x 32 numbers of 4 bytes: 16 MiB; as bytes with 3 more per head and token: 4.4 MiB
    assert cells[0][1] - cells[0][0] > 14
    assert cells[0][1] - cells[1][1] == pytest.approx(16 - 16 * 35 / 128, abs=0.11)


def test_json_has_every_part(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_model(
        folder, memory=True, batch="2", lengths="33", kv_cache="int8", dtype="bfloat16", as_json=True
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["dtype"], row["kv_cache"], row["batch"], row["length"]) == ("bfloat16", "int8", 2, 33)
    assert row["kv_bytes"] == 2 * 64 * 2 * 2 * 2 * (32 + 3)
    assert row["total_bytes"] == row["weights_bytes"] + row["kv_bytes"] + row["workspace_bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": "4"}, "--batch 4 says nothing without --memory"),
        ({"kv_cache": "int8"}, "--kv-cache int8 says nothing without --memory"),
        ({"memory": True, "batch": "1,x"}, "--batch 1,x is not understood"),
        ({"memory": True, "lengths": "0"}, "length=0 is not possible"),
        ({"memory": True, "kv_cache": "fp8"}, "kv_cache='fp8' is not known"),
        ({"memory": True, "dtype": "int3"}, "dtype='int3' is not known"),
        ({"memory": True, "head": "int3"}, "head='int3' is not known"),
        ({"memory": True, "head": "int8"}, "head='int8' is not possible"),  # tied to the embedding
    ],
)
def test_what_cannot_be_honoured(folder: str, options: dict[str, str | bool], message: str) -> None:
    with pytest.raises(InputError) as caught:
        inspect_model(folder, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_numbers_between_commas() -> None:
    assert numbers("1, 4,16", "--batch") == [1, 4, 16]
    with pytest.raises(InputError, match="--batch 1,,2 is not understood"):
        numbers("1,,2", "--batch")
