"""Gradients and losses of first-generation Qwen in transformers, against finite differences and transformers' Qwen2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qwenkit.hf import QWenLMHeadModel
from tests.support.hf_models import PLAIN, as_qwen2, qwen2_names, random_model, token_ids


def batch(masked: bool = False) -> dict[str, Tensor]:
    ids = token_ids(2, 20)
    labels = ids.clone()
    labels[:, :6] = -100
    mask = torch.ones_like(ids)
    if masked:
        mask[0, 14:] = 0
        labels[0, 14:] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def gradients(model: Any, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def exact_loss(model: QWenLMHeadModel, inputs: dict[str, Tensor]) -> Tensor:
    """The loss without the cast of logits to float32 that transformers makes."""
    logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_equal_finite_differences(attention: str) -> None:
    model = random_model(attn_implementation=attention).double().train()
    inputs = batch(masked=True)
    model.zero_grad()
    exact_loss(model, inputs).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    assert set(found) == {name for name, _ in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for name, weight in model.named_parameters():
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(direction, alpha=sign * step)
                losses.append(float(exact_loss(model, inputs)))
                weight.sub_(direction, alpha=sign * step)
        numeric = (losses[0] - losses[1]) / (2 * step)
        exact = float((found[name] * direction).sum())
        assert numeric == pytest.approx(exact, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_equal_qwen2(attention: str) -> None:
    ours = random_model(attn_implementation=attention, **PLAIN).train()
    theirs = as_qwen2(ours).train()
    loss, found = gradients(ours, **batch(masked=True))
    expected_loss, expected = gradients(theirs, **batch(masked=True))
    torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=0)
    found = qwen2_names(found)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = random_model().train()
    loss, expected = gradients(model, **batch())
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    calls = _count_forwards(model)
    again, found = gradients(model, **batch())
    assert len(calls) == 2 * model.config.num_hidden_layers  # each layer runs a second time on the way back
    assert torch.equal(loss, again)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-5)


def _count_forwards(model: QWenLMHeadModel) -> list[int]:
    calls: list[int] = []
    for layer in model.transformer.h:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_equals_unpacked(attention: str) -> None:
    model = random_model(attn_implementation=attention).train()
    samples = [token_ids(1, n, seed=n) for n in (5, 18, 30)]
    total, count = torch.zeros(()), 0
    for ids in samples:
        total = total + model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    total.div(count).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    labels = [torch.cat((torch.tensor([[-100]]), ids[:, 1:]), dim=1) for ids in samples]
    loss, found = gradients(
        model,
        input_ids=torch.cat(samples, dim=1),
        labels=torch.cat(labels, dim=1),
        position_ids=torch.cat([torch.arange(s.shape[1]) for s in samples])[None],
    )
    torch.testing.assert_close(loss, total.detach() / count, atol=1e-6, rtol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


def test_loss_is_the_mean_over_labels_shifted_by_one() -> None:
    model = random_model()
    inputs = batch()
    out = model(**inputs)
    flat = out.logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(flat, inputs["labels"][:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(out.loss, expected, atol=1e-6, rtol=0)


def test_loss_of_a_part_of_a_larger_batch() -> None:
    """Gradient accumulation: what counts is the number of labels in all parts together."""
    model = random_model().train()
    inputs = batch()
    inputs["labels"][0, :15] = -100
    count = int((inputs["labels"][:, 1:] != -100).sum())
    whole = model(**inputs).loss
    parts = [
        model(**{k: v[i : i + 1] for k, v in inputs.items()}, num_items_in_batch=count).loss for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=0)


def test_training_mode_has_neither_ntk_nor_logn() -> None:
    scaled, plain = random_model().train(), random_model(**PLAIN).train()
    ids = token_ids(1, 40)
    with torch.no_grad():
        assert torch.equal(scaled(ids).logits, plain(ids).logits)
        assert not torch.allclose(scaled.eval()(ids).logits, plain(ids).logits)


def test_dropout_acts_in_training_alone() -> None:
    for name in ("attn_dropout_prob", "emb_dropout_prob"):
        model = random_model(**{name: 0.5}, attn_implementation="eager")
        ids = token_ids(1, 12)
        with torch.no_grad():
            torch.manual_seed(0)
            assert torch.equal(model(ids).logits, model(ids).logits)
            model.train()
            assert not torch.equal(model(ids).logits, model(ids).logits)


def test_logits_to_keep() -> None:
    model = random_model()
    ids = token_ids(2, 9)
    with torch.inference_mode():
        whole = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole[:, -2:])
        rows = torch.tensor([1, 4])
        torch.testing.assert_close(model(ids, logits_to_keep=rows).logits, whole[:, rows])
