"""``qwenkit doctor``: which kernels, devices and optional parts are in force, why, and what speed to expect."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from qwenkit.cli.options import JsonFlag

_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor(
    as_json: JsonFlag = False,
    no_speed: Annotated[
        bool, typer.Option("--no-speed", help="Do not measure how fast memory is read, which takes a second.")
    ] = False,
) -> None:
    """Show what this machine offers, what is in force, and what could be better."""
    from qwenkit.weights.doctor import report, speed_report

    checks = report() + ([] if no_speed else speed_report())
    if as_json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], ensure_ascii=False, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        what = Text(check.value)
        if check.hint:
            what.append(f"\n{check.hint}", "dim")
        table.add_row(Text(check.status, _COLOURS[check.status]), Text(check.name), what)
    Console(highlight=False).print(table)
