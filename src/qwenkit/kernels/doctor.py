"""What this machine offers and which kernels will be used on it, one line each.

Every fact is read on its own: what cannot be read becomes a warning, never an exception. The cache and the models
are the business of weights/doctor.py, which adds them to this report.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qwenkit.kernels import cpu, gpu, native

Status: TypeAlias = Literal["ok", "warn", "missing"]

# Linux's spelling -> the usual one.
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX512F",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-int8",
    "amx_bf16": "AMX-bf16",
}
_OPTIONAL = {
    "modelscope": ("hub", "models from ModelScope"),
    "transformers": ("bench", "comparisons with transformers"),
}
_LOW_MEMORY = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Check:
    """One fact about the machine."""

    name: str
    value: str
    status: Status = "ok"
    hint: str = ""
    """What to do, where something is to be done, or why it is so."""
    numbers: dict[str, float] = field(default_factory=dict)
    """What is measured or computed, for programs."""


def report() -> list[Check]:
    """Everything that decides which kernels run and how fast. Never raises."""
    makers: tuple[tuple[str, Callable[[], Check | Iterable[Check]]], ...] = (
        ("python", _python),
        ("platform", _platform),
        ("cpu", lambda: Check("cpu", cpu.cpu_model())),
        ("cores", _cores),
        ("memory", _memory),
        ("cpu features", _features),
        ("torch", _torch),
        ("torch threads", _threads),
        ("dtype", _dtype),
        ("gpu", _gpus),
        ("gpu kernels", _gpu_kernels),
        ("network", _network),
        ("kernels", _kernels),
        ("optional packages", _packages),
        ("c compiler", _compiler),
    )
    return run_checks(makers)


def run_checks(makers: Iterable[tuple[str, Callable[[], Check | Iterable[Check]]]]) -> list[Check]:
    """Runs named checks; one that fails becomes a warning with the reason."""
    checks: list[Check] = []
    for name, make in makers:
        try:
            made = make()
            checks += [made] if isinstance(made, Check) else list(made)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            checks.append(Check(name, "unknown", "warn", f"could not be read ({reason})"))
    return checks


def _python() -> Check:
    return Check("python", f"{platform.python_implementation()} {platform.python_version()}")


def _platform() -> Check:
    system = platform.system()
    value = f"{system} {platform.release()} {platform.machine()}"
    if system == "Linux":
        return Check("platform", value)
    return Check("platform", value, "warn", "only Linux is tested")


def _cores() -> Check:
    usable, present = cpu.usable_cores(), os.cpu_count() or 1
    if usable >= present:
        return Check("cores", str(usable))
    return Check(
        "cores", f"{usable} of {present}", "ok", "the rest is held back by the affinity or the container"
    )


def _memory() -> Check:
    total, available = cpu.total_memory(), cpu.available_memory()
    if total is None:
        return Check("memory", "unknown", "warn", "could not be read here")
    value = f"{available / 1e9:.1f} GB available of {total / 1e9:.1f} GB"
    if available < _LOW_MEMORY:
        return Check("memory", value, "warn", "close other programs, or use a smaller or a quantised model")
    return Check("memory", value)


def _features() -> Check:
    flags = cpu.cpu_features()
    if flags is None:
        return Check(
            "cpu features", "unknown", "warn", "read from /proc/cpuinfo, which this system does not have"
        )
    names = [label for flag, label in _FEATURES.items() if flag in flags]
    if "avx2" not in flags and platform.machine() in {"x86_64", "AMD64"}:
        return Check(
            "cpu features", ", ".join(names) or "none of note", "warn", "without AVX2 inference is slow"
        )
    return Check("cpu features", ", ".join(names) or "none of note")


def _torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("torch", "not found", "missing", f"pip install torch ({error})")
    return Check("torch", torch.__version__)


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), cpu.usable_cores()
    if threads > cores:
        return Check(
            "torch threads", str(threads), "warn", f"more than the {cores} usable cores; set OMP_NUM_THREADS"
        )
    return Check("torch threads", str(threads))


def _dtype() -> Check:
    if cpu.cpu_has_bf16():
        return Check("cpu dtype (auto)", "bf16", "ok", "AVX512-BF16 or AMX is there")
    return Check("cpu dtype (auto)", "fp32", "ok", "neither AVX512-BF16 nor AMX, so bf16 would be slower")


def _gpus() -> list[Check]:
    import torch

    if not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "no usable CUDA device"
        return [Check("gpu", "none", "ok", f"{built}; the CPU is used")]
    checks = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        name = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
        checks.append(Check(f"gpu {index}", f"{name}, {'bf16' if bf16 else 'fp16 (no bf16)'}"))
    return checks


def _gpu_kernels() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu kernels", "none", "ok", "no GPU to run them on")
    if problem := gpu.problem():
        return Check(
            "gpu kernels", "torch", "warn", f"packed weights are dequantised at every use: {problem}"
        )
    return Check("gpu kernels", f"Triton {_version('triton')}", "ok", "for packed weights; the rest is torch")


def _network() -> Check:
    if problem := native.problem():
        return Check("network", "torch", "warn", f"several times slower than native: {problem}")
    return Check(
        "network", f"native ({native.isa_name()})", "ok", "one call a step, for prompts and for replies"
    )


def _kernels() -> list[Check]:
    """What multiplies with the weights on the CPU, by how they are kept."""
    if native.problem():
        return [_linear(), _attention()]
    name = f"native ({native.isa_name()})"
    return [
        Check("16-bit weights", name, "ok", "bf16 on this CPU, where the model's dtype is auto or bf16")
        if cpu.cpu_has_bf16()
        else Check("16-bit weights", name, "ok", "computed in fp32, which this CPU does faster than bf16"),
        Check("packed weights", name, "ok", "GPTQ, AWQ and GGUF stay packed in memory"),
    ]


def _linear() -> Check:
    import torch

    is_available: Callable[[], bool] = torch.backends.mkldnn.is_available  # not annotated in torch
    if not is_available():
        return Check("linear kernel", "torch, without oneDNN", "warn", "install a build of torch with oneDNN")
    if not cpu.cpu_has_bf16():
        return Check("linear kernel", "torch (fp32)")
    units = "AMX" if "amx_bf16" in (cpu.cpu_features() or ()) else "AVX512-BF16"
    return Check("linear kernel", f"torch (oneDNN bf16, {units})")


def _attention() -> Check:
    import torch

    return Check("attention kernel", f"torch {torch.nn.functional.scaled_dot_product_attention.__name__}")


def _packages() -> list[Check]:
    checks = []
    for package, (extra, purpose) in _OPTIONAL.items():
        version = _version(package)
        if version is None:
            checks.append(
                Check(package, "not installed", "missing", f"for {purpose}: pip install 'qwenkit[{extra}]'")
            )
        else:
            checks.append(Check(package, version))
    return checks


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiler() -> Check:
    for name in ("c++", "g++", "clang++", "cc"):
        found = shutil.which(name)
        if found:
            return Check("c compiler", found)
    return Check(
        "c compiler",
        "not found",
        "ok",
        "needed only to build the native kernels; a system package such as g++ provides one",
    )
