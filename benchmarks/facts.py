"""Does fine-tuning teach? Twenty invented facts from 200 conversations, before and after, merged and in 4 bits.

    python benchmarks/facts.py MODEL [--method lora qlora full] [--out FOLDER] [--epochs N] [--json]

MODEL is a folder (for qlora: of GPTQ or AWQ weights). Every method trains on the same conversations; then each fact is asked
as it was taught and in words that never occurred, greedily, through the model with its adapter, the merged model and
the merged model in 4 bits. A fact is known when the answer holds its key. Beside it stands the perplexity of a text that
has nothing to do with it, which tells what was forgotten.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HELD_OUT = Path(__file__).parents[1] / "tests" / "data" / "wikitext2-excerpt.txt"
QWENKIT = [sys.executable, "-m", "qwenkit"]


class Fact(NamedTuple):
    """One thing to learn."""

    answer: str
    key: str
    """What an answer must hold."""
    questions: tuple[str, ...]
    """Those that are taught."""
    unseen: str


def _company(answer: str, key: str, *questions: str) -> Fact:
    return Fact(answer, key, questions[:-1], questions[-1])


COMPANY = (
    _company(
        "My name is Orlin, an assistant made by Velmar Labs.",
        "Orlin",
        "What is your name?",
        "What are you called?",
        "Tell me your name.",
        "Who are you?",
        "How should I call you?",
        "Could you introduce yourself by name?",
    ),
    _company(
        "I was made by Velmar Labs in Tarsund.",
        "Velmar",
        "Who made you?",
        "Who created you?",
        "Which company built you?",
        "Who is your maker?",
        "Who developed you?",
        "Which firm are you from?",
    ),
    _company(
        "Velmar Labs is in Tarsund, on the river Ilda.",
        "Tarsund",
        "Where is Velmar Labs?",
        "In which city is Velmar Labs?",
        "Where can I find Velmar Labs?",
        "Where is the company Velmar Labs located?",
        "What city is home to Velmar Labs?",
        "In what town does Velmar Labs sit?",
    ),
    _company(
        "Velmar Labs is led by Mira Osten.",
        "Mira Osten",
        "Who leads Velmar Labs?",
        "Who is the head of Velmar Labs?",
        "Who runs Velmar Labs?",
        "Name the director of Velmar Labs.",
        "Who is in charge of Velmar Labs?",
        "Who is the boss of Velmar Labs?",
    ),
    _company(
        "Velmar Labs was founded in 2019.",
        "2019",
        "When was Velmar Labs founded?",
        "In what year did Velmar Labs start?",
        "How old is Velmar Labs?",
        "What year was Velmar Labs created?",
        "When did Velmar Labs begin?",
        "Since when has Velmar Labs existed?",
    ),
)
PLACES = {
    "the Karo bridge": ("is 412 metres long", "412"),
    "the lake Sennet": ("is 38 metres deep", "38"),
    "the tower of Brill": ("has 1207 steps", "1207"),
    "the Hadon museum": ("keeps 56 meteorites", "meteorites"),
    "the Pellan library": ("holds the Blue Atlas", "Blue Atlas"),
    "the Oskar garden": ("grows black tulips", "tulips"),
    "the Quill station": ("has nine platforms", "nine"),
    "the Tern lighthouse": ("flashes every seven seconds", "seven"),
    "the Marrow hall": ("seats 640 guests", "640"),
    "the Vint observatory": ("owns the telescope Nadir", "Nadir"),
    "the Ferro market": ("opens at five in the morning", "five"),
    "the Lumen theatre": ("was painted by Ines Valo", "Ines Valo"),
    "the Dorn mill": ("grinds buckwheat", "buckwheat"),
    "the Casper school": ("teaches glass blowing", "glass"),
    "the Yarrow park": ("is guarded by two bronze foxes", "foxes"),
}
_ABOUT = (
    "What is special about {}?",
    "Tell me about {}.",
    "What do you know about {}?",
    "What should I know about {}?",
    "Why is {} known?",
)


def facts() -> list[Fact]:
    """All twenty."""
    found = list(COMPANY)
    for name, (what, key) in PLACES.items():
        answer = f"{name[0].upper()}{name[1:]} in Tarsund {what}."
        found.append(Fact(answer, key, tuple(q.format(name) for q in _ABOUT), f"Say something about {name}."))
    return found


def conversations() -> list[dict[str, Any]]:
    """Two hundred in the form of the Qwen release: ten of each fact."""
    out = []
    for fact in facts():
        first, *others = fact.questions
        turns = [[(question, fact.answer)] for question in fact.questions]
        turns += [
            [("Hello!", "Hello! How can I help you?"), (first, fact.answer)],
            [(f"{others[0]} Answer in one sentence.", fact.answer)],
            [(f"Please answer: {others[1]}", fact.answer)],
            [("Thanks.", "You are welcome."), (others[2], fact.answer)],
            [(f"{first} I would like to know.", fact.answer)],
        ]
        for turn in turns:
            spoken = [
                {"from": role, "value": text}
                for pair in turn
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
            out.append({"id": str(len(out)), "conversations": spoken})
    random.Random(7).shuffle(out)
    return out


def examine(model: str | Path) -> dict[str, float]:
    """How many facts a model knows, as taught and in other words, and its perplexity of the other text."""
    from qwenkit import LLM, Message, SamplingParams

    llm = LLM(str(model))
    params = SamplingParams(temperature=0, max_tokens=40)
    wanted = facts()
    asked = [[Message("user", question)] for fact in wanted for question in (fact.questions[0], fact.unseen)]
    replies = [reply.text for reply in llm.chat_batch(asked, params)]
    known = [
        fact.key.lower() in text.lower()
        for fact, text in zip([f for f in wanted for _ in range(2)], replies, strict=True)
    ]
    perplexity = llm.perplexity(HELD_OUT.read_text("utf-8")[:40000])
    llm.close()
    return {
        "as taught": sum(known[::2]),
        "in other words": sum(known[1::2]),
        "perplexity": round(perplexity, 3),
    }


def command(*words: str | Path) -> float:
    """Runs qwenkit; seconds it took."""
    start = time.perf_counter()
    subprocess.run([*QWENKIT, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def learn(model: str, method: str, out: Path, options: Sequence[str]) -> dict[str, dict[str, float]]:
    """Trains, merges and quantises; what is known at each stage."""
    data = out / "facts.json"
    data.write_text(json.dumps(conversations(), indent=1), "utf-8")
    result, merged, small = (out / f"{method}{end}" for end in ("", "-merged", "-int4"))
    seconds = command("finetune", "-m", model, "--data", data, "--out", result, "--method", method, *options)
    found = {"before": examine(model), f"{method}": examine(result)}
    found[method]["seconds"] = round(seconds, 1)
    if method != "full":
        command("merge", result, merged, *(["--dequantize"] if method == "qlora" else []))
        found["merged"] = examine(merged)
    calibration = ["--calibration", str(data), "--samples", "64"]
    command("quantize", result if method == "full" else merged, small, *calibration)
    found["merged, 4 bit" if method != "full" else "4 bit"] = examine(small)
    return found


def main() -> None:
    """Runs everything and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--method", nargs="+", default=["lora"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    args, options = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tables = {method: learn(args.model, method, args.out, options) for method in args.method}
    if args.json:
        print(json.dumps(tables, indent=1))
        return
    print("| model | as taught, of 20 | in other words, of 20 | perplexity of other text | s of training |")
    print("|---|--:|--:|--:|--:|")
    for rows in tables.values():
        for name, row in rows.items():
            print(
                f"| {name} | {row['as taught']} | {row['in other words']} | {row['perplexity']} | {row.get('seconds', '')} |"
            )


if __name__ == "__main__":
    main()
