"""Engines are built once, whole, with a manifest, and never used where they don't belong."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import H100, FakeCompiler, prepare

from serve_app.errors import TensorRTEngineError
from serve_app.gpu.driver import Gpu
from serve_app.models.checkpoint import no_progress
from serve_app.models.engine_build.build import build_engine
from serve_app.models.engine_build.compiler import CompilerRefusal, TimingCacheRefusal
from serve_app.models.engine_build.engine_manifest import EngineManifest
from serve_app.models.engine_build.engine_store import Engine
from serve_app.models.engine_build.graph_identity import content_sha256, prepared_sha256
from serve_app.models.engine_build.machine import Machine
from serve_app.models.engine_build.model_engine import build_model_engine, find_model_engine
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.engine_build.profiles import decoder_profiles
from serve_app.models.engine_build.timing_cache import TimingCacheFile
from serve_app.models.store import ModelStore, PreparedModel

A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 40_000_000_000)
H200 = Gpu("NVIDIA H200", (9, 0), 141_000_000_000)


def build(model: PreparedModel, machine: Machine, home: Path, **given: Any) -> Engine:
    options = given.pop("options", BuildOptions())
    return build_model_engine(
        model, machine, **({"slots": 8, "prefill_chunk": 32} | given), options=options, home=home
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_an_engine_lies_beside_its_model_with_all_that_tells_it_apart(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    options = BuildOptions(workspace_bytes=1 << 30, optimization_level=4)
    engine = build(model, machine, home, options=options)
    assert engine.path.parent == model.path / "engines"
    assert engine.path.name.startswith("sm90-trt11.4.0.106-")
    assert names(engine.path) == ["engine.plan", "manifest.json"]
    manifest = EngineManifest.read(engine.path)
    assert manifest == engine.manifest
    assert manifest.model_sha256 == content_sha256(model.path / "decoder.onnx")
    assert (manifest.model, manifest.tensorrt, manifest.gpu.name) == (
        "tiny-llama",
        "11.4.0.106",
        "NVIDIA H100 80GB HBM3",
    )
    assert manifest.options == options
    assert [profile.name for profile in manifest.profiles] == ["prefill", "decode"]
    assert [profile.name for profile in manifest.profiles] == ["prefill", "decode"]
    assert manifest.plan.bytes == engine.plan.stat().st_size
    engine.verify()
    ModelStore(home).find(model.path.name).verify()


def test_tensorrt_is_asked_for_what_was_wanted(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path
) -> None:
    options = BuildOptions(refit="stripped")
    engine = build(model, machine, home, options=options)
    (request,) = compiler.requests
    assert request.graph == model.path / "decoder.onnx"
    assert request.options == options
    assert tuple(request.profiles) == engine.manifest.profiles
    assert json.loads(engine.plan.read_text()) == {"flags": ["refit", "strip_plan"]}
    assert engine.manifest.needs_weights


def test_a_graph_without_a_manifest_can_be_built(
    model: PreparedModel, machine: Machine, home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(model.path / "decoder.onnx", folder / "renamed.onnx")
    shutil.copy(model.path / "decoder.onnx.data", folder)
    profiles = decoder_profiles(model.manifest.interface, slots=2, prefill_chunk=8)
    engine = build_engine(folder / "renamed.onnx", profiles=profiles, machine=machine, home=home)
    assert (engine.path.parent, engine.manifest.model) == (folder / "engines", "renamed")
    assert engine.manifest.model_sha256 == prepared_sha256(model)


def test_an_engine_that_is_there_is_reused(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path
) -> None:
    engine = build(model, machine, home)
    assert build(model, machine, home) == engine
    assert len(compiler.requests) == 1
    build(model, machine, home, rebuild=True)
    assert len(compiler.requests) == 2
    assert build(model, machine, home, slots=4).path != engine.path
    assert build(model, machine, home, options=BuildOptions(tf32=True)).path != engine.path
    assert len(names(model.path / "engines")) == 3


@pytest.mark.parametrize("fault", ["short", "missing", "manifest"])
def test_a_damaged_engine_is_built_anew(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path, fault: str
) -> None:
    engine = build(model, machine, home)
    if fault == "short":
        engine.plan.write_bytes(engine.plan.read_bytes()[:-1])
    elif fault == "missing":
        engine.plan.unlink()
    else:
        (engine.path / "manifest.json").write_text("{")
    again = build(model, machine, home)
    assert len(compiler.requests) == 2
    again.verify()
    assert names(model.path / "engines") == [engine.path.name]


def test_machines_share_engines_through_a_store(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path, tmp_path: Path
) -> None:
    store = tmp_path / "shared"
    engine = build(model, machine, home, store=store)
    assert engine.path.parent.parent == store
    other_home = tmp_path / "other"
    source = Path(model.manifest.source)
    other = ModelStore(other_home).prepare(
        str(source), precision="fp16", form="standard", cache_length=64
    )
    assert build(other, machine, other_home, store=store) == engine
    assert len(compiler.requests) == 1
    assert find_model_engine(other, machine.environment, store) == engine
    # Another architecture has an engine of its own there.
    build(other, Machine(A100, compiler), other_home, store=store)
    assert len(names(engine.path.parent)) == 2


def test_two_that_start_at_once_build_once(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path, tmp_path: Path
) -> None:
    waiting, built = threading.Event(), threading.Event()
    found: list[Engine] = []

    def first(stage: str, done: int, total: int) -> None:
        if stage == "reading the graph":
            assert waiting.wait(10)

    def second(stage: str, done: int, total: int) -> None:
        if stage == "waiting for another build of this engine":
            waiting.set()

    def run(progress: Any, begin: threading.Event | None) -> None:
        if begin is not None:
            assert begin.wait(10)
        found.append(build(model, machine, home, store=tmp_path / "shared", progress=progress))

    def announce(stage: str, done: int, total: int) -> None:
        built.set()
        first(stage, done, total)

    threads = [
        threading.Thread(target=run, args=(announce, None)),
        threading.Thread(target=run, args=(second, built)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(compiler.requests) == 1


def test_the_timing_cache_is_kept_between_builds_of_one_gpu(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path
) -> None:
    build(model, machine, home)
    build(model, machine, home, slots=4)
    build(model, Machine(A100, compiler), home)
    caches = [request.timing_cache for request in compiler.requests]
    assert caches == [b"", b"measured;", b""]
    files = names(home / "timing-caches")
    assert files == [
        "NVIDIA-A100-SXM4-40GB-11.4.0.106.bin",
        "NVIDIA-H100-80GB-HBM3-11.4.0.106.bin",
    ]


def test_a_timing_cache_that_tensorrt_refuses_is_begun_anew(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path
) -> None:
    build(model, machine, home)
    compiler.refuses_cache = True
    build(model, machine, home, slots=4)
    assert compiler.requests[-1].timing_cache == b""
    (cache,) = (home / "timing-caches").glob("*.bin")
    assert cache.read_bytes() == b"measured;"


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (CompilerRefusal(["out of memory", "tactic failed"]), "out of memory; tactic failed"),
        (CompilerRefusal([]), "it gives no reason"),
        (TimingCacheRefusal(["of no use"]), "of no use"),
        (OSError(errno.ENOSPC, "No space left on device"), "doesn't fit the disk"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_a_build_that_fails_says_why_and_leaves_nothing(
    model: PreparedModel,
    machine: Machine,
    compiler: FakeCompiler,
    home: Path,
    refusal: Exception,
    sentence: str,
) -> None:
    compiler.refusal = refusal
    with pytest.raises(TensorRTEngineError, match=sentence):
        build(model, machine, home)
    assert names(model.path / "engines") == []
    compiler.refusal = None
    build(model, machine, home).verify()


def test_an_interrupted_build_leaves_nothing(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "Building":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(model, machine, home, progress=interrupt)
    assert names(model.path / "engines") == []


def test_what_a_killed_build_left_is_cleared_away(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    engine = build(model, machine, home)
    left = engine.path.with_name(f".partial-{engine.path.name}-abc")
    left.mkdir()
    (left / "engine.plan").write_bytes(b"half")
    build(model, machine, home, rebuild=True)
    assert names(model.path / "engines") == [engine.path.name]


def test_a_graph_that_the_parser_refuses_is_not_handed_to_it(
    machine: Machine, compiler: FakeCompiler, home: Path, model: PreparedModel
) -> None:
    cpu = ModelStore(home).prepare(model.manifest.source, precision="fp32", form="cpu")
    profiles = decoder_profiles(model.manifest.interface, slots=2, prefill_chunk=8)
    with pytest.raises(TensorRTEngineError, match=r"for 8 reasons.*GroupQueryAttention"):
        build_engine(cpu.path / "decoder.onnx", profiles=profiles, machine=machine, home=home)
    assert compiler.requests == []
    with pytest.raises(TensorRTEngineError, match="--form standard"):
        build(cpu, machine, home)
    with pytest.raises(TensorRTEngineError, match="no ONNX graph"):
        build_engine(model.path / "config.onnx", profiles=profiles, machine=machine, home=home)


def test_a_store_that_cannot_be_written_is_named(
    model: PreparedModel, machine: Machine, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TensorRTEngineError, match=r"can't be written .*PARLEY_MODEL_ENGINES"):
        build(model, machine, home, store=tmp_path / "file")


@pytest.mark.parametrize(
    ("gpu", "tensorrt", "options", "reason"),
    [
        (A100, "11.4.0.106", {}, "built on NVIDIA H100 80GB HBM3 .compute capability 9.0., and"),
        (H200, "11.4.0.106", {}, "and this is NVIDIA H200"),
        (H200, "11.4.0.106", {"hardware_compatibility": "same_compute_capability"}, None),
        (A100, "11.4.0.106", {"hardware_compatibility": "same_compute_capability"}, "A100"),
        (A100, "11.4.0.106", {"hardware_compatibility": "ampere_plus"}, None),
        (H100, "11.5.0.1", {}, "TensorRT 11.4.0.106 built it, and this is 11.5.0.1"),
        (H100, "11.5.0.1", {"version_compatible": True}, None),
        (H100, "11.3.0.1", {"version_compatible": True}, "this is 11.3.0.1"),
        (H100, "12.0.0.1", {"version_compatible": True}, "this is 12.0.0.1"),
    ],
)
def test_an_engine_is_used_only_where_it_runs(
    model: PreparedModel,
    machine: Machine,
    home: Path,
    gpu: Gpu,
    tensorrt: str,
    options: dict[str, Any],
    reason: str | None,
) -> None:
    engine = build(model, machine, home, options=BuildOptions(**options))
    there = Machine(gpu, FakeCompiler(version=tensorrt)).environment
    if reason is None:
        assert find_model_engine(model, there) == engine
        engine.require_fit(prepared_sha256(model), there)
        return
    with pytest.raises(TensorRTEngineError, match=f"{reason}.*`parley model build`"):
        find_model_engine(model, there)
    with pytest.raises(TensorRTEngineError, match=reason):
        engine.require_fit(prepared_sha256(model), there)


def test_an_engine_of_other_weights_is_refused(
    model: PreparedModel, machine: Machine, home: Path, tmp_path: Path
) -> None:
    engine = build(model, machine, home)
    other = prepare(home, tmp_path / "other", scale=2)
    with pytest.raises(TensorRTEngineError, match="There is no engine in"):
        find_model_engine(other, machine.environment)
    shutil.copytree(engine.path.parent, other.path / "engines")
    with pytest.raises(TensorRTEngineError, match="the weights of another model"):
        find_model_engine(other, machine.environment)


def test_a_changed_plan_and_a_broken_manifest_are_named(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    engine = build(model, machine, home)
    content = bytearray(engine.plan.read_bytes())
    content[0] ^= 1
    engine.plan.write_bytes(content)
    find_model_engine(model, machine.environment)  # sizes alone are looked at
    with pytest.raises(TensorRTEngineError, match="not as it was built"):
        engine.verify()
    (engine.path / "manifest.json").write_text('{"format_version": 1}')
    with pytest.raises(TensorRTEngineError, match=r"manifest.json is broken \(model: "):
        find_model_engine(model, machine.environment)


def test_the_newest_of_several_that_fit_is_taken(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    older = build(model, machine, home)
    newer = build(model, machine, home, slots=4)
    older.manifest.model_copy(update={"created": 1}).write(older.path)
    assert find_model_engine(model, machine.environment).path == newer.path
    newer.manifest.model_copy(update={"created": 0}).write(newer.path)
    assert find_model_engine(model, machine.environment).path == older.path


def test_a_folder_of_another_format_is_not_used(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    engine = build(model, machine, home)
    later = replace(engine, manifest=engine.manifest.model_copy(update={"format_version": 2}))
    later.manifest.write(later.path)
    with pytest.raises(TensorRTEngineError, match="its folder is of format 2"):
        find_model_engine(model, machine.environment)


def test_an_engine_whose_plan_is_gone_is_refused(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    build(model, machine, home).plan.unlink()
    with pytest.raises(TensorRTEngineError, match=r"engine\.plan is missing"):
        find_model_engine(model, machine.environment)


def test_a_graph_without_its_data_is_refused_with_the_files_name(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    (model.path / "decoder.onnx.data").unlink()
    profiles = decoder_profiles(model.manifest.interface, slots=2, prefill_chunk=8)
    with pytest.raises(TensorRTEngineError, match=r"decoder\.onnx\.data can't be read .*beside"):
        build_engine(model.path / "decoder.onnx", profiles=profiles, machine=machine, home=home)


def test_builds_on_one_gpu_wait_for_each_other(tmp_path: Path) -> None:
    cache = TimingCacheFile(tmp_path, gpu="NVIDIA H100", tensorrt="11.4.0.106")
    waits, entered = threading.Event(), threading.Event()

    def second() -> None:
        with cache.held(lambda *_: waits.set()):
            entered.set()

    thread = threading.Thread(target=second)
    with cache.held(no_progress):
        thread.start()
        assert waits.wait(30)
        assert not entered.is_set()
    assert entered.wait(30)
    thread.join()


def test_an_engine_with_profiles_of_somebody_s_own_is_none_that_a_replica_runs(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    prefill, decode = decoder_profiles(model.manifest.interface, slots=2, prefill_chunk=8)
    graph = model.path / "decoder.onnx"
    build_engine(graph, profiles=[decode], machine=machine, home=home)
    build_engine(graph, profiles=[decode, prefill], machine=machine, home=home)
    with pytest.raises(TensorRTEngineError, match="others than prefill and decode"):
        find_model_engine(model, machine.environment)
    own = build(model, machine, home)
    assert find_model_engine(model, machine.environment).path == own.path
