"""How transformers loads GPTQ and AWQ folders into `PackedLinear` layers, without optimum or gptqmodel.

Which layers are packed is read from the headers of the files, so that none is taken for something that it is not.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer

from qwenkit.config.quant import AWQ_SIDE_FILE, GPTQ_SIDE_FILE, QuantConfig, quant_config
from qwenkit.core.errors import CheckpointError, UnsupportedModelError
from qwenkit.hf.quantized import PackedLinear
from qwenkit.layers.packing import stored_version
from qwenkit.weights.files import DTYPES, BinFile, SafetensorsFile, TensorInfo

_log = logging.getLogger("qwenkit")
_PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")
_VERSIONS = {"gptq": 1, "gptq_v2": 2}
_METHODS = ("gptq", "awq")


class PackedQuantizer(HfQuantizer):
    """Replaces the linear layers that a checkpoint holds packed by `PackedLinear`."""

    requires_calibration = True

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        # Settings may have come from a file beside config.json, which transformers takes for a wish to quantise.
        super().__init__(quantization_config, **{**kwargs, "pre_quantized": True})
        self._settings: QuantConfig | None = None
        self._source = "the checkpoint"

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if not checkpoint_files:
            raise UnsupportedModelError(
                "quantised weights were given as a state_dict, from which their format does not show; "
                "give from_pretrained the folder they are in"
            )
        folder = Path(checkpoint_files[0]).parent
        self._source = str(folder)
        settings = self._settings = self._read_settings(folder)
        tensors = read_headers(checkpoint_files)
        prefix = f"{model.base_model_prefix}."
        found = 0
        for name, module in list(model.named_modules()):
            stored = _stored_name(name, prefix, tensors)
            if stored is None or not isinstance(module, nn.Linear):
                continue
            model.set_submodule(name, packed_layer(stored, module, tensors, settings))
            found += 1
        if not found:
            raise UnsupportedModelError(
                f"{folder} holds no packed layer of this model though it is said to be quantised as {settings}; "
                "to quantise a model use `qwenkit quantize`"
            )

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        layers = [
            m for m in model.modules() if isinstance(m, PackedLinear) and m.qweight.device.type != "meta"
        ]
        settings = self._settings
        if settings is not None and settings.method == "gptq" and layers:
            version = _gptq_version(layers, settings, self._source)
            for layer in layers:
                layer.layout = replace(layer.layout, version=version)
            setattr(self.quantization_config, "format", "gptq_v2" if version == 2 else "gptq")  # noqa: B010
        for layer in layers:
            layer.prepare()

    def _read_settings(self, folder: Path) -> QuantConfig:
        """What the files say, read strictly; keys that transformers does not know are kept for saving."""
        inside = _json_object(folder / "config.json").get("quantization_config")
        method = str(getattr(self.quantization_config.quant_method, "value", "gptq"))
        side = _json_object(folder / (AWQ_SIDE_FILE if method == "awq" else GPTQ_SIDE_FILE))
        settings = quant_config({"quantization_config": inside}, side or None)
        if settings is None:
            settings = quant_config({"quantization_config": self.quantization_config.to_dict()})
        for key, value in (inside or {}).items():
            if not hasattr(self.quantization_config, key):
                setattr(self.quantization_config, key, value)
        if settings is None or settings.method not in _METHODS:
            raise UnsupportedModelError(
                f"{folder} is quantised as {settings}, which cannot be loaded; use a GPTQ or AWQ version of the model"
            )
        return settings

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, PackedLinear):
                model.set_submodule(name, plain_layer(module, dtype))
        return model

    def is_serializable(self) -> bool:
        """The very tensors that were read can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top can be trained."""
        return True


def packed_layer(
    name: str, linear: nn.Linear, tensors: Mapping[str, TensorInfo], settings: QuantConfig
) -> PackedLinear:
    """An empty layer of the sizes of ``linear`` for the tensors that a checkpoint holds of module ``name``.

    Raises:
        CheckpointError: its tensors are not of the sizes that the model and the settings ask for.
    """
    parts = {part: tensors[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in tensors}
    absent = [part for part in ("qzeros", "scales") if part not in parts]
    if linear.bias is not None and "bias" not in parts:
        absent.append("bias")
    if absent:
        raise CheckpointError(
            f"{name}.{absent[0]} is missing though {name}.qweight is there; fetch the files again"
        )
    is_gptq = settings.method == "gptq"
    scales = parts["scales"]
    packed = PackedLinear(
        linear.in_features,
        linear.out_features,
        kind="gptq" if is_gptq else settings.layout or "gemm",
        bits=settings.bits or 4,
        group_size=settings.group_size,
        groups=scales.shape[0] if scales.shape else 1,
        version=_VERSIONS.get(settings.layout or "", 1),
        bias="bias" in parts,
        with_g_idx=is_gptq and "g_idx" in parts,
        desc_act=settings.desc_act,
        dtype=linear.weight.dtype,
        scales_dtype=_float_type(scales, f"{name}.scales"),
        device=linear.weight.device,
        name=name,
    )
    _check_tensors(name, packed, parts)
    return packed


def plain_layer(packed: PackedLinear, dtype: torch.dtype | None = None) -> nn.Linear:
    """The same layer with its numbers in memory; ``dtype`` None: that of the model."""
    dtype = dtype or packed.compute_dtype
    with torch.device("meta"):
        linear = nn.Linear(packed.in_features, packed.out_features, packed.bias is not None)
    linear.weight = nn.Parameter(packed.dequantise(dtype))
    if packed.bias is not None:
        linear.bias = nn.Parameter(packed.bias.detach().to(dtype))
    return linear.train(packed.training)


def read_headers(files: Iterable[str | Path]) -> dict[str, TensorInfo]:
    """Shapes and types of all tensors of a checkpoint's files."""
    out: dict[str, TensorInfo] = {}
    for file in map(Path, files):
        opened = SafetensorsFile(file) if file.suffix == ".safetensors" else BinFile(file)
        try:
            out.update(opened.tensors)
        finally:
            opened.close()
    return out


