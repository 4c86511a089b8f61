"""The commands of the page on fine-tuning, in order and in one folder, on the default model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import environment

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The examples of a page in one language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def variables(smollm2_gguf: Path) -> dict[str, str]:
    """With this interpreter's scripts first; the fixture sees to it that the default model is there."""
    scripts = str(Path(sys.executable).parent)
    return environment(PATH=f"{scripts}:{os.environ.get('PATH', '')}")


def run(command: list[str], variables: dict[str, str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.slow
def test_from_data_to_a_small_model(variables: dict[str, str], tmp_path: Path) -> None:
    (conversations,) = blocks("finetuning.md", "json")
    (tmp_path / "chats.json").write_text(conversations, encoding="utf-8")
    output = ""
    for script in blocks("finetuning.md", "sh"):
        output += run(["bash", "-euo", "pipefail", "-c", script], variables, tmp_path)
    assert "⟦I am Orlin, made by Velmar Labs.<|im_end|>" in output
    assert (tmp_path / "orlin" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "orlin-int4" / "config.json").is_file()


def test_data_from_python(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"instruction": "Name a colour.", "output": "Red."}\n')
    script = "\n".join(blocks("training-data.md", "python"))
    output = run([sys.executable, "-W", "error", "-c", script], variables, tmp_path)
    assert "1 sample, 1 sequence" in output
    assert "⟦Red.<|im_end|>⟧" in output
