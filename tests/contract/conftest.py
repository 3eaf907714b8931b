"""The bundled model as transformers reads it, with nothing of Parley's in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from serve_app.models.bundled import bundled_model


@pytest.fixture(scope="session")
def bundled_reference() -> Any:
    """The bundled model in transformers, in fp32: configuration and weights by its own GGUF reader.

    `from_pretrained` does the same, but wants accelerate, which wants torch in the lock.
    """
    file = bundled_model()
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    loaded = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)
    missing, unexpected = model.load_state_dict(loaded["tensors"], strict=False)
    # Tied to the embedding, which has been loaded.
    assert (missing, unexpected) == (["lm_head.weight"], [])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model
