"""YAML whose every key knows its line, so that a fault in a file can be pointed at."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from serve_app.errors import ConfigError

__all__ = ["Fault", "KeyPath", "YamlFile", "as_sentence", "read_yaml", "unknown_key"]

KeyPath: TypeAlias = tuple[Hashable, ...]

_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong in a file.

    Attributes:
        path: keys and list positions from the root to what is wrong.
        message: what is wrong with it and what to do.
    """

    path: KeyPath
    message: str


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A parsed YAML mapping and the lines of its keys.

    Attributes:
        file: where it was read.
        content: its bytes.
        data: what they say.
        lines: line number, from 1, of every key and list item by its path.
        repeated: keys that stand twice in one mapping.
    """

    file: Path
    content: bytes
    data: dict[str, Any]
    lines: dict[KeyPath, int]
    repeated: tuple[Fault, ...]

    def line(self, path: KeyPath) -> int:
        """Return the line of the path, or of its nearest parent that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def refusal(self, faults: list[Fault]) -> ConfigError:
        """Return the error that names every fault with file, line and key, in the file's order."""
        ordered = sorted(faults, key=lambda fault: self.line(fault.path))
        lines = [
            f"{self.file}:{self.line(fault.path)}: {_dotted(fault.path)}{fault.message}"
            for fault in ordered
        ]
        return ConfigError("\n".join(lines))


def read_yaml(file: Path) -> YamlFile:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: the file isn't there, can't be read, or isn't a YAML mapping.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        msg = f"Can't read {file}: {error.strerror}."
        raise ConfigError(msg) from None
    if len(content) > _MAX_BYTES:
        msg = f"{file} is {len(content)} bytes long; a file may have {_MAX_BYTES}. Make it shorter."
        raise ConfigError(msg)
    try:
        loader = yaml.SafeLoader(content)
        root = loader.get_single_node()
        walk = _Walk(loader)
        walk.visit(root, ())
        data = loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        msg = f"{where}: not valid YAML: {error.problem or error.context}."
        raise ConfigError(msg) from None
    except yaml.YAMLError as error:
        msg = f"{file}: not valid YAML: {str(error).splitlines()[0]}."
        raise ConfigError(msg) from None
    if not isinstance(data, dict):
        msg = f"{file} must hold a mapping of keys to values."
        raise ConfigError(msg)
    return YamlFile(file, content, data, walk.lines, tuple(walk.repeated))


def unknown_key(key: str, known: Collection[str]) -> str:
    """Say that a key is unknown, and which one may have been meant."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown key; did you mean `{close[0]}`?" if close else "unknown key; remove it."


def as_sentence(message: str) -> str:
    """Return what pydantic says of a fault, without its prefix and with a full stop."""
    text = message.removeprefix("Value error, ")
    return text if text.endswith((".", "!", "?")) else f"{text}."


class _Walk:
    """Collects the lines of all keys of a node tree."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.repeated: list[Fault] = []
        self._loader = loader
        self._open: set[int] = set()

    def visit(self, node: yaml.Node | None, path: KeyPath) -> None:
        if node is None or id(node) in self._open:
            return  # an alias of a node that contains it
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                self.lines[(*path, position)] = item.start_mark.line + 1
                self.visit(item, (*path, position))
        self._open.discard(id(node))

    def _visit_mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: set[Hashable] = set()
        for key_node, value in node.value:
            key = self._loader.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the constructor refuses it with its own message
            here = (*path, key)
            if key in seen:
                self.repeated.append(Fault(here, "stands here twice; YAML would keep the last."))
            seen.add(key)
            self.lines[here] = key_node.start_mark.line + 1
            self.visit(value, here)


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return f"{text}: " if text else ""
