from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from serve_app.errors import ModelError
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_file import READABLE_TYPES, GgufFile

Quant = gguf.GGMLQuantizationType


def write(path: Path, value: np.ndarray, kind: gguf.GGMLQuantizationType) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("some.number", 7)
    writer.add_array("some.list", [1, 2, 3])
    writer.add_array("some.words", ["a", "ü", ""])
    writer.add_tensor("w", value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    value = np.arange(64, dtype=np.float32).reshape(2, 32)
    return write(tmp_path / "small.gguf", value, Quant.F32)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_stored_types_come_back_within_their_rounding(tmp_path: Path, name: str) -> None:
    kind = Quant[name]
    value = np.random.default_rng(1).standard_normal((6, 64), dtype=np.float32)
    packed = value if kind == Quant.F32 else gguf.quants.quantize(value, kind)
    read = GgufFile(write(tmp_path / "t.gguf", packed, kind)).read("w")
    bits = {"F32": 30, "F16": 10, "BF16": 7, "Q8_0": 6, "Q5_0": 3, "Q5_1": 3, "Q4_0": 2, "Q4_1": 2}
    assert read.dtype == np.float32
    assert np.abs(read - value).max() <= np.abs(value).max() * 2.0 ** -bits[name]


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_dequantized_row_by_row(tmp_path: Path, name: str) -> None:
    kind = Quant[name]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    # Bytes under 0x38 keep every fp16 scale among them finite.
    packed = np.random.default_rng(2).integers(0, 0x38, (3, 2 * block_bytes), dtype=np.uint8)
    read = GgufFile(write(tmp_path / "t.gguf", packed, kind)).read("w")
    assert read.shape == (3, 512)
    for row in range(3):
        np.testing.assert_array_equal(read[row], gguf.quants.dequantize(packed[row], kind))


def test_bundled_file_reads_as_the_gguf_package_reads_it() -> None:
    mine, theirs = GgufFile(bundled_model()), gguf.GGUFReader(bundled_model())
    assert list(mine.shapes) == [tensor.name for tensor in theirs.tensors]
    for tensor in (theirs.tensors[0], theirs.tensors[2], theirs.tensors[5], theirs.tensors[-1]):
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(mine.read(tensor.name), expected)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert mine.metadata[key] == field.contents(), key


def test_metadata_of_every_kind_is_plain_python(small: Path) -> None:
    metadata = GgufFile(small).metadata
    assert metadata["some.number"] == 7
    assert metadata["some.list"] == [1, 2, 3]
    assert metadata["some.words"] == ["a", "ü", ""]


def test_every_truncation_is_refused_with_the_files_name(small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    cut = tmp_path / "cut.gguf"
    used = len(content) - 1  # the last byte belongs to the tensor
    for length in [*range(0, used, 7), used]:
        cut.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            GgufFile(cut)


def test_flipped_bytes_never_escape_as_another_error(small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    damaged, refused = tmp_path / "damaged.gguf", 0
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 0xFF
        damaged.write_bytes(changed)
        try:
            GgufFile(damaged).read("w")
        except ModelError as error:
            refused += "damaged.gguf" in error.message
    assert refused > 100


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGML" + bytes(60), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "cut off"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**60), "cut off"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 2**60), "nested"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "value type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIQI", 3, 1, 0, 1, b"w", 1, 2**40, 0) + bytes(64), "cut off"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"w", 2**31), "dimensions"),
    ],
)
def test_absurd_headers_are_refused_at_once(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "absurd.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        GgufFile(path)


def test_a_type_that_cannot_be_dequantized_is_refused_by_name(tmp_path: Path) -> None:
    _, block_bytes = gguf.GGML_QUANT_SIZES[Quant.IQ2_XXS]
    packed = np.zeros((1, block_bytes), dtype=np.uint8)
    with pytest.raises(ModelError, match="tensor w is stored as IQ2_XXS"):
        GgufFile(write(tmp_path / "iq.gguf", packed, Quant.IQ2_XXS))
    assert Quant.IQ2_XXS not in READABLE_TYPES


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        GgufFile(tmp_path / "nowhere.gguf")
