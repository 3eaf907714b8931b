"""The compiled operators: whether they are here, and how a session gets them."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Literal

__all__ = ["DOMAIN", "Level", "available", "level", "register", "use_level"]

DOMAIN = "parley"
Level = Literal["amx", "vnni", "avx2", "plain"]

_PATH = Path(__file__).parent / "libparley_kernels.so"


def available() -> bool:
    """Say whether the operators were compiled and run fast on this processor."""
    return level() not in (None, "plain")


def level() -> Level | None:
    """Return the widest instructions of this processor that the operators know; None without them."""
    return _widest() if _PATH.is_file() else None


def use_level(name: Level | None) -> Level | None:
    """Have the operators of this process use certain instructions; None for the widest.

    Returns:
        What they use now, or None where the processor can't.
    """
    found = _library().parley_use_level(None if name is None else name.encode())
    return found.decode() if found else None


def register(options: Any, *, threads: int) -> None:
    """Make the operators known to a session of ONNX Runtime.

    Args:
        options: `onnxruntime.SessionOptions`.
        threads: how many threads work on one operator; those of all sessions of a process are the same.
    """
    _library().parley_use_threads(threads)
    options.register_custom_ops_library(str(_PATH))


@functools.cache
def _widest() -> Level | None:
    return use_level(None)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_PATH))
    library.parley_use_level.restype = ctypes.c_char_p
    library.parley_use_level.argtypes = [ctypes.c_char_p]
    library.parley_use_threads.restype = None
    library.parley_use_threads.argtypes = [ctypes.c_int]
    return library
