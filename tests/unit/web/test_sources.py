"""The page's own files: texts in both languages, imports that lead somewhere, nothing that the policy would block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwenkit.web.files import STATIC

SCRIPTS = sorted((STATIC / "js").rglob("*.js"))
STYLES = sorted((STATIC / "css").glob("*.css"))
INDEX = (STATIC / "index.html").read_text(encoding="utf-8")
_TEXT = re.compile(r'^\s*"([\w.-]+)":\s*(.+?),?\s*$', re.MULTILINE)
_IMPORT = re.compile(r'(?:from|import)\s*\(?\s*"(\.[^"]+)"')


def _texts(language: str) -> dict[str, str]:
    return dict(_TEXT.findall((STATIC / "js" / "i18n" / f"{language}.js").read_text(encoding="utf-8")))


def _plain(texts: dict[str, str]) -> dict[str, str]:
    """Without forms for one thing, which Chinese has none of."""
    return {key: text for key, text in texts.items() if not key.endswith(".one")}


def test_both_languages_say_the_same_things() -> None:
    english, chinese = _plain(_texts("en")), _plain(_texts("zh"))
    assert len(english) > 100
    assert set(english) == set(chinese)
    values = re.compile(r"\{(\w+)\}")
    for key, text in english.items():
        assert sorted(set(values.findall(text))) == sorted(set(values.findall(chinese[key]))), key


def test_chinese_is_chinese() -> None:
    alike = {
        key
        for key, text in _texts("zh").items()
        if text == _texts("en").get(key) and re.search("[a-z]{4}", text)
    }
    assert {key for key in alike if not key.startswith(("language.", "page.", "transfer.", "app."))} == set()


def test_texts_that_the_index_names_exist() -> None:
    named = re.findall(r'data-t(?:-label|-placeholder)?="([^"]+)"', INDEX)
    assert named
    assert set(named) <= set(_texts("en"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_import_what_is_there_and_stay_small(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    for target in _IMPORT.findall(source):
        assert (script.parent / target).is_file(), target
    assert len(source.splitlines()) < 400


def test_the_index_asks_for_every_module_that_the_first_one_needs() -> None:
    """Else each of them is found only once the one before it was read."""
    static_import = re.compile(r'^(?:(?:import\b|}|export\b)[^"\n]* from |import )"(\.[^"]+)";', re.MULTILINE)
    needed, left = set(), [STATIC / "js" / "main.js"]
    while left:
        script = left.pop()
        found = {(script.parent / t).resolve() for t in static_import.findall(script.read_text("utf-8"))}
        left += found - needed
        needed |= found
    preloaded = re.findall(r'rel="modulepreload" href="static/([^"]+)"', INDEX)
    assert len(preloaded) == len(set(preloaded)) > 30
    assert {(STATIC / name).resolve() for name in preloaded} == needed


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_never_read_text_as_markup_or_code(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    banned = r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|setAttribute\(\"style)"
    assert re.findall(banned, source) == []


@pytest.mark.parametrize("style", STYLES, ids=lambda path: path.stem)
def test_styles_ask_nobody_else(style: Path) -> None:
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8"))
