"""Compile the operators when the package is installed; hatchling calls this.

The compiler is clang as the wheel `ziglang` carries it, so that a machine needs none of its own. The
arithmetic is compiled once for every level of instructions; which one runs is decided where it runs.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path(__file__).parent
LIBRARY = SOURCES / "libparley_kernels.so"

_TARGET = "x86_64-linux-gnu.2.17"
_PLAIN = "x86_64"
# The processors of the levels, by the names of their tables.
_LEVELS = {
    "level_plain": _PLAIN,
    "level_avx2": "x86_64_v3",
    "level_vnni": "x86_64_v4+avx512vnni",
    "level_amx": "x86_64_v4+avx512vnni+amx_tile+amx_int8",
}
# No multiply-add that isn't written as one: every level shall compute the same bits.
_FLAGS = [
    "-std=gnu2x",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-sanitize=all",
    "-Wall",
    "-Wextra",
    "-Werror",
]


class KernelBuild(BuildHookInterface[Any]):
    """Puts the compiled library beside its sources and into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, on the machines that the operators are written for."""
        if compile_library():
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["artifacts"].append(f"/serve_app/kernels/{LIBRARY.name}")


def compile_library() -> bool:
    """Compile the library; return False on a machine that the operators aren't written for.

    Raises:
        subprocess.CalledProcessError: the compiler refuses.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    with tempfile.TemporaryDirectory() as folder:
        objects = []

        def compile_one(source: str, name: str, cpu: str, *defines: str) -> None:
            objects.append(f"{folder}/{name}.o")
            flags = [*_FLAGS, f"-mcpu={cpu}", *defines]
            _zig(folder, *flags, "-c", str(SOURCES / source), "-o", objects[-1])

        for name, cpu in _LEVELS.items():
            compile_one("level.c", name, cpu, f"-DLEVEL={name}")
        for name in ("pool", "operators"):
            compile_one(f"{name}.c", name, _PLAIN)
        draft = f"{folder}/{LIBRARY.name}"
        _zig(folder, "-shared", "-s", "-o", draft, *objects, "-lpthread", "-lm")
        LIBRARY.unlink(missing_ok=True)  # a process that has it loaded keeps what it has
        LIBRARY.write_bytes(Path(draft).read_bytes())
    return True


def _zig(cache: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", _TARGET, *arguments]
    caches = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}  # nothing is left behind
    subprocess.run(command, check=True, env=os.environ | caches)  # noqa: S603 - our own sources


if __name__ == "__main__":
    compile_library()
