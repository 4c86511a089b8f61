"""Every error a user can cause, in one tree; the command line turns each into one sentence and exit code 2.

QwenkitError
├── InputError            an argument or a request that cannot be honoured (also a ValueError)
│   └── PromptTooLongError    the prompt leaves no room for a reply in the context
├── ConfigError           config.json or GGUF metadata: key missing, wrong or contradictory
│   └── UnsupportedModelError     an architecture or feature this version does not run
├── CheckpointError       weight files: missing, truncated, malformed, wrong shapes, unsafe pickle
├── TokenizerError        tokenizer files: missing, malformed, larger than the embedding
├── TemplateError         chat template: missing, malformed, or the conversation does not fit it
├── SourceError           finding or fetching a model: unknown name, no network, disk full, wrong checksum
├── QueueFullError        the engine has as many waiting requests as it may hold
├── RemoteError           a server elsewhere answered with an error, or not at all
├── NumericsError         NaN or infinity where numbers are expected
└── MissingExtraError     an optional dependency is not installed (also an ImportError)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "InputError",
    "MissingExtraError",
    "NumericsError",
    "PromptTooLongError",
    "QueueFullError",
    "QwenkitError",
    "RemoteError",
    "SourceError",
    "TemplateError",
    "TokenizerError",
    "UnsupportedModelError",
    "did_you_mean",
]


class QwenkitError(Exception):
    """Base of everything qwenkit raises on purpose; its text says what was got, what is allowed, what to do."""


class InputError(QwenkitError, ValueError):
    """An argument or a request that cannot be honoured."""


class PromptTooLongError(InputError):
    """The prompt leaves no room for a reply in the model's context."""


class ConfigError(QwenkitError):
    """A model configuration with a key missing, of the wrong kind, or at odds with another."""


class UnsupportedModelError(ConfigError):
    """A valid configuration of something this version cannot run."""


class CheckpointError(QwenkitError):
    """Weight files that are missing, truncated, malformed, unsafe or of the wrong shape."""


class TokenizerError(QwenkitError):
    """Tokenizer files that are missing, malformed or do not match the model."""


class TemplateError(QwenkitError):
    """A chat template that is missing or malformed, or a conversation it refuses."""


class SourceError(QwenkitError):
    """A model that cannot be found or fetched."""


class QueueFullError(QwenkitError):
    """As many requests wait as the engine may hold; trying again later helps."""


class RemoteError(QwenkitError):
    """A server elsewhere that answered with an error, or not at all."""


class NumericsError(QwenkitError):
    """NaN or infinity in logits or activations."""


class MissingExtraError(QwenkitError, ImportError):
    """An optional dependency is not installed; the text names the extra to install."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
