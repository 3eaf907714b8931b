from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from random_checkpoint import tiny_architecture
from tiny_checkpoints import Make, random_tensors

from serve_app.errors import ModelError
from serve_app.models import manifest as manifest_module
from serve_app.models.bundled import BUNDLED
from serve_app.models.manifest import Manifest
from serve_app.models.store import ModelStore, PreparedModel

Stages = list[tuple[str, int, int]]

# A process that prepares, says each stage once, and stops at "writing weights" for a line of input.
CHILD = """
import sys
from pathlib import Path
from serve_app.errors import ModelError
from serve_app.models.store import ModelStore

home, source, pause = sys.argv[1:4]
seen = set()

def progress(stage, done, total):
    if stage not in seen:
        seen.add(stage)
        print(stage, flush=True)
        if stage == "writing weights" and pause == "pause":
            sys.stdin.readline()

try:
    model = ModelStore(Path(home)).prepare(source, precision="fp32", form="cpu", progress=progress)
except ModelError as error:
    print("refused:", error.message, flush=True)
    sys.exit(1)
print("prepared:", model.path, flush=True)
"""


class Watched:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.stages: Stages = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stages.append((stage, done, total))

    @property
    def built(self) -> bool:
        return any(stage == "writing weights" for stage, _, _ in self.stages)


def prepare(
    home: Path, source: Path | str, *, precision: Any = "fp32"
) -> tuple[PreparedModel, Watched]:
    watched = Watched()
    model = ModelStore(home).prepare(str(source), precision=precision, form="cpu", progress=watched)
    return model, watched


def child(home: Path, source: Path, *, pause: bool, **options: Any) -> subprocess.Popen[str]:
    arguments = [str(home), str(source), "pause" if pause else "go"]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def read_until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"the process ended without {word!r}")


