"""Attention enters keys and values into the cache in half precision, and attends to them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
from operator_run import EPSILON, Attention, random

from serve_app.kernels import library

MAX_LEN = 208
SMALL = {"heads": 6, "kv_heads": 2, "dim": 16}


class Reference:
    """One sequence in double precision, but for the cache.

    Attributes:
        keys, values: [rows, kv_heads, dim], rounded to half precision.
        attended: [rows, heads * dim].
    """

    def __init__(self, attention: Attention, qkv: np.ndarray) -> None:
        heads, kv_heads, dim = attention.heads, attention.kv_heads, attention.dim
        parts = qkv.astype(np.float64).reshape(len(qkv), heads + 2 * kv_heads, dim)
        queries, keys, values = np.split(parts, [heads, heads + kv_heads], axis=1)
        turned = []
        for states, norm in zip((queries, keys), attention.norms, strict=True):
            if norm.size:
                squares = (states**2).mean(axis=2, keepdims=True)
                states = states / np.sqrt(squares + EPSILON) * norm
            low, high = np.split(states, 2, axis=2)
            cosine, sine = attention.cosine[: len(qkv), None], attention.sine[: len(qkv), None]
            turned.append(
                np.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=2)
            )
        self.keys, self.values = turned[1].astype(np.float16), values.astype(np.float16)
        group = heads // kv_heads
        scores = np.einsum("qhd,khd->hqk", turned[0], self.keys.repeat(group, axis=1)) / dim**0.5
        distance = np.arange(len(qkv))[:, None] - np.arange(len(qkv))
        seen = (distance >= 0) & (distance < (attention.window or len(qkv)))
        weights = np.where(seen, np.exp(scores - scores.max(axis=2, keepdims=True)), 0)
        weights /= weights.sum(axis=2, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, self.values.repeat(group, axis=1))
        self.attended = mixed.reshape(len(qkv), heads * dim)


def in_pieces(
    attention: Attention, qkv: np.ndarray, cache: Any, slot: int, cuts: tuple[int, ...]
) -> np.ndarray:
    """Run a sequence piece by piece."""
    edges = [0, *cuts, len(qkv)]
    return np.concatenate(
        [
            attention(qkv[start:stop], cache, [slot] * (stop - start), range(start, stop))
            for start, stop in itertools.pairwise(edges)
        ]
    )


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    # A key that lies between two halves may be rounded to the other one.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("group", [1, 3, 5])
@pytest.mark.parametrize("dim", [16, 64, 80, 128])
def test_every_position_attends_to_those_before_it(tmp_path: Path, group: int, dim: int) -> None:
    attention = Attention(tmp_path, heads=2 * group, kv_heads=2, dim=dim)
    qkv = random(201, attention.width)
    attended = attention(qkv, attention.cache(2, MAX_LEN), [1] * 201, range(201))
    assert_close(attended, Reference(attention, qkv).attended)


@pytest.mark.parametrize("window", [1, 7, 16, 17, 33, 300])
def test_a_window_hides_what_lies_behind_it(tmp_path: Path, window: int) -> None:
    attention = Attention(tmp_path, **SMALL, window=window)
    qkv = random(100, attention.width)
    attended = attention(qkv, attention.cache(1, MAX_LEN), [0] * 100, range(100))
    assert_close(attended, Reference(attention, qkv).attended)


@pytest.mark.parametrize("normed", [(True, False), (False, True), (True, True)])
def test_queries_and_keys_are_normalised_by_head(tmp_path: Path, normed: tuple[bool, bool]) -> None:
    norms = [random(16 * is_normed, seed=seed) for seed, is_normed in enumerate(normed)]
    attention = Attention(tmp_path, **SMALL, norms=(norms[0], norms[1]))
    qkv = random(40, attention.width) * np.logspace(-1, 1, 40, dtype=np.float32)[:, None]
    cache = attention.cache(1, 48)
    attended = attention(qkv, cache, [0] * 40, range(40))
    assert_close(attended, Reference(attention, qkv).attended)


def test_keys_lie_in_tiles_of_16_positions_and_values_in_rows(tmp_path: Path) -> None:
    attention = Attention(tmp_path, **SMALL)
    qkv = random(40, attention.width)
    keys, values = attention.cache(3, 48)
    attention(qkv, (keys, values), [1] * 40, range(40))
    tiles = keys.reshape(3, 2, 3, 16, 16)
    reference = Reference(attention, qkv)
    for position in range(40):
        key = tiles[1, :, position // 16, :, position % 16]
        np.testing.assert_allclose(
            key.astype(np.float32), reference.keys[position].astype(np.float32), rtol=1e-3
        )
        np.testing.assert_array_equal(values[1, :, position], reference.values[position])
    assert np.isnan(tiles[1, :, 2, :, 8:]).all()
    assert np.isnan(values[1, :, 40:]).all()
    assert np.isnan(keys[[0, 2]]).all()
    assert np.isnan(values[[0, 2]]).all()


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 16), (5, 1, 80), (4, 4, 64)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    tmp_path: Path, heads: int, kv_heads: int, dim: int, window: int, level: str
) -> None:
    attention = Attention(tmp_path, heads=heads, kv_heads=kv_heads, dim=dim, window=window)
    sequences = [random(rows, attention.width, seed=rows) for rows in (70, 17, 33)]
    apart = attention.cache(3, 80)
    rows = [
        in_pieces(attention, qkv, apart, slot, tuple(range(1, len(qkv))))
        for slot, qkv in enumerate(sequences)
    ]
    whole = attention.cache(3, 80)
    for slot, (qkv, expected) in enumerate(zip(sequences, rows, strict=True)):
        actual = in_pieces(attention, qkv, whole, slot, (5, 6, 16))
        np.testing.assert_array_equal(actual, expected)
    # The last 30 rows of one prompt, and one step each of two others.
    together = attention.cache(3, 80)
    starts = (40, 16, 32)
    for slot, start in enumerate(starts):
        in_pieces(attention, sequences[slot][:start], together, slot, ())
    order = np.random.default_rng(2).permutation(32)
    qkv, expected = (
        np.concatenate([each[start:] for each, start in zip(parts, starts, strict=True)])[order]
        for parts in (sequences, rows)
    )
    slots = np.repeat([0, 1, 2], [30, 1, 1])[order]
    positions = np.array([*range(40, 70), 16, 32])[order]
    np.testing.assert_array_equal(attention(qkv, together, slots, positions), expected)
    for found, wanted in zip(together, apart, strict=True):
        np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16))


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("dim", [16, 80, 128])
def test_all_instructions_give_the_same_bits(
    tmp_path: Path, dim: int, window: int, level: str
) -> None:
    norms = random(dim, seed=1), random(dim, seed=2)
    attention = Attention(tmp_path, heads=10, kv_heads=2, dim=dim, window=window, norms=norms)
    qkv = random(100, attention.width)
    cache, plain = attention.cache(1, 112), attention.cache(1, 112)
    attended = attention(qkv, cache, [0] * 100, range(100))
    library.use_level("plain")
    np.testing.assert_array_equal(attended, attention(qkv, plain, [0] * 100, range(100)))
    for found, wanted in zip(cache, plain, strict=True):
        np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16))


def test_no_rows_are_fine(tmp_path: Path) -> None:
    attention = Attention(tmp_path, **SMALL)
    attended = attention(np.zeros((0, attention.width), np.float32), attention.cache(1, 16), [], [])
    assert attended.shape == (0, 96)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("group", [1, 2, 3, 4])
def test_a_row_of_a_prompt_sees_nothing_of_the_rows_after_it(
    tmp_path: Path, group: int, value: float, level: str
) -> None:
    attention = Attention(tmp_path, heads=2 * group, kv_heads=2, dim=80)
    qkv = random(40, attention.width)
    expected = attention(qkv, attention.cache(1, 48), [0] * 40, range(40))
    for spoilt in (20, 21, 22, 23):
        qkv[spoilt:] = value
        found = attention(qkv, attention.cache(1, 48), [0] * 40, range(40))
        np.testing.assert_array_equal(found[:spoilt], expected[:spoilt])
        qkv = random(40, attention.width)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_its_own_sequence_alone(
    tmp_path: Path, value: float, level: str
) -> None:
    attention = Attention(tmp_path, **SMALL)
    qkv = random(20, attention.width)
    slots, positions = [0] * 10 + [1] * 10, [*range(10)] * 2
    clean = attention(qkv, attention.cache(2, 16), slots, positions)
    qkv[4] = value
    attended = attention(qkv, attention.cache(2, 16), slots, positions)
    assert not np.isfinite(attended[4:10]).any()
    others = np.r_[:4, 10:20]
    np.testing.assert_array_equal(attended[others], clean[others])


FITTING: dict[str, Any] = {
    "qkv": (2, 160),
    "keys": (2, 2, 32, 16),
    "values": (2, 2, 32, 16),
    "slots": [0, 1],
    "positions": [0, 3],
    "tables": (16, 16),
    "norms": (16, 16),
}
DO_NOT_FIT = "the tensors don't fit"
OUTSIDE = "a row is outside of the cache"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"qkv": (2, 128)}, DO_NOT_FIT),
        ({"qkv": (3, 160)}, DO_NOT_FIT),
        ({"slots": [0]}, DO_NOT_FIT),
        ({"positions": [0, 1, 2]}, DO_NOT_FIT),
        ({"keys": (2, 2, 16, 16)}, DO_NOT_FIT),
        ({"values": (1, 2, 32, 16)}, DO_NOT_FIT),
        ({"keys": (2, 4, 32, 16), "values": (2, 4, 32, 16)}, DO_NOT_FIT),
        ({"keys": (2, 2, 32, 32), "values": (2, 2, 32, 32)}, DO_NOT_FIT),
        ({"keys": (2, 2, 40, 16), "values": (2, 2, 40, 16)}, DO_NOT_FIT),
        ({"tables": (16, 15)}, DO_NOT_FIT),
        ({"norms": (8, 16)}, DO_NOT_FIT),
        ({"norms": (16, 32)}, DO_NOT_FIT),
        ({"slots": [0, 2]}, OUTSIDE),
        ({"slots": [-1, 0]}, OUTSIDE),
        ({"positions": [0, -1]}, OUTSIDE),
        ({"positions": [16, 0]}, OUTSIDE),  # the tables have 16
        ({"tables": (64, 64), "positions": [32, 0]}, OUTSIDE),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_and_writes_nothing(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    def run(given: dict[str, Any], cache: tuple[np.ndarray, np.ndarray]) -> None:
        cosine, sine = (random(positions, 8) for positions in given["tables"])
        query_norm, key_norm = (random(size) for size in given["norms"])
        attention = Attention(
            tmp_path, **SMALL, norms=(query_norm, key_norm), tables=(cosine, sine)
        )
        attention(random(*given["qkv"]), cache, given["slots"], given["positions"])

    def cache_of(given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(given["keys"], np.float16), np.zeros(given["values"], np.float16)

    cache = cache_of(FITTING)
    run(FITTING, cache)
    assert all(part.any() for part in cache)
    cache = cache_of(FITTING | changes)
    with pytest.raises(RuntimeError, match=rf"parley\.Attention: {fault}"):
        run(FITTING | changes, cache)
    assert not any(part.any() for part in cache)


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 4, "kv_heads": 2, "dim": 24},
        {"heads": 4, "kv_heads": 2, "dim": 0},
        {"heads": 4, "kv_heads": 2, "dim": 1040},
        {"heads": 5, "kv_heads": 2, "dim": 16},
        {"heads": 4, "kv_heads": 0, "dim": 16},
    ],
    ids=str,
)
def test_heads_that_it_cannot_take_are_refused_at_once(
    tmp_path: Path, shape: dict[str, int]
) -> None:
    with pytest.raises(RuntimeException, match=r"parley\.Attention: these heads"):
        Attention(tmp_path, **shape)


@pytest.mark.parametrize("spoilt", [np.nan, 1e6])
def test_a_key_that_half_precision_cannot_hold_shows_in_all_that_attend_to_it(
    tmp_path: Path, spoilt: float
) -> None:
    attention = Attention(tmp_path, heads=1, kv_heads=1, dim=16)
    qkv = random(3, 48)
    qkv[1, 16] = spoilt
    found = attention(qkv, attention.cache(1, 16), [0] * 3, range(3))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()
