"""`load.engine` on a GPU: no step is faster than its floor, and the floor is not made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models_on_a_gpu import CHUNK, CONTEXT, SLOTS, ModelsOnGpu
from typer.testing import CliRunner

from load import engine


def test_no_step_is_faster_than_its_floor(
    gpu: ModelsOnGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(gpu.home))
    monkeypatch.setenv("PARLEY_GENERATOR_MAX_LEN", str(CONTEXT))
    monkeypatch.setenv("PARLEY_GENERATOR_MAX_CACHED_TOKENS", str(CONTEXT))
    gpu.built(gpu.prepared(precision="fp16"))
    report = tmp_path / "engine.json"
    options = {
        "--backend": "simulated" if gpu.simulated else "tensorrt",
        "--model": gpu.home / "tiny",
        "--precision": "fp16",
        "--slots": SLOTS,
        "--prefill-chunk": CHUNK,
        "--concurrency": f"1,{SLOTS}",
        "--past": 40,
        "--steps": 40,
        "--json": report,
    }
    arguments = [str(part) for option in options.items() for part in option]
    result = CliRunner().invoke(engine.app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_bytes())["engine"]
    device = found["device"]
    if not gpu.simulated:
        # A copy reaches most of what the memory's clock and width make possible, and never more.
        assert 0.5 < device["copied_bytes_per_s"] / device["stated_bytes_per_s"] <= 1.02
    for level in found["levels"]:
        steps = level["work"]["decodes"]
        floor_s = max(level["floor"]["decode_read_s"], level["floor"]["decode_compute_s"]) / steps
        assert floor_s > 0
        # Of a device that is simulated, times say nothing: whatever else runs moves them.
        if not gpu.simulated:
            assert floor_s < level["step_s"]
            assert floor_s < level["runtime_s"]
