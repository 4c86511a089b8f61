"""Continuous batching: many requests share one network and one paged cache, and none sees another."""
