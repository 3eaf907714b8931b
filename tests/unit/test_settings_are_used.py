"""Every setting does something: it is read somewhere in serve_app besides where it is declared."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import serve_app
from serve_app.settings import Settings

PACKAGE = Path(serve_app.__file__).parent


def section(name: str) -> type[BaseModel]:
    annotation = Settings.model_fields[name].annotation
    assert inspect.isclass(annotation)
    assert issubclass(annotation, BaseModel)
    return annotation


SECTIONS = {name: section(name) for name in Settings.model_fields}
KEYS = [f"{name}.{key}" for name, kind in SECTIONS.items() for key in kind.model_fields]
SECTION_OF_CLASS = {kind.__name__: name for name, kind in SECTIONS.items()}


class Reads(ast.NodeVisitor):
    """Follows sections through one module: `settings.generator`, names and attributes bound to it.

    Attributes:
        found: `section.key` of everything that is read.
    """

    def __init__(self, module: ast.Module) -> None:
        self.found: set[str] = set()
        self._bound: dict[str, str] = {}
        # Twice: an attribute may be read above the method that binds it.
        self.visit(module)
        self.visit(module)

    def visit_arg(self, node: ast.arg) -> None:
        if isinstance(node.annotation, ast.Name) and node.annotation.id in SECTION_OF_CLASS:
            self._bound[node.arg] = SECTION_OF_CLASS[node.annotation.id]

    def visit_Assign(self, node: ast.Assign) -> None:
        name = self._section_of(node.value)
        if name is not None:
            for target in node.targets:
                self._bound[ast.unparse(target)] = name
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._section_of(node.value)
        if name is not None and node.attr in SECTIONS[name].model_fields:
            self.found.add(f"{name}.{node.attr}")
        if name is not None and node.attr == "model_dump":  # handed on as a whole
            self.found.update(f"{name}.{key}" for key in SECTIONS[name].model_fields)
        self.generic_visit(node)

    def _section_of(self, expression: ast.expr) -> str | None:
        text = ast.unparse(expression)
        if text in self._bound:
            return self._bound[text]
        owner, _, last = text.rpartition(".")
        # `settings.model`, `self._services.settings.ingress`, `Settings.load().auth`
        if last in SECTIONS and owner.split(".")[-1] in {"settings", "_settings", "load()"}:
            return last
        return None


def reads(sources: Iterable[str]) -> set[str]:
    return set().union(*(Reads(ast.parse(source)).found for source in sources))


def sources() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        # Commands that only show settings use none.
        if path.parent.name != "settings" and path.parts[-2:] != ("cli", "config.py"):
            yield path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read() -> set[str]:
    return reads(sources())


@pytest.mark.parametrize("key", KEYS)
def test_a_setting_is_read_outside_of_the_settings(key: str, read: set[str]) -> None:
    assert key in read


def test_a_setting_that_only_shares_its_name_is_not_taken_for_read() -> None:
    module = textwrap.dedent(
        """
        class Pool:
            def __init__(self, settings: RedisSettings, request: Request) -> None:
                self._redis = settings
                self._slots = request.slots

            def size(self) -> int:
                return self._redis.pool_size
        """
    )
    assert reads([module]) == {"redis.pool_size"}
