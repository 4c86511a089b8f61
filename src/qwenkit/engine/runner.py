"""Turns the work of a step into one call of the network. Knows tensors and pages, nothing of text or threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.cache.paged import PagedCache, PagePool
from qwenkit.core.types import TokenLogprob
from qwenkit.engine.reply import Reply
from qwenkit.engine.scheduler import Work
from qwenkit.model.step import Forward
from qwenkit.model.transformer import Span


@dataclass(slots=True)
class Result:
    """What a step gave one sequence."""

    work: Work
    logits: Tensor | None
    """(R, V) float32 behind its last token and behind each guessed one; None while its prompt is not read to the end."""
    likeliest: Sequence[int] = ()
    highest: Sequence[float] = ()
    """Argmax and maximum of each row; NaN counts as the largest."""


class Runner:
    """Runs steps.

    Args:
        forward: the network.
        pool: the pages of all sequences.
        vocab_size: ids from here on are padding of the embedding and never chosen.
    """

    def __init__(self, forward: Forward, pool: PagePool, vocab_size: int) -> None:
        self._forward, self._pool, self._vocab_size = forward, pool, vocab_size

    @torch.inference_mode()
    def run(self, plan: Sequence[Work]) -> list[Result]:
        """Computes the planned tokens, storing their keys and values."""
        tokens: list[int] = []
        rows: list[int] = []
        spans, counts = [], []
        for work in plan:
            wanted = _wanted_rows(work)
            rows += [len(tokens) + row for row in wanted]
            counts.append(len(wanted))
            tokens += work.sequence.tokens[work.sequence.computed : work.sequence.computed + work.count]
            tokens += work.draft
            spans += self._spans(work)
        logits = self._forward(tokens, spans, rows)[:, : self._vocab_size]
        return self._results(plan, counts, logits)

    def _spans(self, work: Work) -> list[Span]:
        """The tokens of the prompt and those behind it, which the model chose itself."""
        sequence = work.sequence
        reply: Reply = sequence.state
        cache = PagedCache(self._pool, sequence.pages, length=sequence.computed, alpha=reply.alpha)
        given = max(0, min(sequence.num_prompt - sequence.computed, work.size))
        counts = ((given, False), (work.size - given, True))
        return [Span(cache, count, reply.adapter, generated) for count, generated in counts if count]

    def _results(self, plan: Sequence[Work], counts: Sequence[int], logits: Tensor) -> list[Result]:
        results, at = [], 0
        chosen_from: list[range] = []
        for work, count in zip(plan, counts, strict=True):
            own = logits[at : at + count]
            at += count
            if _scores_prompt(work):
                _score(work, own)
            has_read_all = work.count == work.sequence.num_pending
            rows = 1 + len(work.draft) if has_read_all else 0
            results.append(Result(work, own[-rows:] if rows else None))
            chosen_from.append(range(at - rows, at))
        ids, highest = _maximum(logits, [row for span in chosen_from for row in span])
        done = 0
        for result, span in zip(results, chosen_from, strict=True):
            end = done + len(span)
            result.likeliest, result.highest = ids[done:end], highest[done:end]
            done = end
        return results


def _scores_prompt(work: Work) -> bool:
    return work.sequence.reads_whole_prompt and work.sequence.num_output == 0


def _wanted_rows(work: Work) -> range:
    """Which of the work's positions need logits."""
    if _scores_prompt(work):
        return range(work.count)
    return range(work.count - 1, work.size) if work.count == work.sequence.num_pending else range(0)


def _maximum(logits: Tensor, rows: Sequence[int]) -> tuple[list[int], list[float]]:
    """Index and value of the maximum of these rows."""
    if not rows:
        return [], []
    if logits.device.type != "cpu":
        best = logits[list(rows)].max(dim=-1)
        return best.indices.tolist(), best.values.tolist()
    # numpy stays on one core: waking torch's threads for this would take cores from the next step.
    values = logits.numpy()
    ids = [int(values[row].argmax()) for row in rows]
    return ids, [float(values[row, i]) for row, i in zip(rows, ids, strict=True)]


def _score(work: Work, logits: Tensor) -> None:
    """Adds the log-probabilities of the prompt's tokens that follow the computed positions."""
    sequence = work.sequence
    reply: Reply = sequence.state
    start = sequence.computed
    targets = sequence.tokens[start + 1 : min(start + work.count + 1, sequence.num_prompt)]
    scores: list[TokenLogprob | None] = [None] if start == 0 else reply.prompt_logprobs or []
    if targets:
        top = sequence.params.prompt_logprobs or 0
        kept = logits[: len(targets)].float()
        norm = kept.logsumexp(dim=-1, keepdim=True)
        chosen = kept.gather(1, torch.tensor(targets, device=kept.device)[:, None]) - norm
        best = kept.topk(top, dim=-1)
        ids, values = best.indices.tolist(), (best.values - norm).tolist()
        for i, token in enumerate(targets):
            likeliest = tuple(zip(ids[i], values[i], strict=True))
            scores.append(TokenLogprob(token, float(chosen[i, 0]), likeliest))
    reply.prompt_logprobs = scores
