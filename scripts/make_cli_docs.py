"""Writes docs/cli.md from the command line itself; ``--check`` only says whether the file is up to date.

python scripts/make_cli_docs.py [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from qwenkit.cli.main import app

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# Command line

Made by `scripts/make_cli_docs.py` from the commands themselves; do not edit by hand.

MODEL is a folder with config.json, a .gguf file, a built-in name (`smollm2-135m`), a hub id (`org/name`, `org/name@revision`,
`org/name:file.gguf`) or `modelscope:org/name`; for `chat`, `serve` and `web` also
[`dashscope:NAME`](protocol-dashscope.md#models-of-the-service). Sampling options that are not given are as the model's generation_config asks.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | an error, told in one sentence on stderr; `QWENKIT_TRACEBACK=1` shows where it arose |
| 130 | stopped with Ctrl-C |
| 141 | whoever read the output has gone |

| environment variable | meaning |
|---|---|
| `QWENKIT_CACHE` | where built-in models are kept (else `qwenkit` in `XDG_CACHE_HOME` or `~/.cache`) |
| `QWENKIT_HOME` | where the history of the chat is kept (else `qwenkit` in `XDG_DATA_HOME` or `~/.local/share`) |
| `QWENKIT_API_KEY` | key that is sent to a server (else `OPENAI_API_KEY`) |
| `DASHSCOPE_API_KEY` | key that is sent to DashScope for models named `dashscope:NAME` |
| `DASHSCOPE_HTTP_BASE_URL` | where DashScope is (else `https://dashscope.aliyuncs.com/api/v1`) |
| `QWENKIT_ISA` | instruction set of the CPU kernels: avx512, avx2, portable, or reference for plain torch |
| `QWENKIT_API_KEYS` | keys that `qwenkit serve` accepts, between commas |
| `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` | as everywhere with the Hugging Face hub |
"""


def render() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    return "\n".join([HEAD, *(_command(name, command) for name, command in _flat(group))])


def _flat(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name; those of a group after one another."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _flat(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _command(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    pieces = [piece.strip("{}") for piece in command.collect_usage_pieces(context)]
    usage = " ".join(["qwenkit", name, *pieces])
    text = re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", command.help)
    rows = [_row(p) for p in command.params if p.name != "help"]
    table = ["| option | meaning | default |", "|---|---|---|", *rows]
    return "\n".join([f"## {name}", "", f"`{usage}`", "", text, "", *table, ""])


def _row(parameter: Any) -> str:
    value = f" {parameter.metavar}" if parameter.metavar else ""  # flags have none
    is_argument = parameter.param_type_name == "argument"
    options = [*reversed(parameter.opts), *parameter.secondary_opts]  # --sym, --no-sym
    names = [parameter.metavar] if is_argument else [name + value for name in options]
    head = ", ".join(f"`{name}`" for name in names).replace("|", r"\|")
    default = parameter.default
    is_none = default is None or default is False or default in ((), [])
    shown = "" if is_none or callable(default) else f"`{default}`"
    text = re.sub(r"(<\|.*?\|>)", r"`\1`", parameter.help or "").replace("|", r"\|")
    return f"| {head} | {text} | {shown} |"


def main() -> None:
    """Writes or checks."""
    page = render()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") != page:
            raise SystemExit("docs/cli.md is stale; run python scripts/make_cli_docs.py")
        return
    TARGET.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
