"""NVIDIA's real bindings of TensorRT without TensorRT: importable, and as types for mypy.

The bindings are a package without the libraries that they call. Empty functions stand in for those, so
that the module loads, and with it every class, method and signature; nothing of it can be run. Types
are made of what was loaded. Both are made anew where the tests run: the bindings' licence doesn't let
anybody hand on what is derived from them.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]

_LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "initLibNvInferPlugins",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
)
# Types of what isn't TensorRT's are none of these tests' business, but for the standard library's.
_MYPY = """
[mypy]
strict = true
python_version = 3.11
follow_imports = skip
ignore_missing_imports = false
disallow_subclassing_any = false
disallow_untyped_decorators = false
warn_return_any = false
warn_unused_ignores = false

[mypy-serve_app.*,load.*]
ignore_missing_imports = true

[mypy-tensorrt_bindings.*]
ignore_errors = true
"""
_LOOK = """
import json, sys
import tensorrt_bindings

def there(name):
    found = tensorrt_bindings
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True

print(json.dumps([name for name in json.load(sys.stdin) if not there(name)]))
"""


@dataclass(frozen=True)
class Use:
    """One name of TensorRT's that a module uses.

    Attributes:
        line: where.
        name: without the package, such as "BuilderFlag.REFIT".
    """

    line: int
    name: str


@dataclass(frozen=True)
class Bindings:
    """The bindings, ready to be asked.

    Attributes:
        folder: where libraries and types lie.
    """

    folder: Path

    @classmethod
    def prepare(cls, folder: Path) -> Bindings:
        """Compile the libraries and make the types."""
        bindings = cls(folder)
        compile_shared(
            folder / _LIBRARIES[0],
            "".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS),
        )
        for library in _LIBRARIES[1:]:
            (folder / library).write_bytes((folder / _LIBRARIES[0]).read_bytes())
        types = folder / "types"
        bindings.python(
            "-m", "pybind11_stubgen", "tensorrt_bindings", "-o", str(types), "--ignore-all-errors"
        )
        generated = types / "tensorrt_bindings" / "tensorrt.pyi"
        generated.write_text(_mended(generated.read_text()))
        # What `import tensorrt` finds on a GPU machine: all of the bindings, and nothing else.
        names = bindings.python(
            "-c",
            "import tensorrt_bindings.tensorrt as t; print(*(n for n in dir(t) if n[0] != '_'))",
        ).split()
        package = types / "tensorrt"
        package.mkdir()
        (package / "__init__.pyi").write_text(
            "__version__: str\n"
            "from tensorrt_bindings import nptype as nptype, volume as volume\n"
            + "".join(
                f"from tensorrt_bindings.tensorrt import {name} as {name}\n" for name in names
            )
        )
        return bindings

    def python(self, *arguments: str, said: str = "") -> str:
        """Run Python with the bindings' libraries in place and return what it prints."""
        done = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"LD_LIBRARY_PATH": str(self.folder)},
            input=said,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return those of some names that the bindings don't have."""
        answer: list[str] = json.loads(self.python("-c", _LOOK, said=json.dumps([*names])))
        return answer

    def type_errors(self, files: Sequence[Path]) -> list[str]:
        """Check files against the types, strictly; return mypy's complaints."""
        config = self.folder / "mypy.ini"
        config.write_text(_MYPY)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mypy", "--config-file", str(config)),
                *("--cache-dir", str(self.folder / "mypy-cache"), "--no-error-summary"),
                *("--no-pretty", "--explicit-package-bases", *map(str, files)),
            ],
            env=os.environ | {"MYPYPATH": os.pathsep.join((str(self.folder / "types"),))},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if ": error:" in line]


def compile_shared(library: Path, source: str) -> None:
    """Compile C without a C library into a shared object, with the compiler that builds Parley's kernels."""
    library.parent.mkdir(parents=True, exist_ok=True)
    code = library.with_suffix(".c")
    code.write_text(source)
    cache = str(library.parent / "zig")
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17"),
            *("-shared", "-nostdlib", "-O1", "-o", str(library), str(code)),
        ],
        env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache},
        check=True,
        timeout=120,
    )


def adapters() -> list[Path]:
    """Return every module of the project that imports TensorRT."""
    sources = (path for part in ("serve_app", "load") for path in (REPOSITORY / part).rglob("*.py"))
    return sorted(path for path in sources if _aliases(ast.parse(path.read_text("utf-8"))))


def uses(source: str) -> Iterator[Use]:
    """Yield every name of TensorRT's that a module names: dotted ones, imported ones, overridden methods."""
    module = ast.parse(source)
    aliases = _aliases(module)
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorrt":
            inside = [*(node.module or "").split(".")[1:]]
            for imported in node.names:
                yield Use(node.lineno, ".".join([*inside, imported.name]))
        elif isinstance(node, ast.Attribute) and (name := _dotted(node, aliases)):
            yield Use(node.lineno, name)
        elif isinstance(node, ast.ClassDef):
            for base in filter(None, (_dotted(base, aliases) for base in node.bases)):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name[0] != "_":
                        yield Use(method.lineno, f"{base}.{method.name}")


def _mended(types: str) -> str:
    """Return generated types without what is no Python, and with the one thing that they leave out."""
    lines = []
    for line in types.splitlines():
        if line.lstrip().startswith("def "):
            line = re.sub(r"\bin: ", "in_: ", line)  # a keyword cannot be given by name anyway
            try:
                ast.parse(f"{line.strip()} ...")
            except SyntaxError:
                name = line.partition("(")[0]
                line = f"{name}(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:"
        lines.append(line)
        if line.startswith("class IHostMemory"):  # of pybind11's buffers nothing is to be seen
            lines.append("    def __buffer__(self, flags: int, /) -> memoryview: ...")
    return "\n".join(lines) + "\n"


def _aliases(module: ast.Module) -> dict[str, str]:
    """Return the names by which a module knows TensorRT, and what each stands for within it."""
    found = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for imported in node.names:
                if imported.name.split(".")[0] == "tensorrt":
                    inside = imported.name.split(".")[1:] if imported.asname else []
                    found[imported.asname or "tensorrt"] = ".".join(inside)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorrt":
            inside = (node.module or "").split(".")[1:]
            for imported in node.names:
                found[imported.asname or imported.name] = ".".join([*inside, imported.name])
    return found


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in aliases:
        return None
    return ".".join(filter(None, (aliases[node.id], *parts))) or None
