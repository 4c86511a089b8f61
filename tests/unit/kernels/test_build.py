"""Building the package: without a compiler it works without the kernels, a source distribution is whole, no warnings."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from qwenkit.tokenizer.save import save_tokenizer
from tests.support.quantised import copied
from tests.support.tiny_models import byte_tiktoken

ROOT = Path(__file__).parents[3]
SOURCES = sorted((ROOT / "csrc").glob("*.cpp"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project without anything built."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    built = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=built)
    return folder


def _setup(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "QWENKIT_WERROR"} | variables
    return subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", *arguments],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
    )


def test_without_a_compiler_all_works_and_says_so_once(project: Path, tmp_path: Path) -> None:
    done = _setup(project, "bdist_wheel", CC="/bin/false", CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "installed"
    with zipfile.ZipFile(next((project / "dist").glob("*.whl"))) as wheel:
        assert not [name for name in wheel.namelist() if name.endswith(".so")]
        assert "qwenkit/kernels/native.py" in wheel.namelist()
        wheel.extractall(installed)
    model = copied("qwen1-tiny-gptq-int4", tmp_path / "model")
    save_tokenizer(model, byte_tiktoken())
    (model / "generation_config.json").write_text(json.dumps({"chat_format": "chatml", "eos_token_id": 256}))
    code = "from qwenkit.cli.main import run; run()"
    command = [sys.executable, "-c", code, "generate", "-m", str(model), "one two", "-n", "9"]
    env = {name: value for name, value in os.environ.items() if name != "QWENKIT_ISA"}
    said = subprocess.run(
        command, env=env | {"PYTHONPATH": str(installed)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout
    assert said.stderr.count("native CPU kernels are not in use") == 1
    assert "install a C++ compiler" in said.stderr


def test_with_warnings_as_errors_the_kernels_are_a_must(project: Path) -> None:
    variables = {"CC": "/bin/false", "CXX": "/bin/false", "QWENKIT_WERROR": "1"}
    assert _setup(project, "build_ext", **variables).returncode != 0


def test_a_source_distribution_has_all_sources(project: Path) -> None:
    done = _setup(project, "sdist")
    assert done.returncode == 0, done.stderr
    with tarfile.open(next((project / "dist").glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()}
    expected |= {"setup.py", "pyproject.toml", "constraints.txt", "src/qwenkit/py.typed"}
    assert expected <= names, expected - names


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_no_compiler_warns(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    monkeypatch.setenv("QWENKIT_WERROR", "1")
    monkeypatch.chdir(ROOT)
    # The real one would replace distutils for every test behind this.
    stub = types.SimpleNamespace(setup=lambda **options: None, Extension=lambda *names, **options: None)
    monkeypatch.setitem(sys.modules, "setuptools", stub)  # type: ignore[arg-type]
    flags: list[str] = runpy.run_path("setup.py")["WARNINGS"]
    assert "-Werror" in flags
    for source in SOURCES:
        command = [compiler, "-std=c++17", "-fsyntax-only", "-pthread", *flags, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