def contents(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_prepared_folder_holds_what_its_manifest_says(home: Path, tiny_folder: Make) -> None:
    source = tiny_folder("llama")
    model, watched = prepare(home, source)
    assert model.path.parent == home / "models"
    assert model.path.name.startswith("tiny-llama-fp32-cpu-")
    assert Manifest.read(model.path) == model.manifest
    manifest = model.manifest
    assert (manifest.name, manifest.source) == ("tiny-llama", str(source))
    assert (manifest.form, manifest.precision) == ("cpu", "fp32")
    assert (manifest.context_length, manifest.vocab_size) == (128, 320)
    assert (manifest.eos_token_ids, manifest.bos_token_id) == ((2,), 1)
    assert manifest.interface.layers == 2
    assert manifest.tools["onnxruntime"]
    on_disk = {path.name for path in model.path.iterdir()} - {"manifest.json"}
    assert (
        on_disk
        == manifest.files.keys()
        == {
            "decoder.onnx",
            "decoder.onnx.data",
            "tokenizer.json",
            "tokenizer_config.json",
        }
    )
    assert contents(home / "models") == [model.path.name]
    ends = {stage: (done, total) for stage, done, total in watched.stages}
    assert set(ends) == {"hashing the source", "writing weights", "hashing the model"}
    assert all(done == total > 0 for done, total in ends.values())
    model.verify()


def test_prepared_graph_runs(home: Path, tiny_folder: Make) -> None:
    import onnxruntime

    model, _ = prepare(home, tiny_folder("qwen2"))
    session = onnxruntime.InferenceSession(model.path / "decoder.onnx")
    interface = model.manifest.interface
    cache = np.zeros(interface.cache_shape(1, 16), np.float32)
    feeds = {
        "input_ids": np.array([[3, 4, 5]], np.int64),
        "seqlens_k": np.array([2], np.int32),
        "total_sequence_length": np.array(3, np.int32),
        "logit_rows": np.array([2], np.int64),
        **{past: cache for past, _ in interface.cache_names},
    }
    (logits,) = session.run(["logits"], feeds)
    assert logits.shape == (1, 320)
    assert np.isfinite(logits).all()


def test_unchanged_source_is_reused_without_reading_it(home: Path, tiny_folder: Make) -> None:
    source = tiny_folder("llama")
    first, _ = prepare(home, source)
    second, watched = prepare(home, source)
    assert second == first
    assert watched.stages == []


def test_touched_source_is_hashed_and_reused(home: Path, tiny_folder: Make) -> None:
    source = tiny_folder("llama")
    first, _ = prepare(home, source)
    os.utime(source / "model.safetensors", ns=(1, 1))
    second, watched = prepare(home, source)
    assert second.path == first.path
    assert not watched.built
    assert {stage for stage, _, _ in watched.stages} == {"hashing the source"}
    assert prepare(home, source)[1].stages == []


def test_changed_source_is_built_into_a_folder_of_its_own(home: Path, tiny_folder: Make) -> None:
    source = tiny_folder("llama")
    first, _ = prepare(home, source)
    path = source / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    second, watched = prepare(home, source)
    assert watched.built
    assert second.path != first.path
    assert second.manifest.source_sha256 != first.manifest.source_sha256


def test_each_precision_has_its_own_folder(home: Path, tiny_folder: Make) -> None:
    source = tiny_folder("llama")
    paths = {prepare(home, source, precision=precision)[0].path for precision in ("fp32", "int8")}
    assert len(paths) == 2
    assert {model.path for model in ModelStore(home).list()} == paths


@pytest.mark.parametrize("outdated", ["tools", "format"])
def test_outdated_model_is_rebuilt_in_its_place(
    home: Path, tiny_folder: Make, monkeypatch: pytest.MonkeyPatch, outdated: str
) -> None:
    source = tiny_folder("llama")
    first, _ = prepare(home, source)
    changed = first.manifest.model_dump(mode="json")
    if outdated == "tools":
        changed["tools"]["onnx"] = "0.0.1"
    else:
        changed["format_version"] = manifest_module.FORMAT_VERSION - 1
    (first.path / "manifest.json").write_text(json.dumps(changed))
    second, watched = prepare(home, source)
    assert watched.built
    assert second.path == first.path
    assert second.manifest.is_current
    assert contents(home / "models") == [first.path.name]


def test_damaged_manifest_is_listed_apart_and_rebuilt(home: Path, tiny_folder: Make) -> None:
    source = tiny_folder("llama")
    model, _ = prepare(home, source)
    (model.path / "manifest.json").write_text("{")
    store = ModelStore(home)
    assert store.list() == ()
    ((path, reason),) = store.damaged()
    assert path == model.path
    assert "manifest.json is broken" in reason
    assert prepare(home, source)[1].built
    assert [found.path for found in store.list()] == [model.path]


def test_killed_prepare_leaves_nothing_that_counts_and_the_next_one_clears_up(
    home: Path, tiny_folder: Make
) -> None:
    source = tiny_folder("llama")
    process = child(home, source, pause=True)
    read_until(process, "writing weights")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    (leftover,) = contents(home / "models")
    assert leftover.startswith(".partial-")
    assert ModelStore(home).list() == ModelStore(home).damaged() == ()
    model, watched = prepare(home, source)
    assert watched.built
    assert contents(home / "models") == [model.path.name]
    model.verify()


def test_second_prepare_waits_for_the_first_and_takes_its_result(
    home: Path, tiny_folder: Make
) -> None:
    source = tiny_folder("llama")
    first = child(home, source, pause=True)
    read_until(first, "writing weights")
    second = child(home, source, pause=False)
    read_until(second, "waiting for another prepare")
    done, _ = first.communicate("go on\n", timeout=60)
    waited, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    (result,) = [line for line in done.splitlines() if line.startswith("prepared:")]
    assert waited.splitlines() == [result]


def test_interrupted_prepare_leaves_nothing(home: Path, tiny_folder: Make) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "writing weights":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ModelStore(home).prepare(
            str(tiny_folder("llama")), precision="fp32", form="cpu", progress=stop
        )
    assert contents(home / "models") == []


def test_failing_write_leaves_nothing_and_says_how_much_is_needed(
    home: Path, tiny_folder: Make
) -> None:
    def limit() -> None:  # a file of more than 100 kB can't be written any more
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = child(home, tiny_folder("llama"), pause=False, preexec_fn=limit)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "refused: Preparing tiny-llama in fp32 takes about" in output
    assert "PARLEY_HOME" in output
    assert contents(home / "models") == []


def test_too_little_space_is_refused_before_anything_is_written(
    home: Path, tiny_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    watched = Watched()
    with pytest.raises(ModelError, match=r"takes about \d+ MB; .* can take 5 MB"):
        ModelStore(home).prepare(
            str(tiny_folder("llama")), precision="fp32", form="cpu", progress=watched
        )
    assert not watched.built
    assert contents(home / "models") == []


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path, tiny_folder: Make) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="set PARLEY_HOME elsewhere"):
        prepare(tmp_path / "file", tiny_folder("llama"))


@pytest.mark.parametrize("fault", ["missing", "short", "changed"])
def test_verify_names_the_file_that_is_not_as_prepared(
    home: Path, tiny_folder: Make, fault: str
) -> None:
    model, _ = prepare(home, tiny_folder("llama"))
    path = model.path / "decoder.onnx.data"
    content = bytearray(path.read_bytes())
    if fault == "missing":
        path.unlink()
    elif fault == "short":
        path.write_bytes(content[:-1])
    else:
        content[100] ^= 1
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"decoder\.onnx\.data .*parley model prepare"):
        model.verify()


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("fault", ["missing", "short"])
def test_a_model_that_misses_something_is_built_anew(
    home: Path, tiny_folder: Make, fault: str, *, touched: bool
) -> None:
    source = tiny_folder("llama")
    model, _ = prepare(home, source)
    path = model.path / "decoder.onnx.data"
    content = path.read_bytes()
    path.unlink()
    if fault == "short":
        path.write_bytes(content[:-1])
    if touched:
        os.utime(source / "model.safetensors", ns=(1, 1))
    again, watched = prepare(home, source)
    assert watched.built
    assert again.path == model.path
    again.verify()
    assert contents(home / "models") == [model.path.name]


