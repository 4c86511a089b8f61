"""The Dockerfile: its rules, its sources, and the commands in it that can run anywhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qwenkit._version import __version__
from tests.support.dockerfile import Instruction, Stage, lineage, reaches_build, read_stages

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docker" / "Dockerfile"
IGNORE = ROOT / ".dockerignore"
STAGES = read_stages(FILE)
IMAGES = ("cpu", "cuda")
RUNS = [run for stage in STAGES.values() for run in stage.all("RUN")]


def last(image: str, keyword: str) -> str:
    return [each.text for stage in lineage(STAGES, image) for each in stage.all(keyword)][-1]


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cpu_image_is_what_a_build_without_target_makes() -> None:
    assert list(STAGES)[-1] == "cpu"


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_as_a_plain_user_and_can_be_asked_and_stopped(image: str) -> None:
    user, group = last(image, "USER").split(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    assert STAGES[image].instructions[-1].keyword == "USER"  # nothing follows as root
    assert last(image, "STOPSIGNAL") == "SIGTERM"
    assert '"/health"' in last(image, "HEALTHCHECK").replace("'", '"')
    assert last(image, "VOLUME") == "/cache"
    labels = last(image, "LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


@pytest.mark.parametrize("image", IMAGES)
def test_everything_that_is_written_goes_to_the_volume(image: str) -> None:
    environment = dict(
        word.split("=", 1)
        for stage in lineage(STAGES, image)
        for each in stage.all("ENV")
        for word in shlex.split(each.text)
    )
    for name in ("HOME", "QWENKIT_CACHE", "QWENKIT_HOME", "HF_HOME", "MODELSCOPE_CACHE"):
        assert environment[name].startswith("/cache"), name
    assert image == "cpu" or environment["TRITON_CACHE_DIR"].startswith("/cache")


@pytest.mark.parametrize("keyword", ["ENTRYPOINT", "CMD"])
def test_commands_are_run_without_a_shell(keyword: str) -> None:
    assert all(last(image, keyword).startswith("[") for image in IMAGES)


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    copies = [c for stage in STAGES.values() for c in stage.all("COPY") if "from" not in c.options]
    sources = [source for copy in copies for source in copy.words[:-1]]
    assert "src" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert reaches_build(IGNORE, source), source
    for stage in STAGES.values():
        assert not stage.all("ADD")


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "secrets/api_keys",
        "models/m/model.safetensors",
        ".env",
        "docker/Dockerfile",
        "src/qwenkit/__pycache__/llm.cpython-312.pyc",
        "src/qwenkit/kernels/_native.cpython-312-x86_64-linux-gnu.so",
        "src/qwenkit.egg-info/PKG-INFO",
    ],
)
def test_what_no_image_needs_stays_outside(path: str) -> None:
    assert not reaches_build(IGNORE, path)


def test_every_file_of_the_package_reaches_the_build() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "src", "csrc"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    files = listed.stdout.splitlines()
    if listed.returncode or not files:
        pytest.skip("needs a git checkout")
    assert [path for path in files if not reaches_build(IGNORE, path)] == []


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.text[:40])
def test_layers_are_small_and_versions_known(run: Instruction) -> None:
    text = run.text
    if "apt-get" in text:
        assert "--no-install-recommends" in text
        assert text.endswith("rm -rf /var/lib/apt/lists/*")
    for install in re.findall(r"pip (?:install|wheel) [^&]*", text):
        assert "--no-cache-dir" in install or "type=cache,target=/build/.cache/pip" in text
        assert (
            "--constraint constraints.txt" in install or "--no-index" in install or "PIP_CONSTRAINT=" in text
        )
    assert "curl" not in text
    assert "wget" not in text


def test_the_base_has_a_tag() -> None:
    (base,) = [each.text for each in STAGES[""].all("ARG")]
    tag = base.rpartition(":")[2]
    assert re.search(r"\d", tag)
    assert tag != "latest"
    assert {stage.base for stage in STAGES.values()} <= {"", "${PYTHON_IMAGE}", *STAGES}


def test_arguments_are_declared_where_they_are_used() -> None:
    """A stage does not have the arguments of the one it is built on, with every builder."""
    own = {"VERSION", "REVISION", "EXTRAS", "PIP_INDEX_URL", "TORCH_INDEX_URL"}
    for stage in STAGES.values():
        declared = {each.text.partition("=")[0] for each in stage.all("ARG")}
        used = {name for each in stage.instructions for name in re.findall(r"\$\{?([A-Z_]+)", each.text)}
        assert used & own <= declared, stage.name
        if any("pip install" in run.text and "--no-index" not in run.text for run in stage.all("RUN")):
            assert "PIP_INDEX_URL" in declared, stage.name


def requirement_commands(stage: Stage) -> list[list[str]]:
    found = [re.search(r"python requirements\.py [^>]+", run.text) for run in stage.all("RUN")]
    extras = next(each.text.partition("=")[2] for each in stage.all("ARG") if each.text.startswith("EXTRAS="))
    return [shlex.split(match[0].replace("$EXTRAS", extras)) for match in found if match]


@pytest.mark.parametrize(("name", "triton"), [("requirements-cpu", False), ("requirements-cuda", True)])
def test_the_list_of_requirements(name: str, triton: bool) -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11, which the script may use in its image
    (command,) = requirement_commands(STAGES[name])
    command[:3] = [sys.executable, str(ROOT / "docker" / "requirements.py"), str(ROOT / "pyproject.toml")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["dependencies"]) | set(project["optional-dependencies"]["server"]) <= set(listed)
    assert any(line.startswith("triton") for line in listed) == triton


def test_an_unknown_extra_stops_the_build_with_a_sentence() -> None:
    pytest.importorskip("tomllib")
    command = [sys.executable, ROOT / "docker" / "requirements.py", ROOT / "pyproject.toml", "sever"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("pyproject.toml has no extra named 'sever'")


def test_the_image_checks_itself_when_it_is_built() -> None:
    for image in IMAGES:
        (install,) = [run.text for run in STAGES[image].all("RUN") if "--no-index" in run.text]
        code = shlex.split(install.rpartition("python -c ")[2])[0]
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_build_script_finds_the_version() -> None:
    script = (ROOT / "docker" / "build.sh").read_text(encoding="utf-8")
    (expression,) = re.findall(r"sed -n '([^']+)'", script)
    done = subprocess.run(
        ["sed", "-n", expression, ROOT / "src" / "qwenkit" / "_version.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == __version__
