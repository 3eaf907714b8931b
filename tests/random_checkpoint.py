"""A checkpoint of random weights that exist only while they are read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from serve_app.models.architecture import Architecture
from serve_app.models.tokenizer_files import TokenizerFiles


def tiny_architecture(**changes: Any) -> Architecture:
    values: dict[str, Any] = {
        "family": "llama",
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "hidden": 64,
        "intermediate": 96,
        "vocab_size": 300,
        "context_length": 128,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "norm_eps": 1e-5,
        "tied_embeddings": False,
        "attention_bias": False,
        "qk_norm": False,
        "sliding_window": None,
    }
    return Architecture(**{**values, **changes})


@dataclass
class RandomCheckpoint:
    architecture: Architecture
    name: str = "random"
    source: str = "random"
    files: tuple[Path, ...] = ()

    def has(self, name: str) -> bool:
        return name in dict(self.architecture.tensors())

    def tensor(self, name: str) -> np.ndarray:
        shape = dict(self.architecture.tensors())[name]
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("norm.weight"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)

    def tokenizer(self) -> TokenizerFiles:
        """A token is a byte."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({sign: place for place, sign in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return TokenizerFiles(tokenizer.to_str(), None, (2,), None)
