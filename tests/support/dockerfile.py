"""A Dockerfile as stages of instructions, and which files of the repository reach its build."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction, continued lines joined."""

    keyword: str
    text: str

    @property
    def words(self) -> list[str]:
        """Of the JSON form; of any other, what is between blanks, without ``--options``."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return [word for word in self.text.split() if not word.startswith("--")]

    @property
    def options(self) -> dict[str, str]:
        """``--name=value`` before the rest."""
        return dict(re.findall(r"--([\w-]+)=(\S+)", self.text))


@dataclass
class Stage:
    """What begins with FROM."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, keyword: str) -> list[Instruction]:
        return [each for each in self.instructions if each.keyword == keyword]


def read_stages(file: Path) -> dict[str, Stage]:
    """The stages by name, in order; arguments before the first one stand in a stage without a name."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages = {"": Stage("", "")}
    current = stages[""]
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            base, word, name = rest.split()
            assert word == "AS", line
            current = stages[name] = Stage(name, base)
        else:
            current.instructions.append(Instruction(keyword, rest.strip()))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those it is built on, the first one first."""
    stage = stages[name]
    return [*(lineage(stages, stage.base) if stage.base in stages else []), stage]


def reaches_build(ignore_file: Path, path: str) -> bool:
    """Whether .dockerignore lets a path through: the last pattern that fits it or a folder above counts."""
    parts = path.split("/")
    candidates = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    passes = True
    for line in ignore_file.read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.removeprefix("!")
        if any(_fits(candidate, wanted) for candidate in candidates):
            passes = pattern.startswith("!")
    return passes


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return _fits(path.rpartition("/")[2], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)
