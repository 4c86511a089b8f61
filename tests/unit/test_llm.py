"""The Python API over a tiny network: order of batches, stops, defaults, seeds; the same tokens alone and in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit import LLM, Message, SamplingParams
from qwenkit.backends.scripted import EchoBackend, ScriptedBackend
from qwenkit.config.families import FAMILIES
from qwenkit.core.errors import InputError, PromptTooLongError, QwenkitError, TemplateError
from qwenkit.core.types import Completion, ToolSpec
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.tokenizer.save import save_tokenizer
from qwenkit.weights.save import save_model
from tests.support.backends import tiny_backend
from tests.support.networks import family_config, random_network

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PROMPTS = [[5, 9, 2], list(range(40)), [7], [100, 200, 300, 400, 500, 17]]


@pytest.fixture(scope="module", params=["qwen1-tiny-plain", "qwen1-tiny-ntk-logn"])
def golden(request: pytest.FixtureRequest) -> LLM:
    return LLM(GOLDEN / request.param, dtype="float32", max_batch_size=3)


@pytest.fixture(scope="module")
def llm(smollm2_tokenizer: HfTokenizer) -> LLM:
    return LLM.from_backend(tiny_backend(smollm2_tokenizer))


@pytest.fixture(scope="module")
def free(llm: LLM) -> Completion:
    """What the tiny model says when nothing stops it."""
    return llm.generate("Once upon", SamplingParams(max_tokens=40))


class TestBatches:
    @pytest.mark.parametrize(
        "params",
        [
            SamplingParams(temperature=0, max_tokens=12),
            SamplingParams(temperature=1.3, top_k=0, top_p=1.0, seed=11, max_tokens=12),
            SamplingParams(
                temperature=1.0, top_k=20, top_p=0.9, repetition_penalty=1.3, seed=5, max_tokens=12
            ),
        ],
        ids=["greedy", "sampled", "all options"],
    )
    def test_the_same_tokens_alone_and_together(self, golden: LLM, params: SamplingParams) -> None:
        together = golden.generate(PROMPTS, params)
        alone = [golden.generate([p], params)[0] for p in PROMPTS]
        assert [c.token_ids for c in together] == [c.token_ids for c in alone]
        assert [c.usage.prompt_tokens for c in together] == [len(p) for p in PROMPTS]

    def test_a_seed_repeats_and_others_differ(self, golden: LLM) -> None:
        def draw(seed: int | None) -> tuple[int, ...]:
            params = SamplingParams(temperature=1.5, seed=seed, max_tokens=20, ignore_eos=True)
            return golden.generate([PROMPTS[0]], params)[0].token_ids

        assert draw(1) == draw(1)
        assert draw(1) != draw(2)
        assert draw(None) != draw(None)

    def test_streams_tell_whose_they_are(self, golden: LLM) -> None:
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
        seen: dict[int, list[int]] = {}
        for delta in golden.stream_generate(PROMPTS, params):
            seen.setdefault(delta.index, []).extend(delta.token_ids)
        assert [tuple(seen[i]) for i in range(4)] == [c.token_ids for c in golden.generate(PROMPTS, params)]

    def test_one_text_gives_one_completion(self, llm: LLM) -> None:
        params = SamplingParams(max_tokens=3)
        one = llm.generate("Hello", params)
        assert isinstance(one, Completion)
        assert llm.generate(["Hello"], params) == [one]
        assert llm.generate([llm.tokenizer.encode("Hello")], params) == [one]

    def test_chats_together(self, llm: LLM) -> None:
        params = SamplingParams(max_tokens=4)
        talks = ["a", [Message("user", "b")], [{"role": "user", "content": "c d e f"}]]
        assert llm.chat_batch(talks, params) == [llm.chat(t, params) for t in talks]

    def test_closing_a_stream_frees_the_batch(self, golden: LLM) -> None:
        stream = golden.stream_generate(PROMPTS, SamplingParams(temperature=0, max_tokens=50))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert golden.generate([[1]], SamplingParams(temperature=0, max_tokens=1))[0].token_ids


class TestStops:
    def test_a_stop_inside_and_across_tokens(self, llm: LLM, free: Completion) -> None:
        text = free.text
        for start in range(0, len(text) - 4, 7):
            stop = text[start : start + 4]
            cut = llm.generate("Once upon", SamplingParams(max_tokens=40, stop=(stop,)))
            assert cut.text == text[: text.index(stop)]
            assert cut.finish_reason == "stop"
            assert len(cut.token_ids) <= len(free.token_ids)

    def test_the_earliest_of_several_counts(self, llm: LLM, free: Completion) -> None:
        stops = (free.text[12:15], free.text[3:6], "never seen")
        cut = llm.generate("Once upon", SamplingParams(max_tokens=40, stop=stops))
        assert cut.text == free.text[: min(free.text.index(s) for s in stops[:2])]

    def test_nothing_of_a_stop_is_ever_shown(self, llm: LLM, free: Completion) -> None:
        stop = free.text[5:12]
        shown = ""
        for delta in llm.stream_generate("Once upon", SamplingParams(max_tokens=40, stop=(stop,))):
            shown += delta.text
            assert free.text[: free.text.index(stop)].startswith(shown)

    def test_stop_ids_end_and_are_counted(self, llm: LLM, free: Completion) -> None:
        third = free.token_ids[2]
        cut = llm.generate("Once upon", SamplingParams(max_tokens=40, stop_token_ids=(third,)))
        assert cut.token_ids == free.token_ids[: free.token_ids.index(third) + 1]
        assert cut.finish_reason == "stop"

    def test_stop_sequences_may_begin_in_the_prompt(self, llm: LLM, free: Completion) -> None:
        prompt = llm.tokenizer.encode("Once upon")
        sequence = (prompt[-1], free.token_ids[0])
        cut = llm.generate("Once upon", SamplingParams(max_tokens=40, stop_token_sequences=(sequence,)))
        assert cut.token_ids == free.token_ids[:1]

    def test_end_tokens_of_the_model(self, smollm2_tokenizer: HfTokenizer, free: Completion) -> None:
        model = LLM.from_backend(tiny_backend(smollm2_tokenizer, eos=(free.token_ids[4],)))
        cut = model.generate("Once upon", SamplingParams(max_tokens=40))
        first = free.token_ids.index(free.token_ids[4])
        assert (cut.token_ids, cut.finish_reason) == (free.token_ids[: first + 1], "stop")
        on = model.generate("Once upon", SamplingParams(max_tokens=40, ignore_eos=True))
        assert on.token_ids == free.token_ids


class TestDefaults:
    def test_what_is_set_wins_and_the_rest_is_the_models(self, smollm2_tokenizer: HfTokenizer) -> None:
        defaults = SamplingParams(
            temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, max_tokens=3
        )
        model = LLM.from_backend(tiny_backend(smollm2_tokenizer, defaults=defaults))
        assert len(model.generate("x").token_ids) == 3
        assert len(model.generate("x", SamplingParams(max_tokens=5)).token_ids) == 5
        hot = SamplingParams(temperature=2.0, seed=1)
        assert model.generate("x", hot).token_ids != model.generate("x").token_ids

    def test_raw_completion_ends_somewhere(self, llm: LLM) -> None:
        out = llm.generate("x")
        assert (len(out.token_ids), out.finish_reason) == (256, "length")

    def test_over_keeps_the_stops_of_both(self) -> None:
        mine = SamplingParams(stop="a", temperature=0.5, stop_token_ids=[1])
        merged = mine.over(SamplingParams(stop=["b", "a"], temperature=1.0, top_k=5, stop_token_ids=[2]))
        assert merged.stop == ("a", "b")
        assert merged.stop_token_ids == (1, 2)
        assert (merged.temperature, merged.top_k) == (0.5, 5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_tokens": -1}, "max_tokens=-1 .* from 0 up"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens=4 is more than max_tokens=3"),
        ({"n": 0}, "n=0 .* from 1 to 128"),
        ({"logprobs": 21}, "logprobs=21 .* from 0 to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1"),
        ({"frequency_penalty": 2.1}, "frequency_penalty=2.1 .* from -2 to 2"),
        ({"presence_penalty": "a"}, "presence_penalty='a'"),
        ({"logit_bias": [1]}, "must map token ids"),
        ({"logit_bias": {"a": 1}}, "logit_bias holds 'a'"),
        ({"logit_bias": {1: 101}}, r"logit_bias\[1\]=101"),
        ({"logit_bias": {1: None}}, r"logit_bias\[1\]=None"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"bad_words": [""]}, "every bad word must be non-empty"),
        ({"max_tokens": True}, "max_tokens=True"),
        ({"top_k": -1}, "top_k=-1 .* from 0 up"),
        ({"top_k": 1.5}, "top_k=1.5"),
        ({"seed": 2**63}, "seed="),
        ({"temperature": -0.1}, "temperature=-0.1 .* from 0 to 100"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0}, "top_p=0 .* above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p=1.01"),
        ({"min_p": 2}, "min_p=2"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"repetition_penalty": "1"}, "repetition_penalty='1'"),
        ({"stop": ("a", "")}, "non-empty"),
        ({"stop_token_sequences": ((),)}, "empty sequence"),
    ],
)
def test_impossible_parameters(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SamplingParams(**values)


class TestRequests:
    @pytest.mark.parametrize(
        ("messages", "said"),
        [
            ([], "empty conversation"),
            ([{"role": "user", "contents": "x"}], "did you mean 'content'"),
            ([{"role": "boss", "content": "x"}], "'boss' is unknown"),
            ([{"content": "x"}], "needs the keys"),
        ],
    )
    def test_conversations_that_are_none(self, llm: LLM, messages: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            llm.chat(messages)

    def test_prompts_that_are_none(self, llm: LLM) -> None:
        with pytest.raises(InputError, match="text or a list of token ids"):
            llm.generate([["a"]])  # type: ignore[list-item]
        with pytest.raises(InputError, match="empty"):
            llm.generate("")
        with pytest.raises(PromptTooLongError):
            llm.chat("word " * 600)

    def test_tools_reach_the_backend(self) -> None:
        backend = ScriptedBackend(["x"])
        LLM.from_backend(backend).chat("a", tools=[ToolSpec(name="t")], flag=True)
        assert backend.requests[0].tools == (ToolSpec(name="t"),)
        assert backend.requests[0].template_options == {"flag": True}

    def test_echo(self) -> None:
        assert LLM.from_backend(EchoBackend()).chat("say this").text == "say this"

    def test_a_closed_model(self, smollm2_tokenizer: HfTokenizer) -> None:
        with LLM.from_backend(tiny_backend(smollm2_tokenizer)) as model:
            pass
        with pytest.raises(InputError, match="was closed"):
            model.generate("x")

    def test_logits_need_a_model_here(self) -> None:
        with pytest.raises(InputError, match="out of reach"):
            LLM.from_backend(ScriptedBackend(["x"])).logits([[1]])


class TestPerplexity:
    def test_is_that_of_the_logits(self, llm: LLM) -> None:
        ids = llm.tokenizer.encode("The quick brown fox jumps over the lazy dog.")
        scores = llm.logits([ids])[0][:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])
        expected = float((-scores.mean()).exp())
        assert llm.perplexity("The quick brown fox jumps over the lazy dog.") == pytest.approx(
            expected, rel=1e-4
        )

    def test_windows_do_not_overlap(self, llm: LLM) -> None:
        text = "one two three four five six seven eight"
        steps: list[tuple[int, int, float]] = []
        llm.perplexity(text, window=3, on_progress=lambda *step: steps.append(step))
        assert [done for done, _, _ in steps] == [3, 6, 8]

    @pytest.mark.parametrize(("text", "window"), [("", None), ("a", None), ("a b c", 1), ("a b c", 513)])
    def test_what_cannot_be_scored(self, llm: LLM, text: str, window: int | None) -> None:
        with pytest.raises(QwenkitError):
            llm.perplexity(text, window=window)


@pytest.mark.parametrize(
    "values",
    [
        {"stop": 5},
        {"stop_token_ids": 5},
        {"stop_token_ids": "ab"},
        {"stop_token_ids": [1.5]},
        {"stop_token_sequences": [5]},
        {"stop_token_sequences": [["a"]]},
        {"temperature": 10**400},
    ],
    ids=str,
)
def test_parameters_of_the_wrong_kind(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SamplingParams(**values)


def test_prompts_of_the_wrong_kind(llm: LLM) -> None:
    calls: list[Any] = [
        lambda: llm.generate([1, 2, 3]),  # type: ignore[list-item]
        lambda: llm.logits([1, 2]),  # type: ignore[list-item]
        lambda: llm.logits(["ab"]),  # type: ignore[list-item]
        lambda: llm.logits([[1.5]]),  # type: ignore[list-item]
        lambda: llm.chat(Message("user", "x")),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InputError, match="must be"):
            call()


@pytest.mark.parametrize(
    "options", [{"windows": ["a"]}, {"windows": [1.5]}, {"windows": [True]}, {"num_threads": 10**9}], ids=str
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LLM(GOLDEN / "qwen1-tiny-plain", **options)


def test_a_malformed_template_does_not_stop_raw_generation(
    tmp_path: Path, smollm2_tokenizer: HfTokenizer
) -> None:
    network = random_network(family_config("llama", vocab_size=smollm2_tokenizer.vocab_size))
    save_model(tmp_path, network, FAMILIES["llama"])
    save_tokenizer(tmp_path, smollm2_tokenizer)
    (tmp_path / "chat_template.jinja").write_text("{% for x in %}")
    llm = LLM(tmp_path, dtype="float32")
    assert llm.generate("a", SamplingParams(max_tokens=1)).token_ids
    with pytest.raises(TemplateError, match="malformed"):
        llm.chat("a")
