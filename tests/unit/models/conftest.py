"""Tiny checkpoints of every family, with a tokenizer trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_checkpoints import CHATML, SMALL, Make, tiny_tokenizer, write_tokenizer


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Make:
    """Return a function that saves a random model of a family as transformers does."""

    def make(
        family: str = "llama", *, name: str | None = None, shard: str = "5GB", **config: Any
    ) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(7)
        folder = tmp_path / (name or f"tiny-{family}")
        dtype = config.pop("dtype", torch.float32)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **{**SMALL, **config})
        )
        with torch.no_grad():  # fresh norms are all ones and biases all zeros: nothing to mix up
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.normal_(1.0, 0.2)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML})
        )
        return folder

    return make


Quant = gguf.GGMLQuantizationType


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Make:
    """Return a function that writes tensors (under Hugging Face's names) and metadata as GGUF."""

    def make(
        tensors: dict[str, np.ndarray],
        *,
        family: str = "llama",
        quant: gguf.GGMLQuantizationType = Quant.F32,
        name: str = "tiny.gguf",
        metadata: dict[str, Any] | None = None,
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, family)
        writer.add_block_count(2)
        writer.add_context_length(128)
        writer.add_embedding_length(64)
        writer.add_feed_forward_length(96)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_key_length(tensors["model.layers.0.self_attn.q_proj.weight"].shape[0] // 4)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(10_000.0)
        write_tokenizer(writer)
        for key, value in (metadata or {}).items():
            {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[
                type(value)
            ](key, value)
        mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
        for hf_name, value in tensors.items():
            stem, kind = hf_name.rsplit(".", 1)
            stored = f"{mapping.get_name(stem) or stem}.{kind}"
            kept = Quant.F32 if value.ndim == 1 else quant
            if kept == Quant.F32:
                writer.add_tensor(stored, value.astype(np.float32))
            else:
                packed = gguf.quants.quantize(value.astype(np.float32), kept)
                writer.add_tensor(stored, packed, raw_dtype=kept)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make
