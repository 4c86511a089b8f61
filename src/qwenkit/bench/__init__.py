"""Measuring: a model's speed and memory on this machine, and load on a server."""
