"""Keeps what libraries tell their own developers out of the terminal: bars, notes, warnings of names that will go."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Does so for this process. Errors still come through."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\.")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # DeepSpeed sets the level of its logger when it is imported, so that gets a filter.
    logging.getLogger("DeepSpeed").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
