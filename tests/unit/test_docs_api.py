"""The table of error codes in docs/api.md is the list of the codes that the code base can give."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import serve_app
from serve_app.errors import OperationError, ParleyError

PACKAGE = Path(serve_app.__file__).parent
API = PACKAGE.parent / "docs" / "api.md"
KUBERNETES = PACKAGE.parent / "docs" / "kubernetes.md"
OPERATIONS = PACKAGE / "operations"
ROW = re.compile(r"^\| `(\w+)` \| (\d{3}) \|", re.MULTILINE)
OPENAI_ROW = re.compile(r"^\| `(\w+)` \| (?!\d{3} \|)", re.MULTILINE)


def kinds(root: type[ParleyError] = ParleyError) -> Iterator[type[ParleyError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


def strings(expression: ast.expr) -> Iterator[str]:
    """Yield the strings that an expression may come to, without those it only compares with."""
    match expression:
        case ast.Constant(value=str() as text):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from strings(body)
            yield from strings(orelse)
        case ast.Dict(values=values):
            for value in values:
                yield from strings(value)


def named_codes(module: ast.Module) -> Iterator[str]:
    """Yield every code that a module writes down: arguments, attributes, tables."""
    for node in ast.walk(module):
        match node:
            case ast.keyword(arg="code", value=value):
                yield from strings(value)
            case ast.Call(func=ast.Name(id="fault"), args=[code, *_]):
                yield from strings(code)
            case ast.Assign(targets=[ast.Name(id="code" | "_CODES")], value=value):
                yield from strings(value)
            case ast.AnnAssign(target=ast.Name(id="code"), value=ast.expr() as value):
                yield from strings(value)


@pytest.fixture(scope="module")
def text() -> str:
    return API.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def errors_section(text: str) -> str:
    return text.split("\n## Errors\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def documented(errors_section: str) -> dict[str, int]:
    rows = ROW.findall(errors_section)
    assert len(rows) == len(dict(rows))
    return {code: int(status) for code, status in rows}


def codes_in(files: Iterable[Path]) -> set[str]:
    modules = (path.read_text(encoding="utf-8") for path in files)
    return {code for module in modules for code in named_codes(ast.parse(module))}


@pytest.fixture(scope="module")
def existing() -> set[str]:
    files = [path for path in PACKAGE.rglob("*.py") if OPERATIONS not in path.parents]
    return codes_in(files) - {OperationError.code}


def test_every_code_has_its_row_and_every_row_its_code(
    errors_section: str, documented: dict[str, int], existing: set[str]
) -> None:
    openai = set(OPENAI_ROW.findall(errors_section))
    assert openai == {"rate_limit_exceeded", "invalid_prompt", "server_error"}
    assert documented.keys() | openai == existing


def test_what_operators_are_told_has_its_row_beside_their_commands() -> None:
    """No client of the API ever gets these."""
    section = KUBERNETES.read_text(encoding="utf-8").split("\n## Errors\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == codes_in(OPERATIONS.glob("*.py")) | {OperationError.code}


@pytest.mark.parametrize(
    "kind",
    [kind for kind in kinds() if kind is not OperationError],
    ids=lambda kind: kind.__name__,
)
def test_the_table_has_the_status_that_clients_get(
    kind: type[ParleyError], documented: dict[str, int]
) -> None:
    assert documented[kind.code] == kind.status


def test_codes_are_found_in_every_way_in_which_the_code_writes_them() -> None:
    module = ast.parse(
        "raise InvalidRequest(msg, code='by_argument')\n"
        "raise fault('by_fault', 'is wrong')\n"
        "code = 'by_choice' if kind == 'no_code' else 'by_other_choice'\n"
        "_CODES = {404: 'by_table'}\n"
        "class Broken(ParleyError):\n"
        "    code = 'by_class'\n"
    )
    assert set(named_codes(module)) == {
        "by_argument",
        "by_fault",
        "by_choice",
        "by_other_choice",
        "by_table",
        "by_class",
    }
