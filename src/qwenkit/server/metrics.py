"""Counts and times for Prometheus, in a registry of their own.

Histograms are filled by bisection and turned into samples only when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from qwenkit._version import __version__
from qwenkit.backends.base import Backend

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_MIDDLE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the page."""


class Histogram:
    """How many values fell below each bound."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text = name, text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Adds a value, ``count`` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def family(self) -> Metric:
        """As Prometheus wants it."""
        labels = [*(str(bound) for bound in self._bounds), "+Inf"]
        buckets = list(zip(labels, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(self.name, self.text, buckets=buckets, sum_value=self._sum)


class Metrics(Collector):
    """All numbers of one server; written by the event loop, read by the metrics page.

    Args:
        backend: whose counters are shown.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.first_token = Histogram(
            "qwenkit_time_to_first_token_seconds", "From the request to its first token.", _MIDDLE
        )
        self.inter_token = Histogram(
            "qwenkit_inter_token_latency_seconds", "Between two tokens of a reply.", _SHORT
        )
        self.whole = Histogram(
            "qwenkit_request_duration_seconds", "From a request for text to the end of its answer.", _LONG
        )
        self._requests: dict[tuple[str, str, str], int] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def count_request(self, method: str, path: str, status: int) -> None:
        """Takes note of an answered request; ``path`` must come from a bounded set."""
        key = (method, path, str(status))
        self._requests[key] = self._requests.get(key, 0) + 1

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See Collector; called for every page."""
        info = GaugeMetricFamily("qwenkit_info", "Version and model.", labels=["version", "model"])
        info.add_metric([__version__, self._backend.info.model], 1)
        yield info
        yield from self._engine()
        yield from (h.family() for h in (self.first_token, self.inter_token, self.whole))
        requests = CounterMetricFamily(
            "qwenkit_http_requests", "Answered requests.", labels=["method", "path", "status"]
        )
        for key, count in list(self._requests.items()):
            requests.add_metric(list(key), count)
        yield requests

    def _engine(self) -> Iterator[Metric]:
        stats = self._backend.stats()
        yield GaugeMetricFamily("qwenkit_requests_running", "Replies being generated.", stats.running)
        yield GaugeMetricFamily(
            "qwenkit_requests_waiting", "Replies that wait for their turn.", stats.waiting
        )
        tokens = CounterMetricFamily(
            "qwenkit_tokens",
            "Tokens of prompts, of replies, and of prompts found in the cache.",
            labels=["kind"],
        )
        for kind, count in (
            ("prompt", stats.prompt_tokens),
            ("generated", stats.generated_tokens),
            ("cached", stats.cached_tokens),
        ):
            tokens.add_metric([kind], count)
        yield tokens
        pages = GaugeMetricFamily("qwenkit_cache_pages", "Pages of the key-value cache.", labels=["state"])
        for state, count in (
            ("all", stats.pages),
            ("used", stats.pages_used),
            ("cached", stats.pages_cached),
        ):
            pages.add_metric([state], count)
        yield pages
        usage = stats.pages_used / stats.pages if stats.pages else 0.0
        yield GaugeMetricFamily("qwenkit_cache_usage_ratio", "Part of the cache that replies hold.", usage)
        hits = stats.cached_tokens / stats.prompt_tokens if stats.prompt_tokens else 0.0
        yield GaugeMetricFamily(
            "qwenkit_prefix_hit_ratio", "Part of all prompt tokens found in the cache.", hits
        )
        yield CounterMetricFamily(
            "qwenkit_preemptions", "Replies that lost their cache to others.", stats.preemptions
        )
        yield CounterMetricFamily("qwenkit_engine_steps", "Steps of the engine.", stats.steps)
        guesses = CounterMetricFamily(
            "qwenkit_speculative_tokens",
            "Tokens guessed by speculative decoding, and those that were right.",
            labels=["kind"],
        )
        for kind, count in (("proposed", stats.proposed_tokens), ("accepted", stats.accepted_tokens)):
            guesses.add_metric([kind], count)
        yield guesses
