"""Secrets and personal data are masked, whatever stands around them, and nothing else is."""

from __future__ import annotations

import base64
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.state.keys import KeyRing
from serve_app.telemetry.masking import MASK, Masks

MASKS = Masks()
WORD = st.text(string.ascii_letters, min_size=1, max_size=12)
ALNUM = string.ascii_letters + string.digits
# What stands before and behind: a log's own words, in quotes or brackets, with signs between.
BEFORE = st.tuples(
    WORD, st.sampled_from([" ", ": ", " '", ' "', " (", " [", "\n", "\t", ", "])
).map("".join)
BEHIND = st.tuples(st.sampled_from([" ", "'", '"', ")", "]", "\n", ", ", ". "]), WORD).map("".join)


def digits(least: int, most: int) -> st.SearchStrategy[str]:
    return st.text(string.digits, min_size=least, max_size=most)


def with_check_digit(number: str) -> str:
    """Return a number with the digit behind it that Luhn's rule wants."""
    doubled = [int(d) * (2 - at % 2) for at, d in enumerate(reversed(number))]
    total = sum(sum(map(int, str(one))) for one in doubled)
    return number + str(-total % 10)


def grouped(number: str, sign: str) -> str:
    return sign.join(number[at : at + 4] for at in range(0, len(number), 4))


CARD = st.tuples(
    digits(14, 17).filter(lambda text: text.strip("0")).map(with_check_digit),
    st.sampled_from(["", " ", "-"]),
).map(lambda parts: grouped(*parts))
MAIL = st.tuples(
    st.text(ALNUM + "._+-", min_size=1, max_size=30).filter(lambda name: name[0] in ALNUM),
    st.lists(st.text(ALNUM, min_size=1, max_size=12), min_size=1, max_size=3).map(".".join),
    st.sampled_from(["de", "com", "example", "museum"]),
).map(lambda parts: f"{parts[0]}@{parts[1]}.{parts[2]}")
PHONE = st.one_of(
    st.tuples(st.sampled_from(["+49 ", "+1 ", "+86"]), digits(7, 11)).map("".join),
    st.tuples(digits(3, 3), digits(3, 3), digits(4, 4)).map("-".join),
    st.tuples(st.sampled_from(["13", "15", "18"]), digits(9, 9)).map("".join),
    st.tuples(st.sampled_from(["030/", "0171 ", "010-"]), digits(6, 8)).map("".join),
    st.tuples(st.just("0049"), digits(3, 3), digits(7, 8)).map(" ".join),
    st.tuples(st.just("415"), digits(3, 3), digits(4, 4)).map(".".join),
    st.tuples(st.just("138"), digits(4, 4), digits(4, 4)).map(" ".join),
)
# Whoever writes a URL by hand doesn't escape @ and /. Digits before a / would be a port.
PASSWORD = st.text(ALNUM + "!$%*_-.@/", min_size=8, max_size=40).filter(
    lambda text: not re.match(r"\d{1,5}/", text)
)
TOKEN = st.text(ALNUM + "_-", min_size=16, max_size=48)


@given(BEFORE, st.one_of(CARD, MAIL, PHONE), BEHIND)
def test_personal_data_is_masked_wherever_it_stands(before: str, secret: str, behind: str) -> None:
    masked = MASKS.text(before + secret + behind)
    assert secret not in masked
    assert masked.startswith(before.rstrip("'\"([ "))
    assert MASK in masked


@given(BEFORE, PASSWORD, st.sampled_from(["redis", "rediss", "https", "postgresql"]))
def test_a_password_in_a_url_is_masked_and_its_host_is_not(
    before: str, password: str, scheme: str
) -> None:
    masked = MASKS.text(f"{before}{scheme}://parley:{password}@db-7.example:6379/0")
    assert masked.endswith(f"{scheme}://{MASK}@db-7.example:6379/0")


@given(
    BEFORE,
    TOKEN,
    st.sampled_from(
        [
            "Bearer {}",
            "authorization: Bearer {}",
            "api_key={}",
            '"password": "{}"',
            "PARLEY_REDIS_PASSWORD={}",
            "sk-{}",
            "pk-{}",
            "hf_{}",
        ]
    ),
)
def test_a_credential_is_masked_whatever_it_is_called(before: str, token: str, form: str) -> None:
    assert token not in MASKS.text(before + form.format(token))


def test_keys_of_encryption_are_masked_each_by_itself() -> None:
    keys = [base64.b64encode(bytes([n] * 32)).decode() for n in (1, 255)]
    masked = MASKS.text(f"PARLEY_ENCRYPTION_KEYS=old:{keys[0]},new:{keys[1]} is set")
    assert masked == f"PARLEY_ENCRYPTION_KEYS=old:{MASK},new:{MASK} is set"


@pytest.mark.parametrize(
    "key",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
        "glpat-abcdefghijklmnopqrst",
    ],
)
def test_a_key_of_other_services_is_masked_though_nothing_says_what_it_is(key: str) -> None:
    assert MASKS.text(f"The hub refuses {key}.") == f"The hub refuses {MASK}."


def test_a_key_that_parley_makes_is_masked(tmp_path: Path) -> None:
    key = KeyRing(tmp_path / "keys.json").create("me", "default")
    assert MASKS.text(f"Someone sent {key}.") == f"Someone sent pk-{MASK}."


@given(st.text(max_size=300))
def test_masking_twice_is_masking_once(text: str) -> None:
    once = MASKS.text(text)
    assert MASKS.text(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "resp_5f0c3a1be79d4c2f8a6b1234567890ab12cd34ef56ab78cd90ef12ab ended: length after 512 tokens",
        "chatcmpl-Zk3x9_Qm1LrT7vWc2YbN8sHdKfGpJ0aE-0 ended with engine_error",
        "trace_id=4bf92f3577b34da6a3ce929d0e0e4736 span_id=00f067aa0ba902b7",
        "12.345 s queued, 0.120 s prefill, 3.500 s decode",
        "POST http://127.0.0.1:8000/v1/chat/completions in 0.120 s at 2026-11-27 06:44:19",
        "/v1/users/@me at http://parley.example:8000",
        "Generator vkq3ud8x has been silent for too long.",
    ],
)
def test_what_parleys_own_lines_are_made_of_stays(text: str) -> None:
    assert MASKS.text(text) == text
