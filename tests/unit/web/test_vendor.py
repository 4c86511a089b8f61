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
    if re.match(r"\| (fonts|\S+\.(js|css|woff2))[, ]", line)
]
PACKAGES = [row for row in ROWS if len(row) == 5]
DIGESTS = {name: (int(size), digest) for name, size, digest in (row for row in ROWS if len(row) == 3)}


def test_every_file_is_recorded() -> None:
    files = {path.relative_to(VENDOR).as_posix() for path in VENDOR.rglob("*") if path.is_file()}
    assert set(DIGESTS) == {
        name for name in files if name != "README.md" and not name.startswith("licences/")
    }
    assert {row[0].split(",")[0] for row in PACKAGES} - {"fonts"} == {
        name for name in files if name.endswith(".js")
    }


@pytest.mark.parametrize("name", DIGESTS)
def test_files_are_as_recorded(name: str) -> None:
    content = (VENDOR / name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == DIGESTS[name]


@pytest.mark.parametrize("row", PACKAGES, ids=lambda row: row[1])
def test_every_package_has_its_licence(row: list[str]) -> None:
    _, name, version, licence, source = row
    assert source == f"https://www.npmjs.com/package/{name.removesuffix('-fonts')}/v/{version}"
    text = (VENDOR / "licences" / f"{name}.txt").read_text(encoding="utf-8")
    words = {
        "MIT": "Permission is hereby granted",
        "BSD": "Redistribution and use",
        "Apache": "Apache License",
        "OFL": "SIL OPEN FONT LICENSE Version 1.1",
    }
    assert words[re.split(r"[-\d]", licence)[0]] in text


def test_no_licence_is_left_over() -> None:
    assert {path.stem for path in (VENDOR / "licences").iterdir()} == {row[1] for row in PACKAGES}
