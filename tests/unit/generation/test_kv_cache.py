"""Copies between slots and blocks, and where the memory lies."""

from __future__ import annotations

import ctypes

import numpy as np
import psutil
import pytest

from serve_app.generation.kv_cache import KVCache


@pytest.fixture
def cache() -> KVCache:
    cache = KVCache(
        planes=4, heads=2, dim=3, dtype=np.float32, slots=3, max_len=8, blocks=2, block_tokens=2
    )
    cache.slots[...] = np.arange(cache.slots.size).reshape(cache.slots.shape)
    return cache


def test_a_pointer_leads_to_a_planes_slot(cache):
    for plane in range(4):
        for slot in range(3):
            first = ctypes.c_float.from_address(cache.pointer(plane, slot)).value
            assert first == cache.slots[plane, slot, 0, 0, 0]


def test_a_move_copies_the_tokens_that_are_there_and_nothing_else(cache):
    before = cache.slots.copy()
    cache.move(2, 0, 5)
    np.testing.assert_array_equal(cache.slots[:, 0, :, :5], before[:, 2, :, :5])
    np.testing.assert_array_equal(cache.slots[:, 0, :, 5:], before[:, 0, :, 5:])
    np.testing.assert_array_equal(cache.slots[:, 1:], before[:, 1:])


def test_saved_blocks_come_back_in_the_order_in_which_they_are_loaded(cache):
    before = cache.slots.copy()
    cache.save(1, 4, block=0)
    cache.save(1, 2, block=1)
    cache.load([1, 0], slot=2)
    np.testing.assert_array_equal(cache.slots[:, 2, :, :4], before[:, 1, :, 2:6])
    np.testing.assert_array_equal(cache.slots[:, 2, :, 4:], before[:, 2, :, 4:])


def resident(cache: KVCache, part: str = "slots") -> int:
    """Bytes of slots or blocks that are in memory; what the process has is other threads' business too."""
    array = getattr(cache, part)
    first = array.ctypes.data
    last = first + array.nbytes
    taken = 0
    for mapping in psutil.Process().memory_maps(grouped=False):
        start, end = (int(address, 16) for address in mapping.addr.split("-"))
        if start < last and first < end:
            taken += mapping.rss
    return taken


def test_memory_is_taken_only_as_tokens_are_written():
    cache = KVCache(planes=60, heads=3, dim=64, dtype=np.float32, slots=32, max_len=2048)
    cache.slots[:, 0, :, :100] = 1.0
    assert cache.slots.nbytes > 3e9
    assert 60 * 3 * 100 * 64 * 4 <= resident(cache) < 20e6


def test_a_vacated_slot_keeps_its_beginning_alone_and_its_neighbours_keep_theirs():
    cache = KVCache(planes=60, heads=3, dim=64, dtype=np.float32, slots=3, max_len=1024)
    cache.slots[...] = 1.0
    full = resident(cache)
    cache.vacate(1, 1024)
    given_back = full - resident(cache)
    slot = cache.slots.nbytes / 3
    assert slot - 9e6 < given_back < slot - 7e6  # all but 8 MiB, in whole pages
    assert cache.slots[:, 1, :, :150].all()
    assert not cache.slots[:, 1, :, 200:].any()
    assert cache.slots[:, 0].all()
    assert cache.slots[:, 2].all()


def test_what_a_short_sequence_leaves_is_kept_for_the_next():
    cache = KVCache(planes=60, heads=3, dim=64, dtype=np.float32, slots=3, max_len=1024)
    cache.slots[:, 1, :, :150] = 1.0
    before = resident(cache)
    cache.vacate(1, 150)
    assert resident(cache) == before


def test_vacating_a_slot_that_shares_pages_leaves_its_neighbours_alone():
    # A head's tokens are 2 and a half pages, so that every border lies within one.
    cache = KVCache(planes=2, heads=2, dim=5, dtype=np.float32, slots=3, max_len=512)
    cache.slots[...] = 1.0
    cache._kept = 10
    cache.vacate(1, 512)
    assert not cache.slots[:, 1].all()
    assert cache.slots[:, 1, :, :10].all()
    assert cache.slots[:, [0, 2]].all()


def test_a_dropped_block_is_given_back_and_its_neighbours_keep_theirs():
    # A block is 7 and a half pages.
    cache = KVCache(
        planes=10, heads=3, dim=16, dtype=np.float32, slots=1, max_len=16, blocks=3, block_tokens=16
    )
    cache.blocks[...] = 1.0
    full = resident(cache, "blocks")
    cache.drop(1)
    assert full - resident(cache, "blocks") >= 6 * 4096
    assert not cache.blocks[1].all()
    assert cache.blocks[[0, 2]].all()
    cache.drop(0)
    assert cache.blocks[2].all()


def test_without_blocks_there_is_nothing_to_drop(cache):
    none = KVCache(planes=4, heads=2, dim=3, dtype=np.float32, slots=3, max_len=8)
    none.drop(0)
    assert none.make_room([0, 0, 0], 100) == 0


@pytest.mark.parametrize(
    ("spare", "blocks"), [(0, 2), (15, 2), (16, 3), (79, 6), (144, 11), (300, 11), (-64, 2)]
)
def test_all_but_a_quarter_of_the_blocks_take_what_slots_leave(spare: int, blocks: int) -> None:
    cache = KVCache(
        planes=2, heads=1, dim=4, dtype=np.float32, slots=2, max_len=256, blocks=11, block_tokens=16
    )
    assert cache.make_room([200, 200], 400 + spare) == blocks


def test_a_cache_that_is_larger_than_the_slots_gives_way_only_by_what_they_hold() -> None:
    cache = KVCache(
        planes=2, heads=1, dim=4, dtype=np.float32, slots=2, max_len=64, blocks=100, block_tokens=16
    )
    assert cache.make_room([0, 0], 128) == 100
    assert cache.make_room([64, 64], 128) == 92


def test_what_earlier_sequences_have_left_in_empty_slots_goes_back_before_blocks_give_way() -> None:
    cache = KVCache(
        planes=60,
        heads=3,
        dim=64,
        dtype=np.float32,
        slots=3,
        max_len=256,
        blocks=8,
        block_tokens=16,
    )
    cache.slots[...] = 1.0
    for slot in range(3):
        cache.vacate(slot, 60)  # so little that all of it is kept
    cache.vacate(2, 20)
    assert cache.make_room([0, 0, 0], 96 + 180) == 8
    assert cache.slots[:, :, :, :60].all()
    # One of the three is enough.
    assert cache.make_room([0, 0, 0], 96 + 120) == 8
    assert cache.slots[:, :2, :, :60].all()
    assert not cache.slots[:, 2, :, 16:48].any()
    # A running sequence keeps its slot; what an earlier one has left behind it counts.
    assert cache.make_room([40, 0, 0], 96 + 20) == 6 - 1
    assert cache.slots[:, 0, :, :60].all()
    assert not cache.slots[:, 1, :, 16:48].any()
    assert cache.make_room([70, 0, 0], 96 + 30) == 6 - 1
