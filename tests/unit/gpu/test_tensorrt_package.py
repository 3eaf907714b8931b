"""Whatever is wrong with an installed TensorRT, the sentence says what, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace

import pytest

from serve_app.errors import TensorRTUnavailable
from serve_app.gpu.driver import Gpu
from serve_app.gpu.tensorrt_package import require_supported, tensorrt_version


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have some distributions installed, and no others."""

    def install(*names: str) -> None:
        def version(name: str) -> str:
            if name not in names:
                raise metadata.PackageNotFoundError(name)
            return "11.4.0.106"

        monkeypatch.setattr(metadata, "version", version)

    return install


def failing(error: ImportError) -> Callable[[str], object]:
    def load(name: str) -> object:
        raise error

    return load


def test_the_version_is_that_of_what_is_imported() -> None:
    module = SimpleNamespace(__version__="11.4.0.106")
    assert tensorrt_version(lambda _: module) == "11.4.0.106"


@pytest.mark.parametrize("version", ["10.13.0.35", "12.0.0.1", "110.0"])
def test_another_major_version_is_refused(version: str) -> None:
    with pytest.raises(TensorRTUnavailable, match=rf"{version} is installed, and Parley needs 11"):
        tensorrt_version(lambda _: SimpleNamespace(__version__=version))


def test_nothing_installed_names_the_extra(installed: Callable[..., None]) -> None:
    installed()
    with pytest.raises(TensorRTUnavailable, match=r"not installed: `pip install 'parley\[gpu\]'`"):
        tensorrt_version(failing(ModuleNotFoundError("No module", name="tensorrt")))


def test_bindings_alone_are_not_enough(installed: Callable[..., None]) -> None:
    installed("tensorrt-cu13-bindings")
    with pytest.raises(TensorRTUnavailable, match=r"tensorrt-cu13-bindings 11\.4\.0\.106 alone"):
        tensorrt_version(failing(ModuleNotFoundError("No module", name="tensorrt")))


def test_missing_libraries_are_named_with_where_they_come_from(
    installed: Callable[..., None],
) -> None:
    installed("tensorrt-cu13", "tensorrt-cu13-bindings")
    error = ImportError("libnvinfer.so.11: cannot open shared object file")
    with pytest.raises(
        TensorRTUnavailable, match=r"\(libnvinfer.so.11: .*\): install tensorrt-cu13-libs"
    ):
        tensorrt_version(failing(error))


def test_packages_that_do_not_belong_together_are_named(installed: Callable[..., None]) -> None:
    installed("tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs")
    with pytest.raises(TensorRTUnavailable, match=r"undefined symbol.*must be of one version"):
        tensorrt_version(failing(ImportError("undefined symbol: createInferBuilder")))


def test_a_gpu_before_turing_is_refused() -> None:
    require_supported(Gpu("NVIDIA T4", (7, 5), 16_000_000_000))
    with pytest.raises(TensorRTUnavailable, match=r"V100 has compute capability 7\.0.*7\.5"):
        require_supported(Gpu("V100", (7, 0), 16_000_000_000))
