"""What can be prepared and not served is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write_folder

from serve_app.errors import ConfigError, ModelError
from serve_app.generation.backends.opening import open_backend
from serve_app.models.store import ModelStore
from serve_app.routing.serving import require_servable, served_model
from serve_app.settings import ModelSettings, Settings


@pytest.mark.parametrize(
    "model",
    [
        {"precision": "fp16"},
        {"precision": "bf16"},
        {"precision": "fp8"},
        {"precision": "int8", "form": "standard"},
        {"precision": "fp32", "form": "standard"},
    ],
)
def test_the_standard_form_is_refused_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"set model\.precision to int8 or fp32") as refused:
        served_model(Settings.load({"model": model}))
    assert refused.value.param == "model.form"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("form", [None, "cpu"])
def test_other_forms_are_not(precision: str, form: str | None) -> None:
    require_servable(ModelSettings.model_validate({"precision": precision, "form": form}))


def test_no_backend_opens_a_standard_model(tmp_path: Path) -> None:
    write_folder(tmp_path / "tiny")
    store = ModelStore(tmp_path / "home")
    model = store.prepare(str(tmp_path / "tiny"), precision="fp16", cache_length=64)
    with pytest.raises(ModelError, match=r"is for TensorRT on a GPU; prepare .* --form cpu"):
        open_backend(model, threads=1)
