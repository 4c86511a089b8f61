"""What browsers are sent for the page: types, policies, revalidation, gzip, and nothing beside the listed files."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenkit.web.files import STATIC, Asset, read_assets
from qwenkit.web.page import CONTENT_SECURITY_POLICY, page_handlers
from tests.support.http import Answer, Live, live, scripted


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with a small page and a key."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "sub").mkdir()
    (folder / "index.html").write_text("<!doctype html>" + "x" * 500)
    (folder / "app.js").write_text("let a = 1;\n" * 50)
    (folder / "sub" / "style.css").write_text("p{}")
    (folder / "icon.png").write_bytes(b"\x89PNG" + b"0" * 500)
    (folder / "secret.py").write_text("no")
    (folder.parent / "outside.js").write_text("no")
    pages = page_handlers(read_assets(folder))
    with live(scripted("hi"), pages=pages, api_keys=("secret",)) as server:
        yield server


def test_files_come_with_their_types_and_without_a_key(page: Live) -> None:
    types = {
        "/": "text/html; charset=utf-8",
        "/static/app.js": "text/javascript; charset=utf-8",
        "/static/sub/style.css": "text/css; charset=utf-8",
        "/static/icon.png": "image/png",
    }
    for path, kind in types.items():
        answer = page.ask(path)
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
    assert page.ask("/static/sub/style.css").body == b"p{}"
    assert page.ask("/v1/models").status == 401


def test_every_file_is_sent_with_the_strict_policy(page: Live) -> None:
    for path in ("/", "/static/app.js"):
        headers = page.ask(path).headers
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY


def test_head_says_the_same_without_a_body(page: Live) -> None:
    whole, head = page.ask("/"), page.ask("/", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    for name in ("content-length", "content-type", "etag"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [
        ("gzip, deflate, br", True),
        ("deflate, gzip;q=0.5", True),
        ("*", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
    ],
)
def test_text_is_packed_for_those_who_take_it(page: Live, accepted: str, is_packed: bool) -> None:
    answer = _ask(page, "/static/app.js", accepted)
    assert (answer.headers.get("content-encoding") == "gzip") == is_packed
    body = gzip.decompress(answer.body) if is_packed else answer.body
    assert body == b"let a = 1;\n" * 50
    assert answer.headers["vary"] == "Accept-Encoding"


def test_pictures_and_tiny_files_are_not_packed(page: Live) -> None:
    for path in ("/static/icon.png", "/static/sub/style.css"):
        assert "content-encoding" not in _ask(page, path, "gzip").headers


def test_what_a_browser_has_is_not_sent_again(page: Live) -> None:
    plain, packed = (_ask(page, "/", accepted).headers["etag"] for accepted in ("", "gzip"))
    assert plain != packed
    for tags in (plain, packed, f"W/{plain}", f'"other", {packed}', "*"):
        answer = page.ask("/", headers={"if-none-match": tags})
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert page.ask("/", headers={"if-none-match": '"other"'}).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/index.html",
        "/static/secret.py",
        "/static/../outside.js",
        "/static/%2e%2e/outside.js",
        "/static/..%2foutside.js",
        "/static/sub/../app.js",
        "/static//app.js",
        "/static/app.js/",
        "/static/app.js%00",
        "/static/APP.JS",
        "//static/app.js",
    ],
)
def test_nothing_else_is_there(page: Live, path: str) -> None:
    assert page.ask(path, headers={"authorization": "Bearer secret"}).status == 404


def test_a_page_takes_no_posts(page: Live) -> None:
    """Not even without a key: a protocol may have an endpoint at the same path."""
    for path in ("/", "/static/app.js"):
        assert page.ask(path, {}).status == 401
    assert page.ask("/static/app.js", {}, headers={"authorization": "Bearer secret"}).status == 405


def test_looking_at_the_page_is_not_logged(page: Live, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", "qwenkit.access"),
        live(scripted("hi"), pages=page_handlers(), has_access_log=True) as server,
    ):
        server.ask("/static/vendor/katex.js")
        server.ask("/static/vendor/katex.js", {})
        server.ask("/v1/models")
    assert [record.getMessage().split()[2] for record in caplog.records] == ["POST", "GET"]


def test_every_file_of_the_package_is_served() -> None:
    files = {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()}
    names = {path.removeprefix("/static/") for path in read_assets() if path != "/"}
    assert names == files - {"index.html"}
    assert "index.html" in files


def test_the_index_names_only_files_that_are_there_and_relative() -> None:
    assets = read_assets()
    for path in _named_in(assets["/"]):
        assert path.startswith("static/"), f"{path}: a proxy may serve the page below another path"
        assert f"/{path}" in assets


def test_the_page_weighs_little() -> None:
    """What a browser could ever load of it, before packing."""
    assets = {path: a for path, a in read_assets().items() if "/licences/" not in path}
    assert sum(len(asset.content) for asset in assets.values()) < 1_500_000
    assert sum(len(asset.packed or asset.content) for asset in assets.values()) < 650_000


def _named_in(index: Asset) -> list[str]:
    text = index.content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|\bon\w+\s*=\s*[\"']|\bstyle\s*=\s*[\"']", text), (
        "inline code is blocked"
    )
    named = re.findall(r"""(?:src|href)=["']([^"'#]+)""", text)
    assert named
    return named


def _ask(page: Live, path: str, accepted: str) -> Answer:
    return page.ask(path, headers={"accept-encoding": accepted})


def test_reading_takes_only_what_pages_are_made_of(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hi")
    (tmp_path / "notes.swp").write_text("no")
    assert list(read_assets(tmp_path)) == ["/"]
