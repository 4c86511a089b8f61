"""The whole report of ``qwenkit doctor``: the machine and its kernels, then the cache and the models in it."""

from __future__ import annotations

from qwenkit.core.environment import cache_dir
from qwenkit.kernels import doctor
from qwenkit.kernels.doctor import Check
from qwenkit.weights import cache
from qwenkit.weights.sources import DEFAULT_MODEL, KNOWN, local_models
from qwenkit.weights.wheel import cached_wheel_model


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
