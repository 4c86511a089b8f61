"""``qwenkit pull``: download a model."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenkit.cli import loading


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Short name, hub id or modelscope:ID.")],
    force: Annotated[bool, typer.Option("--force", help="Download again what is already there.")] = False,
) -> None:
    """Download a model, check it, and print where it lies."""
    print(loading.fetch(model, force=force))
