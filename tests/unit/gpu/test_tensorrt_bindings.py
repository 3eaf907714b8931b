"""What talks to TensorRT uses nothing that NVIDIA's bindings don't have."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest
from bindings import REPOSITORY, Bindings, adapters, uses

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="there are wheels of the bindings for Linux on x86-64 alone",
)

BUILD = REPOSITORY / "serve_app" / "models" / "engine_build" / "tensorrt_adapter.py"

# What is wrong is marked; what TensorRT had before 11 is among it.
WRONG = """
from __future__ import annotations

import tensorrt as trt


class Monitor(trt.IProgressMonitor):
    def phase_begin(self, phase_name: str) -> None: ...  # wrong name


class Silent(trt.ILogger):
    def log(self, severity: int) -> None: ...  # wrong signature


def build(log: trt.ILogger) -> None:
    builder = trt.Builder(log)
    builder.make_network()  # wrong name
    network = builder.create_network(1, 2)  # wrong arguments
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    config.set_flag(trt.BuilderFlag.FP16)  # wrong name
    config.set_flag("REFIT")  # wrong type
    config.max_workspace_size = 1  # wrong attribute
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1)  # wrong argument
    config.builder_optimization_level = "most"  # wrong type
    builder.build_cuda_engine(network)  # wrong name
    trt.OnnxParser(network, log).parse_from_file()  # wrong arguments
    trt.IExecutionContextV2(log)  # wrong name
"""


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    return Bindings.prepare(tmp_path_factory.mktemp("bindings"))


def test_the_bindings_are_those_of_the_tensorrt_that_a_gpu_machine_gets(bindings: Bindings) -> None:
    version = bindings.python(
        "-c", "import tensorrt_bindings; print(tensorrt_bindings.__version__)"
    )
    assert f'"tensorrt-cu13=={version.strip()};' in (REPOSITORY / "pyproject.toml").read_text()


def test_every_module_that_imports_tensorrt_is_found() -> None:
    assert BUILD in adapters()


@pytest.mark.parametrize("adapter", adapters(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_name_exists(bindings: Bindings, adapter: Path) -> None:
    used = {use.name for use in uses(adapter.read_text("utf-8"))}
    assert len(used) > 1
    assert bindings.missing(sorted(used)) == []


def test_every_method_attribute_and_argument_is_what_it_is_taken_for(bindings: Bindings) -> None:
    assert bindings.type_errors(adapters()) == []


def test_the_types_know_what_comes_out_of_a_call(bindings: Bindings, tmp_path: Path) -> None:
    source = tmp_path / "reveals.py"
    source.write_text(
        "import tensorrt as trt\n\n\n"
        "def build(builder: trt.Builder) -> int:\n"
        "    return builder.create_builder_config()\n"
    )
    (error,) = bindings.type_errors([source])
    assert 'got "IBuilderConfig", expected "int"' in error


def test_what_the_bindings_do_not_have_is_noticed(bindings: Bindings, tmp_path: Path) -> None:
    source = tmp_path / "wrong.py"
    source.write_text(WRONG)
    marked = {number for number, line in enumerate(WRONG.splitlines(), 1) if "# wrong" in line}
    named = [*uses(WRONG)]
    missing = set(bindings.missing(use.name for use in named))
    assert missing == {
        "BuilderFlag.FP16",
        "IExecutionContextV2",
        "IProgressMonitor.phase_begin",
    }
    typed = {
        int(found[1])
        for error in bindings.type_errors([source])
        if (found := re.match(rf"{re.escape(str(source))}:(\d+): ", error))
    }
    assert typed | {use.line for use in named if use.name in missing} == marked
    assert len(typed) == len(marked) - 1  # a method that overrides nothing is no type error


def test_a_made_up_method_in_the_adapter_is_noticed(bindings: Bindings, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.py"
    text = BUILD.read_text("utf-8")
    assert text.count("builder.build_serialized_network(") == 1
    spoilt.write_text(text.replace("builder.build_serialized_network(", "builder.build_it("))
    errors = bindings.type_errors([spoilt])
    assert len(errors) == 1
    assert '"Builder" has no attribute "build_it"' in errors[0]
