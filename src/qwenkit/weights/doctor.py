"""The whole report of ``qwenkit doctor``: the machine and its kernels, then the cache and the models in it.

On request also how fast memory is read, and what that lets models generate at most.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from qwenkit.core.environment import cache_dir
from qwenkit.core.errors import QwenkitError
from qwenkit.kernels import cpu, doctor
from qwenkit.kernels.bandwidth import Bandwidth, read_bandwidth
from qwenkit.kernels.doctor import Check
from qwenkit.weights import cache
from qwenkit.weights.sources import DEFAULT_MODEL, KNOWN, LocalModel, local_models
from qwenkit.weights.wheel import cached_wheel_model

_SECONDS_FOR_MODELS = 1.5
"""For reading headers; a hub's cache may hold a great many."""


def report() -> list[Check]:
    """The machine, its kernels, the cache and the models at hand. Never raises."""
    own = (("cache", _cache), ("default model", _default_model), ("local models", _local_models))
    return doctor.report() + doctor.run_checks(own)


def _cache() -> Check:
    folder = cache_dir()
    free = cache.free_space(folder)
    if free is None:
        return Check("cache", str(folder), "warn", "its free space cannot be read")
    value = f"{folder}, {cache.format_size(free)} free"
    model = KNOWN[DEFAULT_MODEL]
    if cached_wheel_model(model) is None and free < model.wheel_size + model.size:
        return Check(
            "cache", value, "warn", "too little room for the default model; point QWENKIT_CACHE elsewhere"
        )
    return Check("cache", value)


def _default_model() -> Check:
    model = KNOWN[DEFAULT_MODEL]
    path = cached_wheel_model(model)
    if path is not None:
        return Check("default model", f"{model.name}, {path}")
    hint = f"the first 'qwenkit chat' fetches it ({cache.format_size(model.wheel_size)})"
    return Check("default model", f"{model.name}, not fetched yet", "missing", hint)


def _local_models() -> Check:
    names = [model.name for model in local_models()]
    return Check("local models", ", ".join(names) or "none in the caches")


def speed_report() -> list[Check]:
    """How fast memory is read, and the most that models can generate with it: measured, in about a second.

    Never raises.
    """
    return doctor.run_checks((("speed", _speed),))


def _speed() -> Iterator[Check]:
    import torch

    found = read_bandwidth(min(torch.get_num_threads(), cpu.usable_cores()))
    threads = f"{found.threads} thread{'s' * (found.threads > 1)}"
    yield Check(
        "memory read",
        f"{found.bytes_per_second / 1e9:.1f} GB/s",
        "ok",
        f"the best of several passes of {threads} over {cache.format_size(found.buffer_bytes)}",
        {"bytes_per_second": found.bytes_per_second, "threads": found.threads},
    )
    expected = list(_expected(found)) or list(_typical(found))
    yield from expected


def _expected(found: Bandwidth) -> Iterator[Check]:
    """A line for every model at hand that runs here, as far as time allows."""
    end, models = time.monotonic() + _SECONDS_FOR_MODELS, local_models()
    for number, model in enumerate(models):
        if number and time.monotonic() > end:
            yield Check("expected speed", f"{len(models) - number} more models are not looked at")
            return
        try:
            num_bytes = _step_bytes(model)
        except (QwenkitError, OSError):
            continue  # inspect says what is wrong with it
        yield _limit(model.name, num_bytes, found)


def _step_bytes(model: LocalModel) -> int:
    import torch

    from qwenkit.weights.checkpoint import open_checkpoint
    from qwenkit.weights.traffic import step_weight_bytes

    dtype = torch.bfloat16 if cpu.cpu_has_bf16() else torch.float32
    checkpoint = open_checkpoint(model.path)
    try:
        return step_weight_bytes(checkpoint, dtype)
    finally:
        checkpoint.store.close()


def _typical(found: Bandwidth) -> Iterator[Check]:
    from qwenkit.weights.traffic import TYPICAL

    for shape in TYPICAL:
        yield _limit(shape.name, shape.step_bytes, found)


def _limit(name: str, num_bytes: int, found: Bandwidth) -> Check:
    speed = found.bytes_per_second / num_bytes
    return Check(
        "expected speed",
        f"{name}: up to {speed:.3g} tokens/s",
        "ok",
        f"on the CPU, one reply: each token reads {num_bytes / 1e6:,.0f} MB of weights; qwenkit bench speed measures",
        {"tokens_per_second": speed, "bytes_per_token": num_bytes},
    )
