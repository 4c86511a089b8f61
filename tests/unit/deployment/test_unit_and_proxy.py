"""The systemd unit and nginx's file: values that must fit the server's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qwenkit.cli.serve import HttpOptions
from tests.unit.deployment import seconds

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "deploy" / "qwenkit.service"
SETTINGS = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE))
NGINX = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")


def nginx(name: str) -> str:
    """The value of a directive, which stands there once."""
    (value,) = re.findall(rf"^\s*{name} (.*);", NGINX, re.MULTILINE)
    return str(value)


def test_the_unit_stops_as_the_server_does() -> None:
    drain = re.search(r"--drain-timeout (\d+)", UNIT.read_text(encoding="utf-8"))
    assert drain
    assert SETTINGS["KillSignal"] == "SIGTERM"
    assert SETTINGS["KillMode"] == "mixed"
    assert seconds(SETTINGS["TimeoutStopSec"]) > float(drain[1]) + 5
    assert SETTINGS["Restart"] == "on-failure"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DynamicUser", "yes"),
        ("StateDirectory", "qwenkit"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("LoadCredential", "api_keys:/etc/qwenkit/api_keys"),
    ],
)
def test_the_unit_gives_few_rights(name: str, value: str) -> None:
    assert SETTINGS[name] == value


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    copy = tmp_path / "qwenkit.service"
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/qwenkit/bin/qwenkit", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert "qwenkit.service" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout[-2000:]  # an exposure of at most 2 out of 10


def test_nginx_lets_streams_through_and_bodies_up_to_the_servers_limit() -> None:
    assert nginx("proxy_buffering") == "off"
    assert nginx("proxy_http_version") == "1.1"
    assert float(nginx("client_max_body_size").removesuffix("m")) == HttpOptions().max_body_mb
    assert seconds(nginx("proxy_read_timeout")) >= 600
    assert seconds(nginx("keepalive_timeout")) < 75  # of the server
    assert nginx("proxy_next_upstream") == "off"
    assert "TLSv1.1" not in nginx("ssl_protocols")
