"""Serving a backend over HTTP: protocol-neutral machinery, and one translation per protocol beside it."""