def _stored_name(name: str, prefix: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """What the file calls a packed module; models without their head lack the first part of its names."""
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        if f"{candidate}.qweight" in tensors:
            return candidate
    return None


def _float_type(info: TensorInfo, name: str) -> torch.dtype:
    dtype = DTYPES.get(info.dtype)
    if dtype is None or not dtype.is_floating_point:
        raise CheckpointError(
            f"{name} has type {info.dtype}, which it has in no GPTQ or AWQ checkpoint; fetch the file again"
        )
    return dtype


def _check_tensors(name: str, packed: PackedLinear, parts: Mapping[str, TensorInfo]) -> None:
    for part, info in parts.items():
        expected = getattr(packed, part, None)
        if expected is None:
            continue
        if info.shape != tuple(expected.shape):
            raise CheckpointError(
                f"{name}.{part} has shape {info.shape}; a layer of {packed.out_features} outputs and "
                f"{packed.in_features} inputs with {packed.layout.bits} bits needs {tuple(expected.shape)}, so compare "
                "bits, group_size and the sizes in the configuration with the file"
            )
        if expected.dtype == torch.int32 and info.dtype != "I32":
            raise CheckpointError(
                f"{name}.{part} has type {info.dtype}, which it has in no GPTQ or AWQ checkpoint; fetch the file again"
            )


def _gptq_version(layers: Sequence[PackedLinear], settings: QuantConfig, source: str) -> int:
    """Which version wrote the zeros: what they themselves say where all are symmetric, else the configuration."""
    said = _VERSIONS.get(settings.layout or "")
    found = {stored_version(layer.qzeros, bits=layer.layout.bits) for layer in layers}
    version = found.pop() if len(found) == 1 else None
    if version and said and version != said:
        _log.warning(
            "%s: the configuration says %s, but the zeros are stored as version %d stores them; they are read as that",
            source,
            settings.layout,
            version,
        )
    return version or said or 1


def _json_object(file: Path) -> dict[str, Any]:
    """An object in a file; nothing where there is no such file."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON ({error}); fetch it again") from None
    return found if isinstance(found, dict) else {}
