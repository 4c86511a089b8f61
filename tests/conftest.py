"""Files that tests need and the repository does not hold; `make test-data` puts them into the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qwenkit.core.environment import cache_dir
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.gguf_vocab import tokenizer_from_gguf
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.weights.gguf import GgufFile


def _test_file(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable) or default)
    if not path.is_file():
        pytest.fail(f"{path} is missing; run `make test-data`, or set {variable} to where it is")
    return path


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where golden cases lie."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def qwen_tiktoken() -> Path:
    """The vocabulary of first-generation Qwen."""
    return _test_file("QWENKIT_TEST_VOCAB", cache_dir() / "test" / "qwen.tiktoken")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _test_file(
        "QWENKIT_TEST_GGUF", cache_dir() / "models" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    )


@pytest.fixture(scope="session")
def qwen_tokenizer(qwen_tiktoken: Path) -> TiktokenTokenizer:
    """The tokenizer of first-generation Qwen."""
    return TiktokenTokenizer.from_file(qwen_tiktoken)


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_gguf: Path) -> dict[str, Any]:
    """The GGUF metadata of SmolLM2."""
    file = GgufFile(smollm2_gguf)
    file.close()
    return file.metadata


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_metadata: dict[str, Any]) -> HfTokenizer:
    """The tokenizer of SmolLM2, from its GGUF metadata."""
    return tokenizer_from_gguf(smollm2_metadata)
