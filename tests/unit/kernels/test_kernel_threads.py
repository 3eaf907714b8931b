"""Operators give the same results from any thread, with any number of threads of their own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from operator_run import Attention, Linear, random

from serve_app.kernels import library

ROUNDS = 100


def products_with_many_threads(folder: Path) -> list[np.ndarray]:
    linear, states = Linear(folder, random(600, 96)), random(50, 96, seed=1)
    library.register(ort.SessionOptions(), threads=8)
    return [linear(states) for _ in range(ROUNDS)]


def exit_code_of_a_fork(folder: Path) -> int:
    linear, states = Linear(folder, random(600, 96)), random(50, 96, seed=1)
    expected = linear(states)
    child = os.fork()
    if child == 0:
        equal = False
        try:
            equal = np.array_equal(linear(states), expected)
        finally:
            os._exit(0 if equal else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_more_threads_than_cores_give_the_same_bits(tmp_path: Path) -> None:
    expected = Linear(tmp_path, random(600, 96))(random(50, 96, seed=1))
    # Threads stay for as long as their process.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        products = process.submit(products_with_many_threads, tmp_path).result(timeout=60)
    assert len(products) == ROUNDS
    for product in products:
        np.testing.assert_array_equal(product, expected)


def test_a_forked_process_computes_without_its_parents_threads(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        assert process.submit(exit_code_of_a_fork, tmp_path).result(timeout=60) == 0


@pytest.mark.parametrize("kinds", ["linear linear", "attention attention", "linear attention"])
def test_sessions_in_two_threads_at_once_keep_out_of_each_others_way(
    tmp_path: Path, kinds: str
) -> None:
    attention = Attention(tmp_path, heads=6, kv_heads=2, dim=64)
    linear = Linear(tmp_path, random(600, 256))
    works: list[Callable[[], np.ndarray]] = []
    for number, kind in enumerate(kinds.split()):
        rows = 40 + 7 * number
        if kind == "linear":
            states = random(rows, 256, seed=number)
            works.append(partial(linear, states))
        else:
            qkv, cache = random(rows, attention.width, seed=number), attention.cache(1, 48)
            works.append(partial(attention, qkv, cache, [0] * rows, range(rows)))
    expected = [work() for work in works]
    gate = threading.Barrier(2)

    def repeat(work: Callable[[], np.ndarray]) -> list[np.ndarray]:
        gate.wait()
        return [work() for _ in range(ROUNDS)]

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(repeat, works))
    for found, wanted in zip(results, expected, strict=True):
        for one in found:
            np.testing.assert_array_equal(one, wanted)
