"""What all tests share: the bundled model, prepared once and kept on the disk between runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from serve_app.models.bundled import bundled_model
from serve_app.models.decoder_interface import Form
from serve_app.models.gguf_checkpoint import GgufCheckpoint
from serve_app.models.precision.base import PrecisionName
from serve_app.models.store import ModelStore, PreparedModel

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

_REPOSITORY = Path(__file__).parent.parent
# Longer than any test run: what nobody used for this long belongs to code that has changed since.
_STALE_S = 3600.0

# Metrics are files; `serve_app.telemetry` looks for their folder when it is imported.
_METRICS = tempfile.mkdtemp(prefix="parley-test-metrics-")
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _METRICS
# What the tests talk to is on this machine; a proxy, where one is set, is not asked for it.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

# The same examples every time, in as much time as they take: a red run can be had again.
settings.register_profile(
    "parley", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("parley")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Keep a file's tests in one process where several run them, so that its fixtures are made once.

    The clusters are as one file: much of what they take is waiting, in which the others run.
    """
    from xdist.scheduler import LoadFileScheduling

    class OneClusterAtATime(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "e2e" if "/e2e/" in file else file

    return OneClusterAtATime(config, log)


@pytest.fixture(scope="session", autouse=True)
def _remove_metrics() -> Iterator[None]:
    yield
    shutil.rmtree(_METRICS, ignore_errors=True)


def prometheus_tool(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; the test is skipped where they aren't to be had."""
    fetched = _REPOSITORY / ".cache" / "prometheus" / "usr" / "bin"
    found = shutil.which(name) or shutil.which(name, path=str(fetched))
    if found is None:
        pytest.skip(f"there is no {name}: `make prometheus` gets it from Debian's package")
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    """The tool that checks and tests rules."""
    return prometheus_tool("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """A Prometheus."""
    return prometheus_tool("prometheus")


@pytest.fixture(scope="session")
def prepared_home() -> Path:
    """A PARLEY_HOME for prepared models that outlives the run; $PARLEY_TEST_HOME moves it.

    Its name depends on the code that prepares models, so a change there prepares them anew.
    """
    digest = hashlib.sha256()
    for path in sorted((_REPOSITORY / "serve_app" / "models").rglob("*.*")):
        if path.suffix in (".py", ".txt"):
            digest.update(path.read_bytes())
    root = Path(os.environ.get("PARLEY_TEST_HOME", _REPOSITORY / ".cache" / "test-home")).absolute()
    home = root / digest.hexdigest()[:12]
    home.mkdir(parents=True, exist_ok=True)
    os.utime(home)
    for other in root.iterdir():
        if other.is_dir() and time.time() - other.stat().st_mtime > _STALE_S:
            # Another run may be clearing the same folder.
            shutil.rmtree(other, ignore_errors=True)
    return home


@pytest.fixture(scope="session")
def bundled_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled model's tokenizer and chat template, without its weights."""
    folder = tmp_path_factory.mktemp("bundled-tokenizer")
    GgufCheckpoint(bundled_model()).tokenizer().write(folder)
    return folder


@pytest.fixture(scope="session")
def bundled_fp32(prepared_home: Path) -> PreparedModel:
    """The bundled model in single precision."""
    return _bundled(prepared_home, "fp32")


@pytest.fixture(scope="session")
def bundled_int8(prepared_home: Path) -> PreparedModel:
    """The bundled model in 8-bit blocks."""
    return _bundled(prepared_home, "int8")


@pytest.fixture(scope="session")
def bundled_int8_cpu(prepared_home: Path) -> PreparedModel:
    """The bundled model in 8-bit blocks, on the runtime's own operators."""
    return _bundled(prepared_home, "int8", form="cpu")


@pytest.fixture(scope="session")
def bundled_standard(prepared_home: Path) -> PreparedModel:
    """The bundled model in single precision, on ONNX's own operators, with slots of 1024 tokens."""
    return _bundled(prepared_home, "fp32", form="standard", cache_length=1024)


def _bundled(
    home: Path,
    precision: PrecisionName,
    form: Form | None = None,
    cache_length: int | None = None,
) -> PreparedModel:
    return ModelStore(home).prepare(
        "bundled", precision=precision, form=form, cache_length=cache_length
    )
