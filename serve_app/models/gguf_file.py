"""The GGUF container: metadata and tensors, checked against the file's length before use.

Source: the format's description in the ggml repository, versions 2 and 3. The gguf package's own
reader trusts counts and lengths (a broken one keeps it busy for ever); its tables and its
dequantization are used here.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from serve_app.errors import ModelError
from serve_app.models.checkpoint import FloatArray

__all__ = ["READABLE_TYPES", "GgufFile"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LENGTH = struct.Struct("<Q")
_DEFAULT_ALIGNMENT = 32
_LARGEST_DIMENSIONS = 4

READABLE_TYPES = frozenset(
    GGMLQuantizationType[name]
    for name in (
        *("F32", "F16", "BF16"),
        *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    )
)

_SCALARS = {
    GGUFValueType.UINT8: "u1",
    GGUFValueType.INT8: "i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int


class _Cursor:
    """Reads little-endian values one after another; running off the end is a ModelError."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise self._cut_off(end)
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self) -> str:
        return self.texts(1)[0]

    def texts(self, count: int) -> list[str]:
        # A vocabulary and its merges are a hundred thousand, read at every start: one plain loop.
        data, end, texts = self._data, len(self._data), []
        for _ in range(count):
            start = self.position + _LENGTH.size
            if start > end:
                raise self._cut_off(start)
            self.position = start + _LENGTH.unpack_from(data, self.position)[0]
            if self.position > end:
                raise self._cut_off(self.position)
            try:
                texts.append(str(data[start : self.position], "utf-8"))
            except UnicodeDecodeError as error:
                msg = (
                    f"{self._path}: text before byte {self.position} is not UTF-8 ({error.reason})."
                )
                raise ModelError(msg) from error
        return texts

    def kind(self) -> GGUFValueType:
        number = self.u32()
        try:
            return GGUFValueType(number)
        except ValueError as error:
            msg = f"{self._path}: unknown value type {number} before byte {self.position}."
            raise ModelError(msg) from error

    def value(self) -> Any:
        kind = self.kind()
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self._numbers(kind, 1)[0]
        kind, count = self.kind(), self.u64()
        if kind == GGUFValueType.STRING:
            return self.texts(count)
        if kind == GGUFValueType.ARRAY:
            msg = f"{self._path}: nested arrays before byte {self.position} are not supported."
            raise ModelError(msg)
        return self._numbers(kind, count)

    def _cut_off(self, wanted: int) -> ModelError:
        return ModelError(
            f"{self._path} is cut off or broken: byte {wanted} is wanted, the file has "
            f"{len(self._data)}. Get it again."
        )

    def _numbers(self, kind: GGUFValueType, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        numbers: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return numbers


class GgufFile:
    """One GGUF file, mapped into memory.

    Attributes:
        path: the file.
        metadata: every key with its value as plain Python.
        shapes: shape of every tensor by its name in the file, row-major: a linear is [out, in].

    Raises:
        ModelError: the file is no GGUF file, is cut off, or holds a tensor of a type that can't
            be dequantized.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            msg = f"{path} can't be read: {error}."
            raise ModelError(msg) from error
        cursor = _Cursor(self._data, path)
        if cursor.take(4) != _MAGIC:
            msg = f"{path} is not a GGUF file: it doesn't begin with {_MAGIC.decode()}."
            raise ModelError(msg)
        version = cursor.u32()
        if version not in _VERSIONS:
            msg = f"{path} is a GGUF file of version {version}; Parley reads versions 2 and 3."
            raise ModelError(msg)
        tensors, keys = cursor.u64(), cursor.u64()
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = cursor.text()
            self.metadata[key] = cursor.value()
        self._entries = self._read_entries(cursor, tensors)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def _read_entries(self, cursor: _Cursor, count: int) -> dict[str, _Entry]:
        raw = []
        for _ in range(count):
            name, dimensions = cursor.text(), cursor.u32()
            if not 1 <= dimensions <= _LARGEST_DIMENSIONS:
                msg = f"{self.path}: tensor {name} claims {dimensions} dimensions."
                raise ModelError(msg)
            # The file lists the fastest dimension first.
            shape = tuple(reversed([cursor.u64() for _ in range(dimensions)]))
            raw.append((name, shape, cursor.u32(), cursor.u64()))
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            msg = f"{self.path}: general.alignment must be a multiple of 8, not {alignment!r}."
            raise ModelError(msg)
        data_start = -(-cursor.position // alignment) * alignment
        entries: dict[str, _Entry] = {}
        for name, shape, kind, offset in raw:
            if name in entries:
                msg = f"{self.path}: tensor {name} is there twice."
                raise ModelError(msg)
            entries[name] = self._entry(name, shape, kind, data_start + offset)
        return entries

    def _entry(self, name: str, shape: tuple[int, ...], number: int, start: int) -> _Entry:
        kind = _tensor_kind(number)
        if kind is None or kind not in READABLE_TYPES:
            stored = f"type {number}" if kind is None else kind.name
            msg = (
                f"{self.path}: tensor {name} is stored as {stored}, which Parley can't read; take "
                f"a file of one of {', '.join(sorted(readable.name for readable in READABLE_TYPES))}."
            )
            raise ModelError(msg)
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block_elements or min(shape) == 0:
            msg = (
                f"{self.path}: tensor {name} of shape {list(shape)} has rows that blocks of "
                f"{block_elements} elements ({kind.name}) don't fill."
            )
            raise ModelError(msg)
        size = math.prod(shape) // block_elements * block_bytes
        if start + size > len(self._data):
            msg = (
                f"{self.path} is cut off: tensor {name} ends at byte {start + size}, the file at "
                f"{len(self._data)}. Get it again."
            )
            raise ModelError(msg)
        return _Entry(kind, shape, start, size)

    def read(self, name: str) -> FloatArray:
        """Read and dequantize one tensor.

        Raises:
            ModelError: there is no such tensor.
        """
        entry = self._entries.get(name)
        if entry is None:
            msg = f"{self.path} holds no tensor {name}."
            raise ModelError(msg)
        block_elements, block_bytes = GGML_QUANT_SIZES[entry.kind]
        row_bytes = entry.shape[-1] // block_elements * block_bytes
        stored = np.frombuffer(self._data, np.uint8, entry.size, entry.start)
        rows = dequantize(stored.reshape(*entry.shape[:-1], row_bytes), entry.kind)
        # float32 comes as a view: copied, so that nobody holds on to the mapping.
        copy = True if entry.kind == GGMLQuantizationType.F32 else None
        return np.array(rows, dtype=np.float32, copy=copy).reshape(entry.shape)


def _tensor_kind(number: int) -> GGMLQuantizationType | None:
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        return None
