"""Files for deployment: containers, compose, systemd."""

from __future__ import annotations

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "": 1}


def seconds(text: str) -> float:
    """A duration as compose and systemd write it, with one unit."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(number) * _UNITS[text[len(number) :]]
