"""``qwenkit tokenize`` and ``qwenkit detokenize``: text to token ids and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from qwenkit.cli import loading, pipes
from qwenkit.cli.options import DEFAULT_MODEL, JsonFlag, ModelOption
from qwenkit.core.errors import InputError

if TYPE_CHECKING:
    from qwenkit.tokenizer.base import Tokenizer

NoSpecials = Annotated[
    bool, typer.Option("--no-specials", help="Treat texts like <|im_end|> as ordinary text.")
]


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a model, which is downloaded if it is not there yet."""
    loading.fetch(model)
    from qwenkit.llm import load_tokenizer as load

    return load(model)


def tokenize(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text; without it, all of stdin.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    no_specials: NoSpecials = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the token ids of a text, and on a terminal the piece each id stands for.

    Every character counts, the line end of a pipe too.
    """
    source = pipes.read_stdin() if text is None else pipes.clean_argument(text)
    if not source:
        raise InputError("there is no text; give TEXT or pipe it in")
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(source, allowed_special=() if no_specials else "all")
    if as_json:
        pieces = [_piece(tokenizer, i) for i in ids]
        print(json.dumps({"ids": ids, "pieces": pieces, "count": len(ids)}, ensure_ascii=False))
    elif pipes.is_terminal(sys.stdout):
        _show_table(tokenizer, ids)
    else:
        print(*ids)


def _piece(tokenizer: Tokenizer, token_id: int) -> str:
    """What an id stands for, in a form that can be read: line ends and half characters are escaped."""
    data = tokenizer.token_bytes(token_id)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _show_table(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    specials = set(tokenizer.special_tokens.values())
    table = Table("#", "id", "piece", box=box.SIMPLE)
    table.columns[0].justify = table.columns[1].justify = "right"
    for position, token_id in enumerate(ids):
        piece = Text("▏" + _piece(tokenizer, token_id) + "▕", "magenta" if token_id in specials else "")
        table.add_row(str(position), str(token_id), piece)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{len(ids)} tokens")
    console.print(" ".join(map(str, ids)), soft_wrap=True)


def detokenize(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="IDS", help="Token ids; without them, stdin.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    no_specials: Annotated[bool, typer.Option("--no-specials", help="Leave control tokens out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the text of token ids, given as numbers or as a JSON list."""
    numbers = parse_ids(" ".join(ids) if ids else pipes.read_stdin())
    text = load_tokenizer(model).decode(numbers, skip_special_tokens=no_specials)
    if as_json:
        print(json.dumps({"text": text, "count": len(numbers)}, ensure_ascii=False))
        return
    view = pipes.PlainView(sys.stdout, is_terminal=pipes.is_terminal(sys.stdout))
    view.feed(text)
    if pipes.is_terminal(sys.stdout):
        view.finish()


def parse_ids(text: str) -> list[int]:
    """Token ids in ``text``: numbers between blanks or commas, or a JSON list of them.

    Raises:
        InputError: there are none, or something else is among them.
    """
    words = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    if not words:
        raise InputError("there are no token ids; give IDS or pipe them in")
    for word in words:
        if not (word.isascii() and word.isdigit()):
            raise InputError(f"{word!r} is no token id; give whole numbers, or a JSON list of them")
    return [int(word) for word in words]
