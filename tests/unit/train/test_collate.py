"""Batches: padded rows, or packed ones in which no loss and no attention crosses from one sequence to the next."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qwenkit.train.collate import PackedCollator, PaddedCollator
from qwenkit.train.dataset import as_tensors
from qwenkit.train.labels import IGNORED
from qwenkit.train.pieces import Rendered

PAD = 99


def _sequence(*ids: int) -> Rendered:
    tensor = torch.tensor(ids, dtype=torch.int32).numpy()
    return Rendered(tensor, tensor > 0)


def _item(*sequences: Rendered) -> dict[str, Tensor]:
    return as_tensors(sequences)


def test_padded() -> None:
    batch = PaddedCollator(PAD)([_item(_sequence(5, 6, 7)), _item(_sequence(8))])
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, PAD, PAD]],
        "labels": [[5, 6, 7], [8, IGNORED, IGNORED]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }


def test_padded_to_a_multiple_and_a_pad_token_in_the_data() -> None:
    batch = PaddedCollator(PAD, multiple=4)([_item(_sequence(5, PAD, 7, 8, 9))])
    assert batch["input_ids"].tolist() == [[5, PAD, 7, 8, 9, PAD, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 3]


def test_padded_parts_rows_again() -> None:
    batch = PaddedCollator(PAD)([_item(_sequence(5), _sequence(6, 7)), _item(_sequence(8))])
    assert batch["input_ids"].tolist() == [[5, PAD], [6, 7], [8, PAD]]


def test_packed_in_one_row() -> None:
    items = [_item(_sequence(5, 6), _sequence(7)), _item(_sequence(8, 9))]
    batch = PackedCollator(PAD)(items)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[IGNORED, 6, IGNORED, IGNORED, 9]],
        "position_ids": [[0, 1, 0, 0, 1]],
    }
    assert items[1]["labels"].tolist() == [8, 9]  # the item itself is not changed


def test_packed_in_rows() -> None:
    batch = PackedCollator(PAD, single_row=False)([_item(_sequence(5, 6), _sequence(7)), _item(_sequence(8))])
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, PAD, PAD]],
        "labels": [[5, 6, IGNORED], [8, IGNORED, IGNORED]],
        "position_ids": [[0, 1, 0], [0, 0, 1]],
    }


@pytest.mark.parametrize("single_row", [True, False])
def test_loss_of_a_model_is_the_same_packed_and_padded(single_row: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    # with a cache, transformers does not look for the ends of sequences
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        use_cache=False,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    sequences = [_sequence(*torch.randint(1, 90, (n,)).tolist()) for n in (7, 1, 4, 12, 3)]
    rows = [_item(*sequences[:3]), _item(*sequences[3:])]
    padded, packed = PaddedCollator(PAD)(rows), PackedCollator(PAD, single_row)(rows)
    num_items = padded["labels"][:, 1:].ne(IGNORED).sum()
    assert packed["labels"][:, 1:].ne(IGNORED).sum() == num_items
    with torch.no_grad():
        losses = [model(**batch, num_items_in_batch=num_items).loss for batch in (padded, packed)]
        crossing = model(**(packed | {"position_ids": torch.arange(packed["input_ids"].shape[1])[None]})).loss
    assert torch.allclose(losses[0], losses[1], atol=1e-5)
    assert not torch.allclose(losses[0], crossing, atol=1e-3)
