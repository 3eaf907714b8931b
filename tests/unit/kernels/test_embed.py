"""Embed gives back the rows of a table in 8-bit blocks."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from operator_run import Embed, random

from serve_app.models.packed_blocks import pack

Q8_0 = gguf.GGMLQuantizationType.Q8_0


@pytest.mark.parametrize("rows", [1, 16, 40])
@pytest.mark.parametrize("width", [32, 96])
def test_it_gives_back_what_q8_0_stored(tmp_path: Path, rows: int, width: int) -> None:
    table = gguf.dequantize(gguf.quantize(random(rows, width), Q8_0), Q8_0)
    embed = Embed(tmp_path, pack("table", table), width=width)
    tokens = np.random.default_rng(1).integers(rows, size=70)
    np.testing.assert_array_equal(embed(tokens), table[tokens])


def test_no_tokens_give_no_rows(tmp_path: Path) -> None:
    assert Embed(tmp_path, pack("table", random(40, 64)), width=64)([]).shape == (0, 64)


@pytest.mark.parametrize("token", [-1, 48, 1 << 40])
def test_an_unknown_token_is_refused(tmp_path: Path, token: int) -> None:
    embed = Embed(tmp_path, pack("table", random(40, 64)), width=64)
    with pytest.raises(InvalidArgument, match=r"parley\.Embed: a token is beyond the vocabulary"):
        embed([1, token])


@pytest.mark.parametrize("width", [63, 96])
def test_a_table_of_another_width_is_refused(tmp_path: Path, width: int) -> None:
    embed = Embed(tmp_path, pack("table", random(16, 64)), width=width)
    with pytest.raises(InvalidArgument, match=r"parley\.Embed: the tensors don't fit"):
        embed([1])
