"""Figures of matplotlib that need no display. Knows nothing of what is drawn."""

from __future__ import annotations

import logging
from typing import Any

from qwenkit.core.lazy import import_extra


def new_figure(extra: str, *, width: float = 9, height: float = 5) -> Any:
    """An empty ``matplotlib.figure.Figure``; of its own, apart from pyplot, it draws without a display.

    Args:
        extra: named by the error when matplotlib is missing.
        width: inches.
        height: inches.

    Raises:
        MissingExtraError: matplotlib is not there.
    """
    module: Any = import_extra("matplotlib.figure", extra)
    # Its list of fonts is kept for all environments of a user; where one of them was removed, a line per
    # missing font would be printed, none of which anything is drawn with.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    return module.Figure(figsize=(width, height), dpi=120, layout="constrained")
