"""A Hugging Face folder of safetensors as a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from serve_app.errors import ModelError
from serve_app.models.checkpoint import FloatArray, check_tensors
from serve_app.models.huggingface_config import architecture_from_config
from serve_app.models.json_files import read_json_object
from serve_app.models.safetensors_file import SafetensorsFile
from serve_app.models.tokenizer_files import TokenizerFiles, read_tokenizer

__all__ = ["SafetensorsCheckpoint"]

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[\w.-]+\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What decides how the model behaves, besides its weights.
_CARRIED = (
    _CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class SafetensorsCheckpoint:
    """The weights and tokenizer of a folder as transformers' `save_pretrained` writes it.

    Attributes:
        architecture: what the weights are for.
        name: the folder's name, or the one given.
        source: the folder's path, or the one given.
        files: every file whose content counts.

    Raises:
        ModelError: a file is missing or broken, or the model is not supported.
    """

    def __init__(
        self, directory: Path, *, name: str | None = None, source: str | None = None
    ) -> None:
        self._directory = directory
        self.name = name or directory.name
        self.source = source or str(directory)
        if not (directory / _CONFIG).is_file():
            msg = f"{directory} has no {_CONFIG}; point to a folder that transformers can load."
            raise ModelError(msg)
        self._config = read_json_object(directory / _CONFIG)
        self.architecture = architecture_from_config(self._config, where=str(directory / _CONFIG))
        shards = _shards(directory)
        self._shard_of: dict[str, SafetensorsFile] = {}
        for shard in shards:
            for tensor in shard.shapes:
                if tensor in self._shard_of:
                    msg = f"{shard.path}: tensor {tensor} is in {self._shard_of[tensor].path} too."
                    raise ModelError(msg)
                self._shard_of[tensor] = shard
        shapes = {tensor: shard.shapes[tensor] for tensor, shard in self._shard_of.items()}
        check_tensors(self.architecture, shapes, where=str(directory))
        carried = (directory / file for file in _CARRIED)
        self.files = (
            *(path for path in carried if path.is_file()),
            *(shard.path for shard in shards),
        )

    def has(self, name: str) -> bool:
        """Say whether the tensor is in the checkpoint."""
        return name in self._shard_of

    def tensor(self, name: str) -> FloatArray:
        """Read one tensor as float32.

        Raises:
            ModelError: there is no such tensor, or its file can't be read.
        """
        if name not in self._shard_of:
            msg = f"{self._directory} holds no tensor {name}."
            raise ModelError(msg)
        return self._shard_of[name].read(name)

    def tokenizer(self) -> TokenizerFiles:
        """Read the folder's tokenizer, chat template and stop tokens.

        Raises:
            ModelError: a file is missing or broken.
        """
        return read_tokenizer(self._directory, self._config)


def _shards(directory: Path) -> list[SafetensorsFile]:
    if (directory / _SINGLE).is_file():
        return [SafetensorsFile(directory / _SINGLE)]
    index = directory / _INDEX
    if not index.is_file():
        pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
        found = f" {pickles[0]} is a pickle, which can run code when it is read;" if pickles else ""
        msg = (
            f"{directory} has neither {_SINGLE} nor {_INDEX};{found} save the model as safetensors "
            "with transformers' save_pretrained."
        )
        raise ModelError(msg)
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        msg = f"{index} has no weight_map; the file is broken, get it again."
        raise ModelError(msg)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # Only files of this very folder: an index must not reach anywhere else.
        if not _SHARD_NAME.fullmatch(name) or PurePosixPath(name).name != name:
            msg = f"{index} points to {name!r}, which is not a safetensors file of its folder."
            raise ModelError(msg)
        if not (directory / name).is_file():
            msg = f"{index} points to {name}, which is not there; get the missing file."
            raise ModelError(msg)
    shards = [SafetensorsFile(directory / name) for name in names]
    held = {shard.path.name: shard.shapes for shard in shards}
    for tensor, name in weight_map.items():
        if tensor not in held[str(name)]:
            msg = f"{index} looks for tensor {tensor} in {name}, which doesn't hold it."
            raise ModelError(msg)
    return shards
