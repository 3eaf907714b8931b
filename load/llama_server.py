"""llama.cpp's server as a peer: built from source where it isn't there, and run for one measurement."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from load.http_client import RequestFailed
from serve_app.cluster.ports import free_ports
from serve_app.errors import ConfigError
from serve_app.models.bundled import bundled_model

__all__ = ["LlamaCpp", "llama_server"]

# The source distribution carries llama.cpp's own sources.
_SOURCES = "llama-cpp-python==0.3.36"
_VENDORED = "vendor/llama.cpp"
_TARGETS = ("llama-server", "llama-quantize")
_START_S = 60.0
_POLL_S = 0.05
_TAIL = 2000


class LlamaCpp:
    """A folder with llama.cpp's programs and the weights that they were given.

    Args:
        folder: kept between measurements.
        server: the server's program, if it isn't the one in the folder; llama-quantize is beside it.

    Attributes:
        server: the server's program, there or not.
    """

    def __init__(self, folder: Path, server: Path | None = None) -> None:
        self.server = server or folder / "bin" / "llama-server"
        self._folder = folder

    def require(self, *, build: bool) -> None:
        """Make sure that the server is there.

        Args:
            build: download the sources from the package index and compile them where it isn't.

        Raises:
            ConfigError: it isn't there and isn't to be built, or can't be.
        """
        if self.server.is_file():
            return
        if not build:
            msg = (
                f"There is no {self.server}. Give --build to compile it from the sources in "
                f"{_SOURCES}, which takes a C++ compiler, cmake and some minutes."
            )
            raise ConfigError(msg)
        for program in ("cmake", "c++"):
            if shutil.which(program) is None:
                msg = f"{program} is not on the PATH; install it to build llama-server."
                raise ConfigError(msg)
        with TemporaryDirectory(prefix="parley-llama-") as scratch:
            self._build(Path(scratch))

    def weights(self, kind: str) -> Path:
        """Return the bundled model in one of llama.cpp's own kinds, converted by its own program.

        Args:
            kind: as llama-quantize names it, such as Q8_0.
        """
        path = self._folder / f"{bundled_model().stem}.{kind}.gguf"
        if not path.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            quantize = self.server.with_name("llama-quantize")
            _run([str(quantize), "--allow-requantize", str(bundled_model()), str(partial), kind])
            partial.rename(path)
        return path

    def _build(self, scratch: Path) -> None:
        _run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--no-binary", "llama-cpp-python", "--dest", str(scratch), _SOURCES),
            ]
        )
        (archive,) = scratch.glob("*.tar.gz")
        with tarfile.open(archive) as sources:
            sources.extractall(scratch, filter="data")
        (tree,) = scratch.glob(f"*/{_VENDORED}")
        build = scratch / "build"
        options = ("GGML_NATIVE=ON", "LLAMA_CURL=OFF", "BUILD_SHARED_LIBS=OFF")
        _run(
            [
                *("cmake", "-S", str(tree), "-B", str(build)),
                *("-DCMAKE_BUILD_TYPE=Release", *(f"-D{option}" for option in options)),
            ]
        )
        _run(["cmake", "--build", str(build), "--parallel", "2", "--target", *_TARGETS])
        self.server.parent.mkdir(parents=True, exist_ok=True)
        for target in reversed(_TARGETS):  # the server last: where it is, all are
            shutil.move(build / "bin" / target, self.server.with_name(target))


@contextmanager
def llama_server(
    program: Path,
    weights: Path,
    *,
    streams: int,
    context: int,
    threads: int,
    further: Sequence[str] = (),
) -> Iterator[str]:
    """Run llama-server for as long as the context lasts; yield the URL of its API.

    Args:
        program: llama-server.
        weights: a GGUF file.
        streams: sequences at once.
        context: tokens of all of them together.
        threads: of the computation.
        further: options of llama-server's own.

    Raises:
        RequestFailed: it doesn't start; the sentence quotes what it said.
    """
    (port,) = free_ports(1)
    with TemporaryDirectory(prefix="parley-llama-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(str(program), "--model", str(weights), "--no-webui"),
                    *("--host", "127.0.0.1", "--port", str(port)),
                    *("--parallel", str(streams), "--ctx-size", str(context)),
                    *("--threads", str(threads), "--threads-batch", str(threads)),
                    *further,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            _await_start(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


def _await_start(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    with httpx.Client(trust_env=False) as client:
        while True:
            try:
                if client.get(health).is_success:
                    return
            except httpx.TransportError:
                pass  # it doesn't listen yet
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-_TAIL:].strip()
                msg = f"llama-server did not start; it said:\n{said}"
                if (process.returncode or 0) < 0:
                    msg += (
                        f"\nIt died of {signal.Signals(-process.returncode).name}. Where its kernels for"
                        " AMX do that, measure it without them: --llama-options=--no-repack."
                    )
                raise RequestFailed("no start", msg)
            time.sleep(_POLL_S)


def _run(command: Sequence[str]) -> None:
    """Run a program to its end.

    Raises:
        ConfigError: it fails; the sentence quotes the last of what it said.
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = f"{done.stdout}{done.stderr}"[-_TAIL:].strip()
        msg = f"{Path(command[0]).name} failed:\n{said}"
        raise ConfigError(msg)
