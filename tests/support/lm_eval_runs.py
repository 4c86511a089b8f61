"""Runs lm-eval's clients on our tasks: ``python -m tests.support.lm_eval_runs < RUNS > ANSWERS``.

A process of its own, since the library changes settings of the whole process; one for all runs, since it takes long
to import. RUNS is a JSON list of {model, tasks, arguments}; ANSWERS are the samples of each run, by task.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parents[1] / "data" / "lm_eval"


def main() -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    answers: list[dict[str, Any]] = []
    for run in json.load(sys.stdin):
        found = lm_eval.simple_evaluate(
            model=run["model"],
            model_args=run["arguments"],
            tasks=run["tasks"],
            apply_chat_template="chat" in run["model"],
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
        )
        assert found is not None
        answers.append(found["samples"])
    json.dump(answers, sys.stdout, default=str)


if __name__ == "__main__":
    main()
