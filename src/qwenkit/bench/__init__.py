"""Measuring: load on a server."""
