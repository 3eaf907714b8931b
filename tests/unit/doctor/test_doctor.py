"""The doctor says what would serve, what is missing, and what to do about it."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from tiny_checkpoints import write_folder

from serve_app.doctor import gpu as gpu_module
from serve_app.doctor import host
from serve_app.doctor.examination import Examination, examine
from serve_app.doctor.finding import Finding
from serve_app.errors import GpuUnavailable, TensorRTUnavailable
from serve_app.gpu.driver import Driver, Gpu
from serve_app.models.engine_build.compiler import BuildRequest, PhaseListener
from serve_app.models.engine_build.machine import Machine
from serve_app.models.engine_build.model_engine import build_model_engine
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.store import ModelStore
from serve_app.settings import Settings

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000, 80_000_000_000)
TENSORRT = "11.4.0.106"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PARLEY_")]:
        monkeypatch.delenv(name)


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Have packages be of some versions; all others are what they are."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))


@pytest.fixture
def cuda_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, torch="2.13.0")


def settings(*, max_len: int = 2048, **model: object) -> Settings:
    return Settings.load({"model": model, "generator": {"max_len": max_len}})


def no_driver() -> Driver:
    msg = "There is no NVIDIA driver here: install it."
    raise GpuUnavailable(msg)


def no_tensorrt() -> str:
    msg = "The package tensorrt is not installed: `pip install 'parley[gpu]'` brings it."
    raise TensorRTUnavailable(msg)


def driver(gpu: Gpu = H100, cuda: tuple[int, int] = (13, 0)) -> Driver:
    return Driver("580.65.06", cuda, (gpu,))


def look(home: Path, wanted: Settings, found: Driver | None = None) -> Examination:
    if found is None:
        return examine(home, wanted, ask_driver=no_driver, ask_tensorrt=no_tensorrt)
    return examine(home, wanted, ask_driver=lambda: found, ask_tensorrt=lambda: TENSORRT)


def line(seen: Examination, name: str) -> Finding:
    (finding,) = (finding for finding in seen.findings if finding.name == name)
    return finding


def test_a_machine_without_a_gpu_serves_on_its_processor(tmp_path: Path) -> None:
    seen = look(tmp_path, settings())
    assert seen.can_serve
    assert seen.plan is not None
    assert (seen.plan.precision, seen.plan.backend) == ("int8", "onnxruntime")
    assert seen.plan.form in ("native", "cpu")
    for name in ("GPU", "TensorRT"):
        finding = line(seen, name)
        assert finding.state == "optional"
        assert "install" in finding.advice
    assert line(seen, "models").found == "none"
    assert [finding.name for finding in seen.findings][:4] == [
        "processor",
        "disk",
        "Redis",
        "HAProxy",
    ]


def test_every_model_and_pool_is_looked_at(tmp_path: Path) -> None:
    wanted = Settings.load(
        {
            "models": {
                "also": {"gone": {"source": "/nowhere/model.gguf"}},
                "pools": {"exact": {"precision": "fp32"}},
            }
        }
    )
    seen = look(tmp_path, wanted)
    assert [plan.deployment for plan in seen.further] == ["Generator-exact", "Generator-gone"]
    assert line(seen, "Generator-exact").state == "ok"
    assert "first start" in line(seen, "Generator-exact").advice
    gone = line(seen, "Generator-gone")
    assert gone.state == "missing"
    assert "no model at /nowhere/model.gguf" in gone.advice
    assert not seen.can_serve


def test_what_a_gpu_backend_lacks_is_missing_with_what_to_do(tmp_path: Path) -> None:
    seen = look(tmp_path, settings(precision="fp16"))
    assert not seen.can_serve
    assert seen.plan is not None
    assert (seen.plan.form, seen.plan.precision) == ("standard", "fp16")
    missing = {
        finding.name: finding.advice for finding in seen.findings if finding.state == "missing"
    }
    assert {"GPU", "TensorRT", "engine"} <= missing.keys()
    assert all(missing.values())


@pytest.mark.usefixtures("cuda_torch")
def test_a_gpu_with_an_engine_can_serve(tmp_path: Path) -> None:
    class Builder:
        version = TENSORRT

        def build(self, request: BuildRequest, listener: PhaseListener) -> bytes:
            request.plan.write_bytes(b"plan")
            return b""

        def refit(self, plan: Path, graph: Path, refitted: Path) -> None:
            raise AssertionError

    home = tmp_path / "home"
    write_folder(tmp_path / "tiny")
    wanted = settings(max_len=64, source=str(tmp_path / "tiny"), precision="fp16")
    model = ModelStore(home).prepare(
        str(tmp_path / "tiny"), precision="fp16", form="standard", cache_length=64
    )
    without = look(home, wanted, driver())
    assert line(without, "engine").state == "missing"
    assert "`parley model build`" in line(without, "engine").advice
    build_model_engine(
        model,
        Machine(H100, Builder()),
        slots=4,
        prefill_chunk=16,
        options=BuildOptions(),
        home=home,
    )
    seen = look(home, wanted, driver())
    assert [finding for finding in seen.findings if finding.state == "missing"] == []
    assert seen.can_serve
    assert line(seen, "driver").found == "580.65.06, CUDA up to 13.0"
    assert line(seen, "GPU 0").found == (
        "NVIDIA H100 80GB HBM3, compute capability 9.0, 85.0 GB, 80.0 GB free"
    )
    assert model.path.name in line(seen, "models").found
    elsewhere = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 40_000_000_000)
    other = look(home, wanted, driver(elsewhere))
    assert "built on NVIDIA H100" in line(other, "engine").advice


@pytest.mark.parametrize(
    ("found", "name", "advice"),
    [
        (driver(cuda=(12, 4)), "driver", "driver 580 or later"),
        (driver(Gpu("Tesla V100", (7, 0), 16_000_000_000)), "GPU 0", "Turing"),
    ],
)
@pytest.mark.usefixtures("cuda_torch")
def test_a_gpu_that_is_too_old_is_told_apart(
    tmp_path: Path, found: Driver, name: str, advice: str
) -> None:
    wanted = line(look(tmp_path, settings(precision="fp16"), found), name)
    assert wanted.state == "missing"
    assert advice in wanted.advice
    assert line(look(tmp_path, settings(), found), name).state == "optional"


def test_a_build_of_torch_without_cuda_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings(precision="fp16")
    installed(monkeypatch, torch="2.13.0+cpu")
    found = line(look(tmp_path, wanted, driver()), "PyTorch")
    assert (found.state, found.found) == ("missing", "2.13.0+cpu")
    monkeypatch.setattr(gpu_module, "find_spec", lambda _: None)
    assert "parley[gpu]" in line(look(tmp_path, wanted, driver()), "PyTorch").advice


@pytest.mark.parametrize(
    ("model", "backend"),
    [
        ({"precision": "int8", "form": "standard"}, "tensorrt"),
        ({"precision": "bf16"}, "tensorrt"),
        ({"precision": "int8", "form": "cpu"}, "onnxruntime"),
        ({"precision": "int8"}, "onnxruntime"),
    ],
)
def test_the_form_decides_what_computes(
    tmp_path: Path, model: dict[str, str], backend: str
) -> None:
    seen = look(tmp_path, settings(**model))
    assert seen.plan is not None
    assert seen.plan.backend == backend
    assert seen.can_serve == (backend == "onnxruntime")


@pytest.mark.usefixtures("cuda_torch")
def test_a_model_with_slots_of_another_length_is_another_model(tmp_path: Path) -> None:
    write_folder(tmp_path / "tiny")
    source = str(tmp_path / "tiny")
    model = ModelStore(tmp_path).prepare(source, precision="fp16", cache_length=32)
    advice = {
        length: line(
            look(tmp_path, settings(max_len=length, source=source, precision="fp16"), driver()),
            "engine",
        ).advice
        for length in (32, 64)
    }
    assert str(model.path) in advice[32]
    assert str(model.path) not in advice[64]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu avx2 avx512f avx512_vnni", "AVX2, AVX-512, AVX-512 VNNI"),
        ("fpu avx2", "AVX2"),
        ("fpu sse", "neither AVX2 nor AVX-512"),
    ],
)
def test_the_processors_features_are_named(tmp_path: Path, flags: str, found: str) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx2\n")
    assert f"CPUs, {found}" in host.processor(cpu_info).found


def test_operators_that_are_not_compiled_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.library, "level", lambda: None)
    assert "install Parley again" in host.processor().advice


def test_a_full_disk_and_one_that_cannot_be_written_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.disk(tmp_path / "not" / "there").state == "ok"
    usage = shutil.disk_usage("/")._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert host.disk(tmp_path).state == "missing"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "PARLEY_HOME" in host.disk(tmp_path).advice


def test_redis_and_haproxy_may_come_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = Settings.load({"redis": {"url": "redis://:secret@nowhere:1/0"}})
    found = host.redis_server(named.redis)
    assert (found.state, "secret" in found.found) == ("ok", False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(metadata, "files", lambda _: [])
    assert host.redis_server(Settings.load().redis).state == "missing"
    file = tmp_path / "url"
    by_file = Settings.load({"redis": {"url_file": str(file)}})
    assert "can't be read" in host.redis_server(by_file.redis).advice
    file.write_text("redis://:secret@nowhere:1/0")
    assert host.redis_server(by_file.redis).state == "ok"

    def none(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(host, "import_module", none)
    assert host.haproxy().state == "optional"
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/sbin/haproxy")
    assert host.haproxy().found == "/usr/sbin/haproxy"


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "models" / "broken").mkdir(parents=True)
    found = line(look(tmp_path, settings()), "models")
    assert "damaged: broken" in found.found
    assert "parley model remove" in found.advice
