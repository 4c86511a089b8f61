"""Which quantizer transformers uses for GPTQ and AWQ: its own where the packages that it needs are installed, else ours.

Models of `qwenkit.hf` always get ours, and also find settings in the old files beside config.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AwqConfig, GPTQConfig
from transformers.quantizers import auto
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_gptqmodel_available, is_optimum_available

from qwenkit.config.quant import AWQ_SIDE_FILE, GPTQ_SIDE_FILE
from qwenkit.core.errors import CheckpointError
from qwenkit.hf.quantizer import PackedQuantizer

_always_ours: ContextVar[bool] = ContextVar("qwenkit_quantizer", default=False)
_HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


@dataclass(frozen=True)
class _Choice:
    """Stands in the table of transformers in place of a class, and is called like one."""

    method: str
    theirs: Any

    def __call__(self, quantization_config: Any, **kwargs: Any) -> Any:
        is_packed = kwargs.get("pre_quantized", True)
        if _always_ours.get() or (is_packed and not can_run_theirs(self.method)):
            return PackedQuantizer(quantization_config, **kwargs)
        return self.theirs(quantization_config, **kwargs)


def register_quantizer() -> None:
    """Lets transformers load GPTQ and AWQ folders of any model; doing it again changes nothing."""
    table: dict[str, Any] = auto.AUTO_QUANTIZER_MAPPING
    for method in ("gptq", "awq"):
        if not isinstance(table[method], _Choice):
            table[method] = _Choice(method, table[method])


def can_run_theirs(method: str) -> bool:
    """Whether the packages are installed that transformers itself loads such folders with."""
    return bool(is_gptqmodel_available()) and (method == "awq" or bool(is_optimum_available()))


@contextmanager
def packed_loading(source: Any, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Inside, packed folders are loaded into our layers whatever is installed.

    Args:
        source: folder or name on the hub.
        kwargs: of from_pretrained.

    Yields:
        The same, with the settings of an old folder's file beside config.json.
    """
    settings = settings_beside(source, kwargs)
    token = _always_ours.set(True)
    try:
        yield kwargs if settings is None else {**kwargs, "quantization_config": settings}
    finally:
        _always_ours.reset(token)


def settings_beside(source: Any, kwargs: dict[str, Any]) -> GPTQConfig | AwqConfig | None:
    """What quantize_config.json or quant_config.json says where config.json is silent; None: there is no such file.

    Args:
        source: folder or name on the hub.
        kwargs: of from_pretrained.
    """
    config = kwargs.get("config")
    if not isinstance(source, str | Path) or kwargs.get("quantization_config") is not None:
        return None
    hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if kwargs.get(key) is not None}
    if getattr(config, "quantization_config", None) is not None:
        return None
    if config is None and "quantization_config" in _json_of(source, "config.json", hub):
        return None
    gptq = _json_of(source, GPTQ_SIDE_FILE, hub)
    if gptq:
        return GPTQConfig(**{key: value for key, value in gptq.items() if key != "quant_method"})
    awq = _json_of(source, AWQ_SIDE_FILE, hub)
    if awq:
        return AwqConfig(
            bits=awq.get("w_bit", 4),
            group_size=awq.get("q_group_size", 128),
            zero_point=awq.get("zero_point", True),
            version=awq.get("version", "gemm"),
            modules_to_not_convert=awq.get("modules_to_not_convert"),
        )
    return None


def _json_of(source: str | Path, name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """An object in a file of a folder or repository; nothing where there is no such file."""
    file = cached_file(
        str(source),
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    if file is None:
        return {}
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON ({error}); fetch it again") from None
    return found if isinstance(found, dict) else {}
