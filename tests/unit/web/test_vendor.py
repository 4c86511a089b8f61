"""The libraries of the page are the recorded ones, and each has its licence."""

from __future__ import annotations

import hashlib
import re

import pytest

from qwenkit.web.files import STATIC

VENDOR = STATIC / "vendor"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (VENDOR / "README.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \S+\.js ", line)
]
PACKAGES = [row for row in ROWS if len(row) == 5]
DIGESTS = {name: (int(size), digest) for name, size, digest in (row for row in ROWS if len(row) == 3)}


def test_every_file_is_recorded() -> None:
    assert set(DIGESTS) == {path.name for path in VENDOR.glob("*.js")} == {row[0] for row in PACKAGES}


@pytest.mark.parametrize("name", DIGESTS)
def test_files_are_as_recorded(name: str) -> None:
    content = (VENDOR / name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == DIGESTS[name]


@pytest.mark.parametrize("row", PACKAGES, ids=lambda row: row[1])
def test_every_package_has_its_licence(row: list[str]) -> None:
    _, name, version, licence, source = row
    assert source == f"https://www.npmjs.com/package/{name}/v/{version}"
    text = (VENDOR / "licences" / f"{name}.txt").read_text(encoding="utf-8")
    words = {
        "MIT": "Permission is hereby granted",
        "BSD": "Redistribution and use",
        "Apache": "Apache License",
    }
    assert words[re.split(r"[-\d]", licence)[0]] in text


def test_no_licence_is_left_over() -> None:
    assert {path.stem for path in (VENDOR / "licences").iterdir()} == {row[1] for row in PACKAGES}
