"""The safetensors container: a length, a JSON header, and raw tensors.

Source: the format's description in the safetensors repository. Read here and not through the
package because its numpy side has no bfloat16, and because an error must name file and tensor.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.errors import ModelError
from serve_app.models.checkpoint import FloatArray
from serve_app.models.json_files import parse_json_object

__all__ = ["SafetensorsFile"]

_LARGEST_HEADER = 100_000_000
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int


class SafetensorsFile:
    """One safetensors file, mapped into memory and checked before anything is believed.

    Attributes:
        path: the file.
        shapes: shape of every tensor by name.

    Raises:
        ModelError: the header is broken, a tensor lies outside the file or has a type that is
            not F32, F16 or BF16.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(8)
                length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
                if not 2 <= length <= min(self._size - 8, _LARGEST_HEADER):
                    msg = (
                        f"{path} is not a safetensors file, or it is cut off: it claims a header "
                        f"of {length} bytes and has {self._size} bytes in all. Get it again."
                    )
                    raise ModelError(msg)
                header = parse_json_object(file.read(length), where=f"The header of {path}")
        except OSError as error:
            msg = f"{path} can't be read: {error.strerror}."
            raise ModelError(msg) from error
        self._data_start = 8 + length
        header.pop("__metadata__", None)
        self._entries = {name: self._entry(name, fields) for name, fields in header.items()}
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def _entry(self, name: str, fields: Any) -> _Entry:
        try:
            dtype, shape = str(fields["dtype"]), tuple(fields["shape"])
            start, end = fields["data_offsets"]
            numbers = (*shape, start, end)
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError(numbers)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{self.path}: the header's entry for {name} is broken; get the file again."
            raise ModelError(msg) from error
        if dtype not in _DTYPES:
            msg = (
                f"{self.path}: tensor {name} is stored as {dtype}; Parley reads "
                f"{', '.join(_DTYPES)}. Use a checkpoint that is not quantized."
            )
            raise ModelError(msg)
        if end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
            msg = f"{self.path}: tensor {name} has {end - start} bytes, which {shape} doesn't fill."
            raise ModelError(msg)
        if self._data_start + end > self._size:
            msg = (
                f"{self.path} is cut off: tensor {name} ends at byte {self._data_start + end}, "
                f"the file at {self._size}. Get it again."
            )
            raise ModelError(msg)
        return _Entry(dtype, shape, start)

    def read(self, name: str) -> FloatArray:
        """Read one tensor as float32.

        Raises:
            ModelError: there is no such tensor, or the file can't be read.
        """
        entry = self._entries.get(name)
        if entry is None:
            msg = f"{self.path} holds no tensor {name}."
            raise ModelError(msg)
        try:
            stored = np.fromfile(
                self.path,
                dtype=_DTYPES[entry.dtype],
                count=math.prod(entry.shape),
                offset=self._data_start + entry.start,
            ).reshape(entry.shape)
        except (OSError, ValueError) as error:
            msg = f"{self.path}: tensor {name} can't be read: {error}."
            raise ModelError(msg) from error
        if entry.dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            bits = stored.astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32)
        return np.asarray(stored, dtype=np.float32)
