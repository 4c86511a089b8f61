"""GGUF files of every architecture and block type, written by the gguf package and read here."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from qwenkit.config.model import RopeConfig
from qwenkit.core.errors import CheckpointError
from qwenkit.kernels.packed import PackedWeight
from qwenkit.model.generate import all_logits
from qwenkit.weights import gguf as reader
from qwenkit.weights import quantised
from qwenkit.weights.gguf import GgufFile
from tests.support.models import load
from tests.support.networks import F32, family_config, random_network, write_gguf

Kind = gguf.GGMLQuantizationType
WRITABLE = [
    Kind.F32,
    Kind.F16,
    Kind.BF16,
    Kind.Q4_0,
    Kind.Q4_1,
    Kind.Q5_0,
    Kind.Q5_1,
    Kind.Q8_0,
    Kind.TQ1_0,
    Kind.TQ2_0,
    Kind.MXFP4,
]
IDS = list(range(60))
PACKED = (Kind.Q4_0, Kind.Q4_1, Kind.Q8_0)


@pytest.mark.parametrize("family", ["qwen", "qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("kind", WRITABLE, ids=lambda kind: kind.name)
def test_logits_are_those_of_the_stored_weights(family: str, kind: Kind, tmp_path: Path) -> None:
    model = random_network(family_config(family))
    write_gguf(tmp_path / "m.gguf", model, family, kind)
    loaded = load(tmp_path / "m.gguf")
    assert loaded.config.num_params == model.config.num_params
    assert loaded.is_packed == (kind in PACKED)
    assert torch.equal(all_logits(loaded, IDS), all_logits(model, IDS))
    numbers = load(tmp_path / "m.gguf", packed=False)
    for name, weight in numbers.named_parameters():
        assert torch.equal(weight, model.get_parameter(name))


def test_matrices_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones are read and rearranged some rows at a time."""
    monkeypatch.setattr(quantised, "_CHUNK", 7 * 256)
    model = random_network(family_config("llama"))
    write_gguf(tmp_path / "m.gguf", model, "llama", Kind.Q4_1)
    assert torch.equal(all_logits(load(tmp_path / "m.gguf"), IDS), all_logits(model, IDS))


def test_block_types_side_by_side(tmp_path: Path) -> None:
    """Of q, k and v some stay packed and some become numbers; a tied head is the packed embedding."""
    model = random_network(family_config("llama", tie_embeddings=True))
    kinds = {"q_proj": Kind.Q4_0, "v_proj": Kind.Q5_0, "embed_tokens": Kind.Q8_0, "up_proj": Kind.Q4_1}
    write_gguf(tmp_path / "m.gguf", model, "llama", Kind.Q4_0, other_kinds=kinds)
    loaded = load(tmp_path / "m.gguf")
    layer = loaded.layers[0]
    qkv, gate_up = layer.attn.qkv.parts, layer.ffn.gate_up.parts  # type: ignore[union-attr]
    assert [isinstance(part, PackedWeight) for part in qkv] == [True, True, False]
    assert len(gate_up) == 2
    assert isinstance(loaded.embed.table, PackedWeight)
    assert loaded.head.parts[0] is loaded.embed.table
    torch.testing.assert_close(all_logits(loaded, IDS), all_logits(model, IDS), atol=1e-4, rtol=0)


def test_biases_of_llama_are_reordered_too(tmp_path: Path) -> None:
    model = random_network(family_config("llama", qkv_bias=True, out_bias=True))
    write_gguf(tmp_path / "m.gguf", model, "llama")
    assert torch.equal(all_logits(load(tmp_path / "m.gguf"), IDS), all_logits(model, IDS))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_frequency_factors(family: str, tmp_path: Path) -> None:
    factors = tuple(1.0 + i for i in range(16))
    model = random_network(family_config(family, rope=RopeConfig(base=10000.0, dim=32, freq_factors=factors)))
    write_gguf(tmp_path / "m.gguf", model, family, rope_freqs=factors)
    loaded = load(tmp_path / "m.gguf")
    assert loaded.config.rope.freq_factors == factors
    assert torch.equal(all_logits(loaded, IDS), all_logits(model, IDS))


def test_conversion_to_halves(tmp_path: Path) -> None:
    model = random_network(family_config("llama"))
    write_gguf(tmp_path / "m.gguf", model, "llama", Kind.Q4_0)
    half = load(tmp_path / "m.gguf", torch.bfloat16, packed=False)
    for name, weight in half.named_parameters():
        assert torch.equal(weight, model.get_parameter(name).bfloat16())


