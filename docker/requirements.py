"""Prints what pyproject.toml asks for, one requirement a line: ``python requirements.py pyproject.toml EXTRA[,EXTRA...]``.

The image installs these before the package itself, so that a change of our code changes one small layer only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tomllib


def requirements(pyproject: str, extras: list[str]) -> list[str]:
    """The requirements of the package and of its extras.

    Raises:
        KeyError: there is no such extra.
    """
    project = tomllib.loads(pyproject)["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} pyproject.toml EXTRA[,EXTRA...]")
    wanted = [extra.strip() for extra in sys.argv[2].split(",") if extra.strip()]
    try:
        print("\n".join(requirements(Path(sys.argv[1]).read_text(encoding="utf-8"), wanted)))
    except KeyError as error:
        sys.exit(
            f"pyproject.toml has no extra named {error}; EXTRAS is a list between commas, such as server,hub"
        )
