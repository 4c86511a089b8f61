"""Runs a Jinja template that came with a model: nothing but text comes out, in bounded time and space.

Knows nothing of chat. The environment has what transformers gives to chat templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qwenkit.core.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

_MAX_CHARS = 16 * 2**20
"""Longest text a template may write; far above any context."""
_MAX_STEPS = 20_000_000
"""Most attribute look-ups, calls and operations in one rendering; some ten seconds of work."""

_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*\d{6}|%[^a-zA-Z%]*\*")

_steps_left: ContextVar[int] = ContextVar("steps_left", default=_MAX_STEPS)


def compile_template(source: str) -> jinja2.Template:
    """Compiles a template for `render_bounded`.

    Raises:
        TemplateError: it is not Jinja.
    """
    import jinja2

    environment = _environment()
    try:
        tree = _bound_concatenation(environment.parse(source))
        return jinja2.Template.from_code(
            environment, environment.compile(tree), environment.make_globals(None)
        )
    except (jinja2.TemplateError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        raise TemplateError(f"the chat template is malformed{where}: {error}") from None


def render_bounded(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text of a template.

    Raises:
        TemplateError: the template refuses, fails, or does not come to an end.
    """
    budget = _steps_left.set(_MAX_STEPS)
    parts, size = [], 0
    try:
        for part in template.generate(variables):
            size += len(part)
            if size > _MAX_CHARS:
                raise TemplateError(
                    f"the chat template wrote more than {_MAX_CHARS} characters; it looks broken"
                )
            parts.append(part)
    except TemplateError:
        raise
    except Exception as error:  # a template can fail in any way a program can
        raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
    finally:
        _steps_left.reset(budget)
    return "".join(parts)


def _spend(steps: int) -> None:
    left = _steps_left.get() - max(steps, 1)
    if left < 0:
        raise TemplateError("the chat template takes too many steps; it looks like a loop without end")
    _steps_left.set(left)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        """Counts what a template does; see `_MAX_STEPS`."""

        intercepted_binops = frozenset(["*", "**", "+", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_size(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def getattr(self, obj: Any, attribute: str) -> Any:
            _spend(1)
            return super().getattr(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            _spend(1)
            return super().getitem(obj, argument)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            _spend(1)
            on_text = isinstance(getattr(__obj, "__self__", None), str)
            if on_text and any(isinstance(arg, int) and arg > _MAX_CHARS for arg in args):
                raise TemplateError(f"the chat template pads text to more than {_MAX_CHARS}; it looks broken")
            return super().call(__context, __obj, *args, **kwargs)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["concatenate"] = _concatenate
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["range"] = _bounded_range
    return environment


def _bound_concatenation(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """Turns every ``a ~ b``, which the sandbox does not see, into a filter that checks the size."""
    from jinja2 import nodes, visitor

    class Rewrite(visitor.NodeTransformer):
        def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
            self.generic_visit(node)
            return nodes.Filter(nodes.List(node.nodes), "concatenate", [], [], None, None, lineno=node.lineno)

    rewritten: jinja2.nodes.Template = Rewrite().visit(tree)
    rewritten.set_environment(_environment())
    return rewritten


def _concatenate(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _spend(1)
    _refuse_above(sum(map(len, texts)))
    return "".join(texts)


def _refuse_above(size: int) -> None:
    if size > _MAX_CHARS:
        raise TemplateError(f"the chat template builds a value of {size} parts; it looks broken")


def _check_size(operator: str, left: Any, right: Any) -> None:
    """Refuses operators on values that would grow out of bounds."""
    _spend(1)
    sizes = [len(value) if isinstance(value, str | list | tuple) else None for value in (left, right)]
    if operator == "**" and isinstance(right, int | float) and abs(right) > 64:
        raise TemplateError(f"the chat template raises to the power of {right}; it looks broken")
    if operator == "*" and sizes != [None, None]:
        size = (sizes[0] or 1) * (sizes[1] or 1) * max([1, *(v for v in (left, right) if isinstance(v, int))])
    elif operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
        size = _MAX_CHARS + 1
    elif operator == "+" and None not in sizes:
        size = sum(size for size in sizes if size is not None)
    else:
        return
    _refuse_above(size)


def _bounded_range(*args: int) -> range:
    numbers = range(*args)
    _spend(len(numbers))
    return numbers


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML; templates are written for plain JSON
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> None:
    raise TemplateError(f"the chat template refuses this conversation: {message}")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
