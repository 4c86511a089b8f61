"""Every example of the README runs as shown, with the default model."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Shell examples that use qwenkit, each with the output shown below it."""
    found = []
    for at, (language, text) in enumerate(BLOCKS):
        if language == "sh" and "qwenkit " in text:
            following = BLOCKS[at + 1] if at + 1 < len(BLOCKS) else ("", "")
            found.append((text, following[1] if following[0] == "text" else ""))
    return found


@pytest.fixture(scope="module")
def variables(smollm2_gguf: Path) -> dict[str, str]:
    """With this interpreter's scripts first; the fixture sees to it that the default model is there."""
    scripts = str(Path(sys.executable).parent)
    return environment(PATH=f"{scripts}:{os.environ.get('PATH', '')}")


def on_a_free_port(script: str) -> str:
    """The example, on a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return script.replace("8000", str(probe.getsockname()[1]))


def run(command: list[str], variables: dict[str, str], folder: Path = ROOT) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize(("script", "shown"), examples())
def test_shell_examples(script: str, shown: str, variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        README, encoding="utf-8"
    )  # one example reads it, another makes a folder
    output = run(["bash", "-euo", "pipefail", "-c", on_a_free_port(script)], variables, tmp_path)
    assert output.strip()
    at = 0
    for line in shown.splitlines():
        at = output.find(line, at)
        assert at >= 0, f"{line!r} is not in:\n{output}"


def test_python_examples(variables: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text("\n".join(text for language, text in BLOCKS if language == "python"), encoding="utf-8")
    output = run([sys.executable, "-W", "error", str(script)], variables)
    assert output.startswith("The answer to this classic math problem is 4.\n")
    assert "torch.Size([3, 49152])" in output


def test_make_chat_with_a_prompt(variables: dict[str, str]) -> None:
    if shutil.which("make") is None or not (ROOT / ".venv" / "bin" / "qwenkit").exists():
        pytest.skip("needs make and an installed .venv")
    (line,) = (t for language, t in BLOCKS if language == "sh" and t.startswith("make chat PROMPT"))
    command = line.replace("make ", "make -s -o .venv/.core ", 1)  # as installed, without asking pip again
    assert run(["bash", "-c", command], variables).strip()
