"""Which protocol a path belongs to. Knows no protocol by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.routing import compile_path

from qwenkit.server.errors import RenderError
from qwenkit.server.protocol import Protocol


class Paths:
    """The paths of a server.

    Args:
        protocols: chosen ones; the last words errors that belong to nobody.
        others: further paths, such as those of pages.
    """

    def __init__(self, protocols: Sequence[Protocol], others: Iterable[str] = ()) -> None:
        self._default = protocols[-1].render_error
        owned = [(endpoint.path, p.render_error) for p in protocols for endpoint in p.endpoints]
        # where protocols share a path, errors are in the words of the first
        self._plain = {path: (path, render) for path, render in reversed(owned) if "{" not in path}
        self._plain |= {path: (path, self._default) for path in others if path not in self._plain}
        self._patterns = [(compile_path(path)[0], path, render) for path, render in owned if "{" in path]
        prefixes = [(prefix, p.render_error) for p in protocols for prefix in p.prefixes]
        self._prefixes = sorted(prefixes, key=lambda each: -len(each[0]))

    @property
    def names(self) -> list[str]:
        """All of them, as declared."""
        return [*self._plain, *(path for _, path, _ in self._patterns)]

    def find(self, path: str) -> tuple[str | None, RenderError]:
        """The path as it is declared, None where there is none, and who words its errors."""
        found = self._plain.get(path)
        if found is not None:
            return found
        for pattern, name, render in self._patterns:
            if pattern.match(path):
                return name, render
        for prefix, render in self._prefixes:
            if path.startswith(prefix):
                return None, render
        return None, self._default
