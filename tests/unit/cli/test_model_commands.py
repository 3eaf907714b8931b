"""`parley model …` on a tiny checkpoint: prepared, listed, verified, removed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import write_folder

Parley = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-llama"
    write_folder(folder)
    return folder


def test_a_model_is_prepared_with_progress_and_then_listed_verified_and_removed(
    parley: Parley, checkpoint: Path, tmp_path: Path
) -> None:
    prepared = parley("model", "prepare", str(checkpoint), "--precision", "fp32")
    assert prepared.returncode == 0, prepared.stderr
    first, *stages, last = prepared.stdout.splitlines()
    (folder,) = (path for path in (tmp_path / "home" / "models").iterdir() if path.is_dir())
    assert first == f"Preparing {checkpoint} …"
    assert last == f"tiny-llama (fp32) is in {folder}."
    read = sum(int(path.stat().st_size) for path in checkpoint.iterdir())
    assert re.fullmatch(rf"  hashing the source \d+/{read}", stages[0])
    assert re.fullmatch(r"  writing weights \d+/21", stages[1])

    (listed,) = json.loads(parley("model", "list", "--json").stdout)
    assert (listed["name"], listed["precision"], listed["path"]) == (
        "tiny-llama",
        "fp32",
        str(folder),
    )
    inspected = parley("model", "inspect", "tiny-llama", "--verify")
    assert inspected.returncode == 0, inspected.stderr
    assert parley("model", "remove", "tiny-llama").stdout == f"Removed {folder}.\n"
    assert not folder.exists()
    assert checkpoint.exists()


def test_inspect_prints_json_alone_and_verify_finds_a_changed_file(
    parley: Parley, checkpoint: Path, tmp_path: Path
) -> None:
    assert parley("model", "prepare", str(checkpoint)).returncode == 0
    inspected = parley("model", "inspect", "tiny-llama", "--verify")
    manifest = json.loads(inspected.stdout)
    (folder,) = (path for path in (tmp_path / "home" / "models").iterdir() if path.is_dir())
    name = max(manifest["files"], key=lambda file: manifest["files"][file]["bytes"])
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert parley("model", "inspect", "tiny-llama").returncode == 0
    changed = parley("model", "inspect", "tiny-llama", "--verify")
    assert changed.returncode == 1
    assert f"{folder / name} has another content" in changed.stderr
    form = manifest["form"]
    again = f"`parley model prepare {checkpoint} --precision int8 --form {form} --verify`"
    assert again in changed.stderr


def test_a_standard_model_is_prepared_and_passes_the_lint(
    parley: Parley, checkpoint: Path, tmp_path: Path
) -> None:
    standard = ("--form", "standard", "--precision", "fp16", "--cache-length", "64")
    assert parley("model", "prepare", str(checkpoint), *standard).returncode == 0
    (listed,) = json.loads(parley("model", "list", "--json").stdout)
    assert (listed["form"], listed["cache_length"]) == ("standard", 64)
    linted = parley("model", "lint", "tiny-llama")
    path = tmp_path / "home" / "models" / listed["path"] / "decoder.onnx"
    assert (linted.returncode, linted.stdout) == (0, f"TensorRT's parser should take {path}.\n")


def test_the_lint_names_every_offender_and_fails(parley: Parley, checkpoint: Path) -> None:
    prepared = parley("model", "prepare", str(checkpoint), "--form", "cpu", "--precision", "fp32")
    assert prepared.returncode == 0
    (listed,) = json.loads(parley("model", "list", "--json").stdout)
    linted = parley("model", "lint", f"{listed['path']}/decoder.onnx")
    assert linted.returncode == 1
    offenders = linted.stdout.splitlines()
    assert len(offenders) == 8
    assert offenders[0] == (
        "model.layers.0.self_attn.sequences (com.microsoft GroupQueryAttention): the parser has no "
        "operators of com.microsoft; use TensorScatter and Attention with a boolean mask."
    )
    assert "8 faults" in linted.stderr
    assert "`parley model prepare --form standard`" in linted.stderr
