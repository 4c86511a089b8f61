"""Helpers shared by tests: tiny models, and real weights in another layout."""
