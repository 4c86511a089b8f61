"""deploy/nginx.conf as a running nginx on free ports of this machine, with a certificate made for the moment."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).parents[2] / "deploy" / "nginx.conf"
_AROUND = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def programs() -> tuple[str, str] | None:
    """nginx and openssl; None where one is missing."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    openssl = shutil.which("openssl")
    return (nginx, openssl) if nginx and openssl else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_proxy(folder: Path, upstream: int) -> Iterator[int]:
    """The port that speaks TLS, until the block is left."""
    found = programs()
    assert found is not None
    nginx, openssl = found
    make = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout {folder}/key -out {folder}/cert"
    subprocess.run(make.split(), check=True, capture_output=True)
    plain, port = free_port(), free_port()
    site = FILE.read_text(encoding="utf-8")
    for pattern, value in (
        (r"listen \[::\].*\n", ""),  # not every machine has it
        (r"listen 80;", f"listen 127.0.0.1:{plain};"),
        (r"listen 443 ", f"listen 127.0.0.1:{port} "),
        (r"127\.0\.0\.1:8000", f"127.0.0.1:{upstream}"),
        (r"(ssl_certificate) \S+;", rf"\1 {folder}/cert;"),
        (r"(ssl_certificate_key) \S+;", rf"\1 {folder}/key;"),
    ):
        site, count = re.subn(pattern, value, site)
        assert count, pattern
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(_AROUND.format(folder=folder))
    command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr or "http2" in checked.stderr, checked.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _wait(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.02)


def insecure_context() -> ssl.SSLContext:
    """For a certificate that nobody signed."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
