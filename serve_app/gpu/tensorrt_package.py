"""The TensorRT that is installed: whether it can be imported, and what is missing if not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

from serve_app.errors import TensorRTUnavailable
from serve_app.gpu.driver import Gpu

__all__ = [
    "LEAST_COMPUTE_CAPABILITY",
    "TENSORRT_MAJOR",
    "require_supported",
    "tensorrt_version",
]

TENSORRT_MAJOR = 11
LEAST_COMPUTE_CAPABILITY = (7, 5)
"""Turing's; NVIDIA's list of prerequisites for TensorRT 11."""

_PACKAGES = ("tensorrt-cu13", "tensorrt-cu12", "tensorrt")
_BINDINGS = ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings")
_LIBRARIES = ("tensorrt-cu13-libs", "tensorrt-cu12-libs")
_INSTALL = "`pip install 'parley[gpu]'` brings it"


def tensorrt_version(load: Callable[[str], Any] = importlib.import_module) -> str:
    """Return the version of the TensorRT that `import tensorrt` finds.

    Args:
        load: imports a module by its name.

    Raises:
        TensorRTUnavailable: it is not there, not whole, or of another major version.
    """
    try:
        module = load("tensorrt")
    except ImportError as error:
        raise TensorRTUnavailable(_why_not(error)) from error
    version = str(module.__version__)
    if version.partition(".")[0] != str(TENSORRT_MAJOR):
        msg = f"TensorRT {version} is installed, and Parley needs {TENSORRT_MAJOR}: {_INSTALL}."
        raise TensorRTUnavailable(msg)
    return version


def require_supported(gpu: Gpu) -> None:
    """Refuse a GPU that TensorRT has no kernels for.

    Raises:
        TensorRTUnavailable: its architecture is too old.
    """
    if gpu.compute_capability < LEAST_COMPUTE_CAPABILITY:
        major, minor = gpu.compute_capability
        msg = (
            f"{gpu.name} has compute capability {major}.{minor}, and TensorRT {TENSORRT_MAJOR} needs "
            f"7.5 (Turing) or later; serve on the CPU here, or take a newer GPU."
        )
        raise TensorRTUnavailable(msg)


def _why_not(error: ImportError) -> str:
    if error.name == "tensorrt" and not _installed(_PACKAGES):
        bindings = _installed(_BINDINGS)
        alone = f" Of it there is {bindings} alone, which is not enough." if bindings else ""
        return f"The package tensorrt is not installed: {_INSTALL}.{alone}"
    libraries = _installed(_LIBRARIES)
    if not libraries:
        return (
            f"TensorRT's libraries are missing ({error}): install tensorrt-cu13-libs in the version of "
            "tensorrt-cu13. Its installation fetches them from NVIDIA's own package index, which this "
            "machine must reach, or a mirror of it that --extra-index-url names."
        )
    return (
        f"TensorRT can't be loaded ({error}), though {libraries} is installed: its packages must be of "
        f"one version, for the Python in use; {_INSTALL}, in a fresh environment."
    )


def _installed(names: tuple[str, ...]) -> str | None:
    """Return the first of some distributions that is installed, with its version."""
    for name in names:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None