def tensor_file(path: Path, blocks: np.ndarray, kind: Kind) -> GgufFile:
    """A file with one tensor ``t`` of raw blocks."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path)


def values_of(file: GgufFile) -> torch.Tensor:
    out = torch.empty(file.tensors["t"].shape)
    file.read("t", out)
    file.close()
    return out


AT = [0, 1, 2, 31, 32, 63, 64, 127, 128, 200, 255]
# Bytes (37 i + 11) mod 256 with set scales; values worked out from the format's definition.
K_QUANTS = {
    Kind.Q4_K: (
        [(0, 0.5), (2, 0.25)],
        [157.75, -12.75, 64.75, 80.25, 4.0, 20.0, 210.25, 40.5, 211.5, 69.25, 24.25],
        27220,
    ),
    Kind.Q5_K: (
        [(0, 0.5), (2, 0.25)],
        [405.75, -12.75, 312.75, 80.25, 56.0, 40.0, 210.25, -1.5, 523.5, 69.25, 54.25],
        58108,
    ),
    Kind.Q6_K: (
        [(208, 0.5)],
        [-715.5, 848.0, 291.5, -48.0, 115.5, -290.0, -1520.0, 750.0, -175.5, 544.5, -30.0],
        2306,
    ),
}


@pytest.mark.parametrize("kind", list(K_QUANTS), ids=lambda kind: kind.name)
def test_k_quants_byte_by_byte(kind: Kind, tmp_path: Path) -> None:
    scales, expected, total = K_QUANTS[kind]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    block = np.array([(37 * i + 11) % 256 for i in range(size)], dtype=np.uint8)
    for at, scale in scales:
        block[at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
    values = values_of(tensor_file(tmp_path / "t.gguf", np.tile(block, (3, 2)), kind))
    assert values.shape == (3, 512)
    assert values[1, AT].tolist() == expected
    assert values[2, 256:].sum().item() == total


@pytest.mark.parametrize("kind", sorted(quants._type_traits), ids=lambda kind: kind.name)
def test_every_block_type_the_package_knows(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of random blocks, read a few at a time."""
    monkeypatch.setattr(reader, "_CHUNK_ELEMENTS", 1024)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(
        0, 60, (11, 2 * size), dtype=np.uint8
    )  # no NaN among the scales
    expected = quants.dequantize(blocks, kind)
    values = values_of(tensor_file(tmp_path / "t.gguf", blocks, kind))
    np.testing.assert_array_equal(values.numpy(), expected)


def test_a_type_that_cannot_be_expanded(tmp_path: Path) -> None:
    blocks = np.zeros((2, gguf.GGML_QUANT_SIZES[Kind.Q8_K][1]), dtype=np.uint8)
    with pytest.raises(CheckpointError, match="block type Q8_K, which the gguf package cannot dequantise"):
        values_of(tensor_file(tmp_path / "t.gguf", blocks, Kind.Q8_K))


def test_metadata_of_every_kind(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values = {
        "t.u8": (3, "uint8"),
        "t.i16": (-3, "int16"),
        "t.u64": (2**40, "uint64"),
        "t.f32": (0.5, "float32"),
        "t.f64": (0.1, "float64"),
        "t.bool": (True, "bool"),
        "t.text": ("grüße 你好", "string"),
    }
    for key, (value, kind) in values.items():
        getattr(writer, f"add_{kind}")(key, value)
    writer.add_array("t.texts", ["a", "", "ж"])
    writer.add_array("t.numbers", [1, 2, 3])
    writer.add_tensor("t", np.zeros((1, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = GgufFile(tmp_path / "m.gguf").metadata
    assert {key: metadata[key] for key in values} == {key: value for key, (value, _) in values.items()}
    assert metadata["t.texts"] == ["a", "", "ж"]
    assert list(metadata["t.numbers"]) == [1, 2, 3]


def test_the_writer_of_these_tests_is_not_the_reader(tmp_path: Path) -> None:
    """The package's own reader sees the same tensors."""
    model = random_network(family_config("qwen3"))
    write_gguf(tmp_path / "m.gguf", model, "qwen3", F32)
    ours = GgufFile(tmp_path / "m.gguf")
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {t.name: tuple(reversed(t.shape.tolist())) for t in theirs.tensors} == {
        name: info.shape for name, info in ours.tensors.items()
    }
    ours.close()
