"""What a machine lacks is said all at once."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.errors import GpuUnavailable, TensorRTUnavailable
from serve_app.gpu.driver import Driver, Gpu
from serve_app.models.engine_build import machine


def refuse(error: Exception) -> Any:
    def ask() -> None:
        raise error

    return ask


def test_who_has_neither_gpu_nor_tensorrt_is_told_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_driver", refuse(GpuUnavailable("No driver.")))
    monkeypatch.setattr(machine, "tensorrt_version", refuse(TensorRTUnavailable("No TensorRT.")))
    with pytest.raises(GpuUnavailable, match=r"^No driver\. No TensorRT\.$"):
        machine.open_machine()
    monkeypatch.setattr(machine, "tensorrt_version", lambda: "11.4.0.106")
    with pytest.raises(GpuUnavailable, match=r"^No driver\.$"):
        machine.open_machine()


def test_a_gpu_without_tensorrt_is_refused_and_one_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capability = (9, 0)
    monkeypatch.setattr(
        machine,
        "read_driver",
        lambda: Driver("580.65", (13, 0), (Gpu("NVIDIA Something", capability, 1 << 34),)),
    )
    monkeypatch.setattr(machine, "tensorrt_version", refuse(TensorRTUnavailable("No TensorRT.")))
    with pytest.raises(TensorRTUnavailable, match="No TensorRT"):
        machine.open_machine()
    capability = (6, 1)
    with pytest.raises(TensorRTUnavailable, match=r"compute capability 6\.1"):
        machine.open_machine()
