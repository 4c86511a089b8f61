"""A server process without a model: ``python -m tests.e2e.serve_scripted REPLY DELAY DRAIN_TIMEOUT``."""

from __future__ import annotations

import sys

from qwenkit.server.app import create_app
from qwenkit.server.options import ServerOptions
from qwenkit.server.run import bind, serve, url_of
from tests.support.http import scripted

if __name__ == "__main__":
    reply, delay, drain_timeout = sys.argv[1:]
    backend = scripted(reply, delay=float(delay))
    listener = bind("127.0.0.1", 0)
    app = create_app(backend, ServerOptions(drain_timeout=float(drain_timeout), has_access_log=False))
    serve(app, listener, on_start=lambda: print(url_of(listener), flush=True))
    print("stopped", flush=True)
