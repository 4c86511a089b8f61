"""Weight files written tensor by tensor, and the model's page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from qwenkit.core.errors import InputError
from qwenkit.quantize.card import add_comparison, model_card, settings_table
from qwenkit.quantize.entries import file_entries
from qwenkit.quantize.evaluate import Comparison, Sizes
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.report import LayerError
from qwenkit.weights.files import SafetensorsFile
from qwenkit.weights.write import Entry, checked_target, write_tensors, write_weights

TENSORS = {
    "a": torch.arange(3, dtype=torch.float16),
    "b": torch.arange(8, dtype=torch.int32).view(2, 4),
    "c": torch.randn(5, 1).bfloat16(),
    "d": torch.empty(0, 4, dtype=torch.float16),
}


def entries() -> list[Entry]:
    def reader(tensor: Tensor) -> Entry:
        name = next(n for n, t in TENSORS.items() if t is tensor)
        return Entry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)

    return [reader(t) for t in TENSORS.values()]


def same(found: dict[str, Tensor]) -> bool:
    return set(found) == set(TENSORS) and all(
        found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in TENSORS.items()
    )


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", entries(), {"note": 'é "x"'})
    assert same(load_file(tmp_path / "x.safetensors"))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": 'é "x"'}


def test_files_can_be_copied_tensor_by_tensor(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", entries())
    source = SafetensorsFile(tmp_path / "x.safetensors")
    assert write_weights(tmp_path, file_entries(source), 10**6) == sum(t.nbytes for t in TENSORS.values())
    assert same(load_file(tmp_path / "model.safetensors"))


def test_shards_stay_below_their_size_and_are_indexed(tmp_path: Path) -> None:
    write_weights(tmp_path, entries(), 38)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
        "d": "model-00002-of-00002.safetensors",
    }
    found = {}
    for file in set(index["weight_map"].values()):
        found |= load_file(tmp_path / file)
    assert same(found)


def test_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_target(Path("new")) == tmp_path / "new"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="exists already"):
        checked_target(tmp_path / "file")
    with pytest.raises(InputError, match="exists already"):
        checked_target(tmp_path)


def test_page_of_a_model_with_a_comparison(tmp_path: Path) -> None:
    errors = [LayerError(name="l.0", error=0.01, loss=None, seconds=1.0), LayerError(name="l.1", error=0.03, loss=None, seconds=1.0)]  # fmt: skip
    page = model_card("m-int4", "org/m", Recipe(method="rtn"), None, errors)
    assert "base_model: org/m" in page
    assert "error of the weights: 2.00e-02 in the mean of all 2 matrices, 3.00e-02 at the worst (l.1)" in page
    (tmp_path / "README.md").write_text(page)
    sizes = Sizes(stored=1, held=1)
    comparison = Comparison(
        tokens=5000,
        window=512,
        dtype="float32",
        original_perplexity=20.0,
        perplexity=21.0,
        mean_kl=0.05,
        top1_agreement=0.9,
        original_size=sizes,
        size=sizes,
        variants={},
        seconds=1.0,
    )
    add_comparison(tmp_path, comparison, "t.txt")
    page = (tmp_path / "README.md").read_text()
    for part in ("5,000 tokens of t.txt", "| perplexity | 21.0000 (+5.00%) |", "90.00%", "0.05000 nats"):
        assert part in page


def test_settings_in_words_name_only_what_the_method_has() -> None:
    assert "damping" in settings_table(Recipe(), None)
    assert "damping" not in settings_table(Recipe(method="rtn"), None)
    awq = settings_table(Recipe(method="awq"), None)
    assert "true sequential" not in awq
    assert awq["zeros"] == "one per group"
    assert settings_table(Recipe(group_size=-1), None)["group size"] == "a whole row"