# int8 in the cpu form is not what would be prepared if nobody asked for the form.
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_verify_advises_mends_the_model(home: Path, tiny_folder: Make, precision: str) -> None:
    source = tiny_folder("llama", name="it's tiny")
    model, _ = prepare(home, source, precision=precision)
    path = model.path / "decoder.onnx.data"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    # Its size is right, and more is not looked at.
    assert not prepare(home, source, precision=precision)[1].built

    def parley(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "serve_app.cli", *arguments],
            env=os.environ | {"PARLEY_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )

    complaint = parley("model", "inspect", model.path.name, "--verify")
    assert complaint.returncode == 1
    (advice,) = re.findall(r"`parley (.*?)`", complaint.stderr)
    assert parley(*shlex.split(advice)).returncode == 0
    assert parley("model", "inspect", model.path.name, "--verify").returncode == 0


def test_models_are_found_by_name_folder_and_path(home: Path, tiny_folder: Make) -> None:
    source = tiny_folder("llama")
    model, _ = prepare(home, source)
    store = ModelStore(home)
    for name in ("tiny-llama", model.path.name, str(model.path)):
        assert store.find(name) == model
    with pytest.raises(ModelError, match="No prepared model is called other"):
        store.find("other")
    with pytest.raises(ModelError, match="No prepared model"):
        store.find("..")
    other, _ = prepare(home, source, precision="int8")
    with pytest.raises(ModelError, match=f"{model.path.name}, {other.path.name}"):
        store.find("tiny-llama")


def test_removed_model_is_gone_and_others_stay(home: Path, tiny_folder: Make) -> None:
    source = tiny_folder("llama")
    model, _ = prepare(home, source)
    other, _ = prepare(home, source, precision="int8")
    store = ModelStore(home)
    assert store.remove(model.path.name) == model.path
    assert contents(home / "models") == [other.path.name]
    (other.path / "manifest.json").unlink()  # a damaged one can be removed as well
    store.remove(other.path.name)
    assert contents(home / "models") == []
    with pytest.raises(ModelError, match="No prepared model"):
        store.remove("tiny-llama")


def test_remove_deletes_nothing_outside_the_store(home: Path, tiny_folder: Make) -> None:
    model, _ = prepare(home, tiny_folder("llama"))
    outside = home / "elsewhere"
    shutil.copytree(model.path, outside)
    with pytest.raises(ModelError, match="not in the model store"):
        ModelStore(home).remove(str(outside))
    assert outside.is_dir()


def test_names_that_are_no_folder_names_are_tamed(home: Path, tiny_folder: Make) -> None:
    model, _ = prepare(home, tiny_folder("llama", name=".. odd näme!"))
    assert model.path.parent == home / "models"
    assert model.path.name.startswith("odd-n-me-fp32-cpu-")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/model.gguf", "no model at /nowhere/model.gguf"),
        ("nowhere/model.gguf", "no model at nowhere/model.gguf"),
        ("just-a-word", "no model at just-a-word"),
        (__file__, "neither a .gguf file nor a folder"),
    ],
)
def test_sources_that_are_nothing_are_refused(home: Path, source: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        prepare(home, source)


def test_bundled_model_is_served_under_its_own_name(home: Path) -> None:
    model, _ = prepare(home, BUNDLED, precision="int8")
    assert model.manifest.name == "SmolLM2-135M-Instruct"
    assert model.manifest.source == "bundled"
    assert model.path.name.startswith("SmolLM2-135M-Instruct-int8-cpu-")


def test_what_was_made_of_one_file_is_found_without_opening_it(
    home: Path, tiny_gguf: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tiny_architecture(vocab_size=320).tensors()
    source = tiny_gguf(random_tensors(dict(weights)))
    model, _ = prepare(home, source)
    opened: list[str] = []

    def refuse(source: str, **_: Any) -> NoReturn:
        opened.append(source)
        raise ModelError(source)

    monkeypatch.setattr("serve_app.models.store.open_checkpoint", refuse)
    assert prepare(home, source)[0] == model
    assert opened == []
    os.utime(source, ns=(0, 0))
    with pytest.raises(ModelError):
        prepare(home, source)
    assert opened == [str(source)]
