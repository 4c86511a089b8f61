"""The walls of the design: imports point downward, nothing imports in a circle, the public surface is as listed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import qwenkit

SRC = Path(qwenkit.__file__).parent
LAYERS = {
    "_version": 0,
    "core": 0,
    "config": 1,
    "tokenizer": 1,
    "kernels": 1,
    "chat": 2,
    "layers": 2,
    "cache": 2,
    "model": 3,
    "weights": 4,
    "engine": 4,
    "backends": 5,
    "quantize": 5,
    "hf": 5,
    "train": 5,
    "llm": 6,
    "session": 6,
    "bench": 6,
    "server": 7,
    "web": 7,
    "cli": 8,
    "__main__": 8,
}


def _imports(path: Path) -> set[str]:
    """First-level parts of the package that a module imports, at any depth of nesting, typing-only ones left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child)
            return
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports absolutely"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found.update(name.split(".")[1] for name in names if name.startswith("qwenkit."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {part for part in found if part in LAYERS}


def _part(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


MODULES = [p for p in sorted(SRC.rglob("*.py")) if p != SRC / "__init__.py"]


def test_every_part_has_a_layer() -> None:
    assert {_part(p) for p in MODULES} == set(LAYERS)


def test_imports_point_downward() -> None:
    upward = [
        f"{path.relative_to(SRC)} imports {part}"
        for path in MODULES
        for part in _imports(path) - {_part(path)}
        if LAYERS[part] > LAYERS[_part(path)]
    ]
    assert upward == []


def test_parts_do_not_import_in_a_circle() -> None:
    edges: dict[str, set[str]] = {part: set() for part in LAYERS}
    for path in MODULES:
        edges[_part(path)] |= _imports(path) - {_part(path)}
    # llm hands out Chat, and Chat names LLM in annotations only, which _imports leaves out.
    order: list[str] = []
    while edges:
        free = [part for part, needs in edges.items() if not needs - set(order)]
        assert free, f"these import each other in a circle: {sorted(edges)}"
        order += free
        edges = {part: needs for part, needs in edges.items() if part not in free}


def test_modules_stay_small() -> None:
    long = {
        str(p.relative_to(SRC)): n for p in MODULES if (n := len(p.read_text("utf-8").splitlines())) > 400
    }
    assert long == {}


def test_public_names_are_sorted_and_there() -> None:
    assert qwenkit.__all__ == sorted(
        qwenkit.__all__, key=lambda n: (not n.isupper(), n.startswith("_") or n.islower(), n)
    )
    for name in qwenkit.__all__:
        assert getattr(qwenkit, name) is not None
    assert set(qwenkit.__all__) <= set(dir(qwenkit))


def test_importing_the_package_and_its_help_loads_nothing_heavy() -> None:
    code = "import sys, qwenkit, qwenkit.cli.main; print([m for m in ('torch', 'numpy', 'rich', 'jinja2') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_no_family_names_outside_the_table() -> None:
    """A new family must stay one row."""
    for path in MODULES:
        # GGUF calls its SentencePiece vocabularies "llama", which has nothing to do with the family.
        if path.name in ("families.py", "gguf_vocab.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                values = {
                    c.value
                    for c in ast.walk(node)
                    if isinstance(c, ast.Constant) and isinstance(c.value, str)
                }
                assert not values & {"qwen", "qwen2", "qwen3", "llama", "QWenLMHeadModel"}, (
                    f"{path}:{node.lineno}"
                )
