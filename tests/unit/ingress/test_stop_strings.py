from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidRequest
from serve_app.ingress.stop_strings import StopMatcher, StopStrings

words = st.text("ab🍎", min_size=1, max_size=5)


def matcher(*stops: str) -> StopMatcher:
    return StopMatcher(StopStrings(stops))


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The match that ends first, the longest of several, found by looking at the whole text."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    _, start, stop = min(found)
    return text[:start], stop


@settings(max_examples=500)
@given(stops=st.lists(words, min_size=1, max_size=4), pieces=st.lists(st.text("abc🍎", max_size=4)))
@example(stops=["aab", "ab"], pieces=["a", "a", "a", "b"])
@example(stops=["abcd", "bc"], pieces=["ab", "cd"])
def test_any_cut_of_a_text_ends_it_where_the_whole_would_end(
    stops: list[str], pieces: list[str]
) -> None:
    one = matcher(*stops)
    released = "".join([one.feed(piece) for piece in pieces])
    released += one.flush()
    assert (released, one.matched) == expected("".join(pieces), stops)


@settings(max_examples=500)
@given(stops=st.lists(words, min_size=1, max_size=4), pieces=st.lists(st.text("abc🍎", max_size=4)))
def test_only_what_may_become_a_stop_string_is_held_back(
    stops: list[str], pieces: list[str]
) -> None:
    one = matcher(*stops)
    text = released = ""
    for piece in pieces:
        text += piece
        released += one.feed(piece)
        if one.matched is not None:
            break
        held = max(
            size
            for size in range(len(text) + 1)
            if any(stop.startswith(text[len(text) - size :]) for stop in stops)
        )
        assert released == text[: len(text) - held]


def test_text_behind_a_stop_string_is_dropped() -> None:
    one = matcher("END")
    assert one.feed("well, E") == "well, "
    assert one.feed("ND. And then") == ""
    assert one.matched == "END"
    assert one.feed(" more") == ""
    assert one.flush() == ""


def test_text_that_was_held_in_vain_is_released() -> None:
    one = matcher("\n\nUser:")
    assert [one.feed(piece) for piece in ("Hi\n", "\nUs", "er", " x\n")] == [
        "Hi",
        "",
        "",
        "\n\nUser x",
    ]
    assert one.flush() == "\n"
    assert one.matched is None


def test_a_stop_string_may_start_inside_of_a_vain_beginning() -> None:
    one = matcher("aab")
    assert one.feed("aa") == ""
    assert one.feed("a") == "a"
    assert one.feed("b") == ""
    assert one.matched == "aab"


def test_choices_of_one_request_search_on_their_own() -> None:
    stops = StopStrings(["xy"])
    first, second = StopMatcher(stops), StopMatcher(stops)
    assert first.feed("ax") == "a"
    assert second.feed("y") == "y"
    assert first.feed("y") == ""
    assert (first.matched, second.matched) == ("xy", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        StopStrings(["a", ""])
    assert caught.value.param == "stop"
