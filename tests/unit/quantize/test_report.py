"""The files of a report: complete, valid, and honest about what is missing."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import sys
from pathlib import Path

import pytest

from qwenkit.core.errors import SourceError
from qwenkit.quantize.evaluate import Comparison, Score, Sizes
from qwenkit.quantize.report import NAME, LayerError, write_report

COMPARISON = Comparison(
    tokens=4094,
    window=2048,
    dtype="bfloat16",
    original_perplexity=16.0,
    perplexity=16.4,
    mean_kl=0.0312,
    top1_agreement=0.9125,
    original_size=Sizes(stored=256 * 2**20, held=256 * 2**20),
    size=Sizes(stored=80 * 2**20, held=96 * 2**20),
    variants={"int8 cache": Score(perplexity=16.5, mean_kl=0.0321, top1_agreement=0.9)},
    seconds=3.5,
)
LAYERS = [
    LayerError(name=f"transformer.h.{i}.{kind}", error=scale * 2.0**-i, loss=3.5, seconds=0.5)
    for i in (10, 2, 0)
    for kind, scale in (("attn.c_attn", 1e-3), ("mlp.c_proj", 2e-2))
]


def _rows(page: str) -> dict[str, list[str]]:
    """First cell of every table row to the others."""
    cells = [
        [c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in cells}


def test_all_three_files(tmp_path: Path) -> None:
    written = write_report(tmp_path / "out", COMPARISON, LAYERS, about={"method": "gptq", "bits": 4})
    assert [p.name for p in written] == [f"{NAME}.json", f"{NAME}.md", f"{NAME}.png"]
    assert sorted(tmp_path.joinpath("out").iterdir()) == sorted(written)  # no temporary file stays
    data = json.loads(written[0].read_text("utf-8"))
    assert data["about"] == {"method": "gptq", "bits": 4}
    assert data["comparison"]["variants"]["int8 cache"]["perplexity"] == 16.5
    assert data["layers"][1] == {
        "name": "transformer.h.10.mlp.c_proj",
        "error": 2e-2 * 2.0**-10,
        "loss": 3.5,
        "seconds": 0.5,
    }
    rows = _rows(written[1].read_text("utf-8"))
    assert rows["perplexity"] == ["16.0000", "16.4000", "+2.50%"]
    assert rows["weights in memory, MiB"] == ["256.0", "96.0", "37.5%"]
    assert rows["with int8 cache"] == ["16.5000", "0.03210", "90.00%"]
    assert rows["mlp.c_proj"] == ["3", "8.340e-03", "2.000e-02", "0", "1.5"]
    assert rows["transformer.h.2.attn.c_attn"] == ["2.500e-04", "3.5", "0.5"]


def test_the_picture_is_one(tmp_path: Path) -> None:
    raw = write_report(tmp_path, None, LAYERS)[-1].read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", raw[16:24]) == (1080, 600)
    assert raw.endswith(b"IEND\xaeB`\x82")
    flat = write_report(tmp_path / "one", None, LAYERS[:1])[-1].read_bytes()
    assert len(raw) > len(flat) > 5000  # more is drawn where there is more to draw


def test_nothing_to_say_is_left_out(tmp_path: Path) -> None:
    written = write_report(tmp_path, None, [])
    assert [p.suffix for p in written] == [".json", ".md"]
    assert json.loads(written[0].read_text())["comparison"] is None
    assert "original" not in written[1].read_text()


def test_without_matplotlib_there_is_a_warning_and_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING, logger="qwenkit"):
        written = write_report(tmp_path, COMPARISON, LAYERS)
    assert [p.suffix for p in written] == [".json", ".md"]
    assert [r.getMessage().count("pip install") for r in caplog.records] == [1]


def test_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    layers = [LayerError(name="lm_head", error=math.nan, loss=math.inf, seconds=0.0)]
    written = write_report(tmp_path, None, layers)
    assert [p.suffix for p in written] == [
        ".json",
        ".md",
    ]  # a name without a number has no place in the picture
    found = json.loads(written[0].read_text(), parse_constant=pytest.fail)["layers"][0]
    assert (found["error"], found["loss"]) == (None, None)


@pytest.mark.parametrize(
    ("name", "number", "kind"),
    [
        ("transformer.h.3.attn.c_attn", 3, "attn.c_attn"),
        ("model.layers.11.mlp.gate_proj", 11, "mlp.gate_proj"),
        ("blk.0.attn_q", 0, "attn_q"),
        ("lm_head", None, "lm_head"),
        ("h2.w1", None, "h2.w1"),
    ],
)
def test_names_of_layers(name: str, number: int | None, kind: str) -> None:
    layer = LayerError(name=name, error=0.0, loss=None, seconds=0.0)
    assert (layer.number, layer.kind) == (number, kind)


def test_a_new_report_replaces_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path, COMPARISON, LAYERS)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def stopped(self: Path, text: str, **_: object) -> int:
        with self.open("w") as file:
            file.write(text[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_report(tmp_path, None, [])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write_report(tmp_path, None, [LayerError(name="lm_head", error=1.0, loss=None, seconds=0.0)])
    assert not (tmp_path / f"{NAME}.png").exists()  # the picture of the old one
    assert len(json.loads((tmp_path / f"{NAME}.json").read_text())["layers"]) == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=re.escape(f"{NAME}.json cannot be written")):
        write_report(tmp_path / "file", COMPARISON, LAYERS)
