"""The machine report, on machines written down as files."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.kernels import cpu, doctor, gpu, native
from qwenkit.kernels.bandwidth import Bandwidth
from qwenkit.kernels.doctor import Check
from qwenkit.weights import doctor as whole
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.sources import LocalModel
from qwenkit.weights.traffic import step_weight_bytes
from tests.support.tiny_models import write_model

GIB = 1 << 30
SAPPHIRE_RAPIDS = "avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16"


@pytest.fixture(autouse=True)
def fresh_answers() -> Iterator[None]:
    def clear() -> None:
        cpu.cpu_features.cache_clear()
        cpu.cpu_model.cache_clear()

    clear()
    yield
    clear()


class Machine:
    """A /proc and a /sys/fs/cgroup of our own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str | int) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(cpu, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(cpu, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    made = Machine(tmp_path)
    made.write("proc/meminfo", f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {12 * GIB // 1024} kB")
    return made


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.parametrize(
    ("text", "bf16", "labels"),
    [
        (f"flags : {SAPPHIRE_RAPIDS}", True, "AVX2, AVX512F, AVX512-VNNI, AVX512-BF16, AMX-int8, AMX-bf16"),
        ("flags : avx2 avx512_bf16", True, "AVX2, AVX512-BF16"),
        ("flags : avx2 avx512f", False, "AVX2, AVX512F"),
        ("Features : fp asimd", False, "none of note"),
        ("processor : 0", False, "unknown"),
    ],
)
def test_features(text: str, bf16: bool, labels: str, machine: Machine) -> None:
    machine.write("proc/cpuinfo", f"model name : A Processor: fast\n{text}")
    assert cpu.cpu_model() == "A Processor: fast"
    assert cpu.cpu_has_bf16() is bf16
    assert doctor._features().value == labels
    assert doctor._dtype().value == ("bf16" if bf16 else "fp32")


def test_machine_without_limits(machine: Machine) -> None:
    assert cpu.usable_cores() == 8
    assert (cpu.available_memory(), cpu.total_memory()) == (12 * GIB, 16 * GIB)


def test_container_with_version_2_groups(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/pod/box")
    machine.write("cgroup/pod/cpu.max", "250000 100000")
    machine.write("cgroup/pod/box/cpu.max", "max 100000")
    machine.write("cgroup/pod/memory.max", 4 * GIB)
    machine.write("cgroup/pod/memory.current", 3 * GIB)
    machine.write("cgroup/pod/memory.stat", f"anon 5\ninactive_file {GIB}")
    machine.write("cgroup/pod/box/memory.max", "max")
    assert cpu.usable_cores() == 3
    assert (cpu.available_memory(), cpu.total_memory()) == (2 * GIB, 4 * GIB)


def test_container_with_version_1_groups_seen_from_inside(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:memory:/docker/1234\n1:cpu,cpuacct:/docker/1234\n0::/")
    machine.write("cgroup/cpu/cpu.cfs_quota_us", 50000)
    machine.write("cgroup/cpu/cpu.cfs_period_us", 100000)
    machine.write("cgroup/memory/memory.limit_in_bytes", 2 * GIB)
    machine.write("cgroup/memory/memory.usage_in_bytes", 3 * GIB)
    assert cpu.usable_cores() == 1
    assert (cpu.available_memory(), cpu.total_memory()) == (0, 2 * GIB)


def test_version_1_groups_without_limit(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:memory:/\n1:cpu:/\nnonsense")
    machine.write("cgroup/cpu/cpu.cfs_quota_us", -1)
    machine.write("cgroup/cpu/cpu.cfs_period_us", 100000)
    machine.write("cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    assert cpu.usable_cores() == 8
    assert cpu.total_memory() == 16 * GIB


def test_nothing_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_PROC", tmp_path / "none")
    monkeypatch.setattr(cpu, "_CGROUP", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sysconf")
    assert cpu.usable_cores() >= 1
    assert (cpu.available_memory(), cpu.total_memory()) == (0, None)
    checks = named(doctor.report())
    assert checks["cpu"].value == "unknown"
    assert checks["memory"].status == checks["cpu features"].status == "warn"


def test_report_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "not" / "yet"))
    checks = named(whole.report())
    assert checks["torch"].value == torch.__version__
    assert checks["python"].value.endswith(sys.version.split()[0])
    assert int(checks["cores"].value.split()[0]) == cpu.usable_cores()
    assert checks["cache"].value.startswith(f"{tmp_path}/not/yet, ")
    assert checks["default model"].status == "missing"
    assert "first 'qwenkit chat' fetches it (92.9 MB)" in checks["default model"].hint
    assert all(check.name and check.value for check in checks.values())
    assert all("could not be read" not in check.hint for check in checks.values())


def test_optional_packages_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    check = named(doctor._packages())["modelscope"]
    assert (check.status, check.hint) == ("missing", "for models from ModelScope: pip install 'qwenkit[hub]'")


def test_a_check_that_fails_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: 1 / 0)
    checks = named(doctor.report())
    assert checks["gpu"].status == "warn"
    assert checks["gpu"].hint == "could not be read (ZeroDivisionError: division by zero)"
    assert checks["c compiler"].value


def test_the_path_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "problem", lambda: "")
    monkeypatch.setattr(native, "isa_name", lambda: "avx2")
    monkeypatch.setattr(cpu, "cpu_has_bf16", lambda: False)
    checks = named(doctor.report())
    paths = {checks[name].value for name in ("network", "16-bit weights", "packed weights")}
    assert paths == {"native (avx2)"}
    assert "fp32" in checks["16-bit weights"].hint
    assert "linear kernel" not in checks
    monkeypatch.setattr(native, "problem", lambda: "not compiled")
    checks = named(doctor.report())
    assert (checks["network"].value, checks["network"].status) == ("torch", "warn")
    assert checks["linear kernel"].value == "torch (fp32)"
    assert checks["attention kernel"].value == "torch scaled_dot_product_attention"
    assert "packed weights" not in checks


@pytest.fixture
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is read at 20 GB/s."""

    def measured(threads: int) -> Bandwidth:
        return Bandwidth(bytes_per_second=20e9, threads=threads, buffer_bytes=10**9)

    monkeypatch.setattr(whole, "read_bandwidth", measured)


@pytest.mark.usefixtures("bandwidth")
def test_speed_of_models_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{}")
    good = write_model(tmp_path / "good")
    monkeypatch.setattr(
        whole, "local_models", lambda: [LocalModel("org/bad", bad), LocalModel("org/good", good)]
    )
    monkeypatch.setattr(cpu, "cpu_has_bf16", lambda: True)
    memory, expected = whole.speed_report()
    assert (memory.name, memory.value) == ("memory read", "20.0 GB/s")
    assert memory.numbers["bytes_per_second"] == 20e9
    checkpoint = open_checkpoint(good)
    num_bytes = step_weight_bytes(checkpoint, torch.bfloat16)
    assert expected.numbers == {"bytes_per_token": num_bytes, "tokens_per_second": 20e9 / num_bytes}
    assert expected.value.startswith("org/good: up to ")
    assert expected.value.endswith(" tokens/s")


@pytest.mark.usefixtures("bandwidth")
def test_speed_of_typical_models_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "local_models", list)
    values = [check.value for check in whole.speed_report()]
    assert values == [
        "20.0 GB/s",
        "a 1.8B model in Int4: up to 16 tokens/s",
        "a 1.8B model in bf16: up to 6.56 tokens/s",
        "a 7B model in Int4: up to 4.34 tokens/s",
    ]


@pytest.mark.usefixtures("bandwidth")
def test_a_great_many_models_take_no_longer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = [LocalModel(f"org/{i}", write_model(tmp_path / str(i))) for i in range(3)]
    monkeypatch.setattr(whole, "local_models", lambda: models)
    monkeypatch.setattr(whole, "_SECONDS_FOR_MODELS", 0)
    values = [check.value for check in whole.speed_report()]
    assert len(values) == 3
    assert values[1].startswith("org/0: ")
    assert values[2] == "2 more models are not looked at"


def test_memory_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "read_bandwidth", lambda threads: 1 / 0)
    [check] = whole.speed_report()
    assert (check.name, check.status) == ("speed", "warn")
    assert "ZeroDivisionError" in check.hint


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *rest: Any, **options: Any) -> Any:
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    checks = named(doctor.report())
    assert checks["torch"].status == "missing"
    assert checks["python"].status == "ok"


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (10**10, 2 * 10**10))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU{index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9 - 2 * index, 0))
    assert [check.value for check in doctor._gpus()] == [
        "GPU0, 10.0 GB free of 20.0 GB, bf16",
        "GPU1, 10.0 GB free of 20.0 GB, fp16 (no bf16)",
    ]


@pytest.mark.parametrize(
    ("has_gpu", "problem", "value", "status"),
    [
        (False, None, "none", "ok"),
        (False, "no compiler", "none", "ok"),
        (True, "no compiler", "torch", "warn"),
        (True, None, "Triton 3.0", "ok"),
    ],
)
def test_kernels_of_a_gpu(
    has_gpu: bool, problem: str | None, value: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(gpu, "problem", lambda: problem)
    monkeypatch.setattr(doctor, "_version", lambda package: "3.0")
    check = doctor._gpu_kernels()
    assert (check.value, check.status) == (value, status)
    assert ("no compiler" in check.hint) == (status == "warn")


def test_imports_are_cheap() -> None:
    heavy = ("torch", "triton", "huggingface_hub", "modelscope", "filelock")
    code = (
        "import sys; import qwenkit.weights.sources, qwenkit.weights.doctor, qwenkit.kernels.cpu; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
