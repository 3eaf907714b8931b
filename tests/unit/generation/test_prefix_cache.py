"""Which prefixes are found again, and which go first when there is no room."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.generation.prefix_cache import PrefixCache


def _tokens(text: str) -> np.ndarray:
    return np.array([ord(letter) for letter in text], np.int64)


def _cache(blocks: int, size: int = 2) -> PrefixCache:
    return PrefixCache(blocks=blocks, block_tokens=size)


def test_a_stored_prefix_is_found_block_by_block():
    cache = _cache(8)
    copies = cache.store(_tokens("aabbcc"))
    assert [start for start, _ in copies] == [0, 2, 4]
    assert cache.match(_tokens("aabbxx!")) == [block for _, block in copies[:2]]
    assert cache.match(_tokens("aaxxcc!")) == [copies[0][1]]
    assert cache.match(_tokens("xxbbcc!")) == []


def test_at_least_three_tokens_are_left_to_compute():
    cache = _cache(8)
    cache.store(_tokens("aabb"))
    assert cache.match(_tokens("aabb")) == []
    assert len(cache.match(_tokens("aabbc"))) == 1
    assert len(cache.match(_tokens("aabbcc"))) == 1
    assert len(cache.match(_tokens("aabbccc"))) == 2
    assert [cache.match(_tokens("aaaa"[:length])) for length in range(5)] == [[]] * 5


def test_what_does_not_fill_a_block_is_not_stored():
    assert [start for start, _ in _cache(8).store(_tokens("aabbc"))] == [0, 2]


def test_what_is_there_already_is_not_copied_again():
    cache = _cache(8)
    cache.store(_tokens("aabb"))
    assert [start for start, _ in cache.store(_tokens("aabbcc"))] == [4]
    assert cache.used == 3


def test_the_least_recently_used_leaf_goes_first():
    cache = _cache(4)
    cache.store(_tokens("aabb"))
    cache.store(_tokens("aacc"))
    cache.store(_tokens("dd"))
    cache.match(_tokens("aabb!!!"))
    cache.store(_tokens("ee"))  # cc is the oldest
    assert len(cache.match(_tokens("aabb!!!"))) == 2
    assert len(cache.match(_tokens("aacc!!!"))) == 1
    cache.store(_tokens("ff"))  # dd
    assert cache.match(_tokens("dd!!!")) == []
    assert len(cache.match(_tokens("aabb!!!"))) == 2


def test_a_prefix_larger_than_the_cache_keeps_its_beginning():
    cache = _cache(3)
    assert [start for start, _ in cache.store(_tokens("aabbccddee"))] == [0, 2, 4]
    assert len(cache.match(_tokens("aabbccddee"))) == 3
    assert cache.store(_tokens("aabbccddee")) == []


def test_a_cache_without_blocks_keeps_nothing():
    cache = _cache(0)
    assert cache.store(_tokens("aabb")) == []
    assert cache.match(_tokens("aabb")) == []


def test_a_lower_limit_gives_up_the_least_recently_used_and_a_higher_one_takes_them_again():
    cache = _cache(4)
    cache.store(_tokens("aabb"))
    cache.store(_tokens("ccdd"))
    cache.match(_tokens("aabb!!!"))
    assert len(cache.limit(2)) == 2
    assert cache.used == 2
    assert len(cache.match(_tokens("aabb!!!"))) == 2
    assert cache.match(_tokens("ccdd!!!")) == []
    assert len(cache.store(_tokens("ee"))) == 1  # in the place of bb
    assert cache.used == 2
    assert cache.limit(3) == []
    cache.store(_tokens("ff"))
    cache.store(_tokens("gg"))
    assert cache.used == 3
    assert sorted(cache.limit(0)) == sorted({*range(4)} - {cache._free[0]})
    assert cache.store(_tokens("hh")) == []
    cache.limit(4)
    assert len(cache.store(_tokens("aabbccdd"))) == 4


def test_after_clear_nothing_is_found_and_all_blocks_are_free():
    cache = _cache(2)
    cache.store(_tokens("aabb"))
    assert sorted(cache.clear()) == [0, 1]
    assert cache.clear() == []
    assert cache.match(_tokens("aabb!!!")) == []
    assert len(cache.store(_tokens("ccdd"))) == 2


@given(
    blocks=st.integers(1, 6),
    texts=st.lists(st.tuples(st.booleans(), st.text("ab", max_size=8)), max_size=30),
)
def test_whatever_is_matched_holds_the_tokens_that_were_asked_for(blocks, texts):
    cache = _cache(blocks)
    content: dict[int, str] = {}  # what a block holds, with everything before it
    for store, text in texts:
        tokens = _tokens(text)
        if store:
            for start, block in cache.store(tokens):
                content[block] = text[: start + 2]
        else:
            found = cache.match(tokens)
            assert [content[block] for block in found] == [
                text[: 2 * place + 2] for place in range(len(found))
            ]
        assert cache.used <= blocks
        # Every stored block can be reached from its root.
        reachable = set()
        for block in list(cache._blocks.values()):
            reachable.update(cache.match(_tokens(content[block] + "!!!")))
            assert block in reachable
