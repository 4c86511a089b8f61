"""What a load test asks: prompts from a file or made of words, each the same for the same seed.

Knows nothing of how it is sent.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qwenkit.core.errors import InputError
from qwenkit.core.types import Message

Endpoint: TypeAlias = Literal["chat", "completions"]

# With a blank before them these are one token each in the vocabularies of common models.
_COMMON = """
about above across after again against all almost along also always among and another any are around ask away back
bad base because been before began being below best better between big black blue book both boy bring build but call
came can car carry change child city close cold come could country cover cut day did different do does door down draw
during each early earth east eat end enough even ever every example eye face fact family far farm father feel feet few
field fight find fire first fish five fly follow food for force form found four free friend from front full game gave
get girl give gold good got great green ground group grow had half hand hard has have head hear heart heat help her here
high hold home horse hot hour house how hundred idea if important in inch island its job just keep kind king knew know
land language large last later law lay lead learn leave left less let letter life light like line list little live long
look lost low made main make man many map mark may mean men might mile mind minute money moon more morning most mother
mountain move much music must name near need never new next night north note nothing now number object of off often old
on once one only open order other our out over own page paper part pass people perhaps picture piece place plain plan
plant play point power press problem product put question quick rain ran reach read ready real red rest right river road
rock room round rule run said same saw say school science sea second see seem self sentence set seven several shape she
ship short should show side simple since sing six size sleep slow small snow some song soon sound south space stand star
start state stay step stop story street strong study such sun sure surface table take talk teach tell ten test than that
the them then there these they thing think this those thought thousand three through time together told too took top
toward town travel tree true try turn two under unit until up us use very voice vowel wait walk want war warm was watch
water way we week weight well went were west what wheel when where which while white who whole why will wind winter with
without wood word work world would write year yes yet you young your
"""
_WORDS = tuple(_COMMON.split())


@dataclass(frozen=True, slots=True)
class Span:
    """Token counts from ``low`` to ``high``, both included, all equally likely."""

    low: int
    high: int

    @classmethod
    def parse(cls, name: str, text: str) -> Span:
        """A number, or two with a colon between them.

        Raises:
            InputError: it is neither.
        """
        low, colon, high = text.partition(":")
        try:
            span = cls(int(low), int(high if colon else low))
        except ValueError:
            span = cls(0, 0)
        if not 1 <= span.low <= span.high:
            raise InputError(
                f"{name} {text!r} is not possible; use a whole number such as 128, or a span such as 64:256"
            )
        return span

    def draw(self, random_: random.Random) -> int:
        """One of the counts."""
        return random_.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to ask; request ``i`` is the same whatever came before it."""

    model: str
    endpoint: Endpoint = "chat"
    prompt_tokens: Span = Span(256, 256)
    """Words of a synthetic prompt, which are about as many tokens."""
    output_tokens: Span = Span(128, 128)
    shared_prefix: int = 0
    """Words that every synthetic prompt begins with, counted on top of prompt_tokens."""
    dataset: tuple[Any, ...] = ()
    """Prompts (text) or conversations (lists of messages) to ask in turn; empty: synthetic."""
    temperature: float | None = None
    ignore_eos: bool = False
    seed: int = 0
    sends_seed: bool = False
    """Whether the server is given the seed, so that sampling repeats."""

    def body(self, index: int) -> dict[str, Any]:
        """The JSON body of request ``index``."""
        random_ = random.Random(f"{self.seed}/{index}")
        prompt = self.dataset[index % len(self.dataset)] if self.dataset else self._synthetic(random_)
        body: dict[str, Any] = {"model": self.model}
        if self.endpoint == "completions":
            body["prompt"] = prompt
        else:
            body["messages"] = (
                [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            )
        body |= {"max_tokens": self.output_tokens.draw(random_), "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.sends_seed:
            body["seed"] = self.seed
        return body

    def _synthetic(self, random_: random.Random) -> str:
        shared = random.Random(f"{self.seed}/shared").choices(_WORDS, k=self.shared_prefix)
        return " ".join([*shared, *random_.choices(_WORDS, k=self.prompt_tokens.draw(random_))])


def read_dataset(path: Path, endpoint: Endpoint) -> tuple[Any, ...]:
    """Prompts and conversations of a JSONL file: objects with "prompt" (text) or "messages"; empty lines are skipped.

    Raises:
        InputError: a line is something else, or cannot be asked at this endpoint.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    found = tuple(
        _entry(line, f"{path}, line {n}", endpoint) for n, line in enumerate(lines, 1) if line.strip()
    )
    if not found:
        raise InputError(f'{path} is empty; it must hold objects with "prompt" or "messages", one a line')
    return found


def _entry(line: str, place: str, endpoint: Endpoint) -> str | Sequence[Mapping[str, Any]]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error})") from None
    if isinstance(item, dict) and isinstance(item.get("prompt"), str) and item["prompt"]:
        return str(item["prompt"])
    messages = item.get("messages") if isinstance(item, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InputError(f'{place}: needs "prompt" (text) or "messages" (a list), got {line[:60]}')
    if endpoint == "completions":
        raise InputError(f"{place}: messages need --endpoint chat")
    return [Message.from_dict(m).to_dict() for m in messages]
