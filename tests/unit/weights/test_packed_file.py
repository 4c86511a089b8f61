"""Files of packed weights: the same bytes come back, and nothing that is damaged is taken for them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch

from qwenkit.kernels.panels import PanelWeight
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear
from qwenkit.weights import packed_cache
from tests.support.kept import assert_same, built, held, settled
from tests.support.networks import family_config, random_network, write_gguf
from tests.support.quantised import FOLDERS, copied
from tests.support.tiny_models import SIZES

KINDS = [gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_second_start_holds_the_same_bytes(
    name: str, folder: Path, tmp_path: Path, count_loads: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    path = settled(copied(name, tmp_path / "m"))
    plain, first = built(path, cached=False), built(path)
    assert len(list(folder.iterdir())) == 1
    assert len(count_loads) == 2
    second = built(path)
    assert len(count_loads) == 2, "it was not read from the cache"
    assert any("PanelWeight" in key for key in held(second))
    assert_same(first, plain)
    assert_same(second, plain)
    assert not caplog.records


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_gguf(
    kind: gguf.GGMLQuantizationType, tied: bool, folder: Path, tmp_path: Path, count_loads: list[int]
) -> None:
    network = random_network(family_config("llama", **SIZES | {"tie_embeddings": tied}))
    write_gguf(tmp_path / "m.gguf", network, "llama", kind)
    path = settled(tmp_path / "m.gguf")
    first, second = built(path, head="auto"), built(path, head="auto")
    assert len(count_loads) == 1
    assert_same(first, second)
    assert_same(second, built(path, head="auto", cached=False))
    if tied:
        assert isinstance(second.embed, QuantEmbedding)
        assert second.head.parts[0] is second.embed.table


def test_progress_comes_to_an_end(folder: Path, model: Path) -> None:
    for _ in range(2):
        steps: list[tuple[int, int]] = []
        built(model, on_progress=lambda done, total, steps=steps: steps.append((done, total)))
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0


def flip(at: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at(len(data))] ^= 16
        path.write_bytes(data)

    return damage


def swap_chunks(path: Path) -> None:
    data = path.read_bytes()
    start = len(data) - 3 * 4096
    a, b = data[start : start + 4096], data[start + 4096 : start + 8192]
    assert a != b
    path.write_bytes(data[:start] + b + a + data[start + 8192 :])


def no_header(path: Path) -> None:
    """As a file of which only the tensors had been written."""
    data = path.read_bytes()
    path.write_bytes(bytes(4096) + data[4096:])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first byte": flip(lambda size: 0),
    "length of the header": flip(lambda size: 10),
    "checksum of the header": flip(lambda size: 13),
    "header": flip(lambda size: 100),
    "end of the tensors": flip(lambda size: size - 200),
    "middle": flip(lambda size: size // 2),
    "two chunks swapped": swap_chunks,
    "no header yet": no_header,
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "ten bytes": lambda path: os.truncate(path, 10),
    "empty": lambda path: os.truncate(path, 0),
    "one byte more": lambda path: os.truncate(path, path.stat().st_size + 1),
    "something else": lambda path: path.write_text("{}" * 5000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew(
    damage: str, folder: Path, model: Path, count_loads: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    plain = built(model)
    (kept,) = folder.iterdir()
    sound = kept.read_bytes()
    DAMAGES[damage](kept)
    assert_same(built(model), plain)
    assert len(count_loads) == 2
    assert "made anew" in caplog.records[0].message
    if kept.is_dir():
        assert len(caplog.records) == 2  # nor can it be replaced
        return
    assert len(caplog.records) == 1
    assert kept.read_bytes() == sound
    built(model)
    assert len(count_loads) == 2


def test_no_flipped_bit_goes_unseen(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, count_loads: list[int]
) -> None:
    built(model)
    monkeypatch.setattr(packed_cache.PackedCache, "write", lambda self, parameters: None)
    (kept,) = folder.iterdir()
    sound = kept.read_bytes()
    length = int.from_bytes(sound[8:12], "little")
    data_start = -(-(16 + length) // 4096) * 4096
    random.seed(0)
    # Between header and tensors nothing is read.
    used = [*range(16 + length), *range(data_start, len(sound))]
    for at in random.sample(used, 40):
        data = bytearray(sound)
        data[at] ^= 1 << random.randrange(8)
        kept.write_bytes(data)
        before = len(count_loads)
        built(model)
        assert len(count_loads) == before + 1, at


def test_panels_from_pieces_are_those_of_the_whole(model: Path) -> None:
    """Parts that are read and rearranged apart, against one matrix rearranged at once."""
    network, rows = built(model, cached=False), built(model, cached=False, panels=False)
    for (name, module), other in zip(network.named_modules(), rows.modules(), strict=True):
        if isinstance(module, QuantLinear):
            assert all(isinstance(part, PanelWeight) for part in module.parts), name
            numbers = [torch.cat([p.dequantise() for p in m.parts]) for m in (module, other)]
            assert torch.equal(*numbers), name
