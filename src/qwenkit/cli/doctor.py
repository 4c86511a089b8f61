"""``qwenkit doctor``: which kernels, devices and optional parts are in force, and why."""

from __future__ import annotations

import json

from qwenkit.cli.options import JsonFlag

_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor(as_json: JsonFlag = False) -> None:
    """Show what this machine offers, what is in force, and what could be better."""
    from qwenkit.kernels.doctor import report

    rows = [tuple(row) for row in report()]
    if as_json:
        keys = ("name", "value", "status", "hint")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], ensure_ascii=False, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "name", "value", "hint", box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.overflow = "fold"
    for name, value, status, hint in rows:
        table.add_row(Text(status, _COLOURS.get(status, "")), Text(name), Text(str(value)), Text(hint or ""))
    Console(highlight=False).print(table)
