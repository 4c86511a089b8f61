"""Optional dependencies: import on use, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from qwenkit.core.errors import MissingExtraError


def import_extra(module: str, extra: str) -> ModuleType:
    """Imports ``module``.

    Raises:
        MissingExtraError: it is not installed; the text names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module!r} is needed for this and cannot be imported ({error}); run: pip install 'qwenkit[{extra}]'"
        ) from error
