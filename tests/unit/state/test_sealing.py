"""Encryption at rest: what is sealed opens in its place, with its key, and nowhere else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app.errors import ConfigError, StateUnavailable
from serve_app.settings import EncryptionSettings
from serve_app.state.sealing import KeyFile, Seal, is_sealed, key_of, open_seal

PLACE = ("acme", "conv_1", "msg_1")
TEXT = "Grüße 🦊".encode()


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    made = KeyFile(tmp_path / "home" / "encryption.json")
    made.ensure()
    return made


def test_the_first_key_is_made_once_and_only_its_owner_reads_it(file: KeyFile) -> None:
    before = file.read()
    assert not file.ensure()
    assert file.read() == before
    assert stat.S_IMODE(file.file.stat().st_mode) == 0o600
    assert before[0].key.get_secret_value() not in repr(before)


def test_what_is_sealed_opens_and_says_nothing(file: KeyFile) -> None:
    seal = Seal(file.read())
    sealed = seal.seal(TEXT, *PLACE)
    assert is_sealed(sealed)
    assert TEXT not in sealed
    assert seal.open(sealed, *PLACE) == TEXT
    assert seal.seal(TEXT, *PLACE) != sealed


@pytest.mark.parametrize(
    "place",
    [("rival", "conv_1", "msg_1"), ("acme", "conv_2", "msg_1"), ("acme", "conv_1", "msg_2")],
)
def test_a_value_does_not_open_in_anothers_place(file: KeyFile, place: tuple[str, ...]) -> None:
    seal = Seal(file.read())
    with pytest.raises(StateUnavailable, match="changed or moved"):
        seal.open(seal.seal(TEXT, *PLACE), *place)


def test_a_value_that_was_changed_does_not_open(file: KeyFile) -> None:
    seal = Seal(file.read())
    sealed = bytearray(seal.seal(TEXT, *PLACE))
    sealed[-1] ^= 1
    with pytest.raises(StateUnavailable, match="changed or moved"):
        seal.open(bytes(sealed), *PLACE)


def test_a_rotated_key_seals_and_the_old_one_still_opens(file: KeyFile) -> None:
    old = Seal(file.read()).seal(TEXT, *PLACE)
    name = file.rotate()
    seal = Seal(file.read())
    assert seal.open(old, *PLACE) == TEXT
    assert key_of(seal.seal(TEXT, *PLACE)) == name == seal.newest
    assert file.retire() == (key_of(old),)
    with pytest.raises(StateUnavailable, match=rf"key '{key_of(old)}', which is not here"):
        Seal(file.read()).open(old, *PLACE)


def test_plain_values_open_only_where_nothing_is_encrypted(file: KeyFile) -> None:
    assert Seal().open(Seal().seal(b"{}", *PLACE), *PLACE) == b"{}"
    with pytest.raises(StateUnavailable, match="parley data reseal"):
        Seal(file.read()).open(b"{}", *PLACE)
    assert Seal.opening_plain(Seal(file.read())).open(b"{}", *PLACE) == b"{}"


def test_keys_come_from_the_settings_or_the_home(file: KeyFile) -> None:
    home = file.file.parent
    own = file.read()[0]
    assert open_seal(EncryptionSettings(), home).newest == own.id
    assert open_seal(EncryptionSettings(enabled=False), home).newest == ""
    given = SecretStr(f"a:{own.key.get_secret_value()}, b:{own.key.get_secret_value()}")
    assert open_seal(EncryptionSettings(keys=given), home).newest == "b"


@pytest.mark.parametrize(
    "given", ["", "nothing", "a:c2hvcnQ=", "a b:AAAA", f"a:{'A' * 43}=,a:{'A' * 43}="]
)
def test_what_is_no_key_is_refused_without_being_quoted(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_seal(EncryptionSettings(keys=SecretStr(given)), tmp_path)
    assert "AAAA" not in caught.value.message


def test_a_file_may_hold_keys_as_the_variable_does(tmp_path: Path, file: KeyFile) -> None:
    (key,) = file.read()
    mounted = tmp_path / "keys"
    mounted.write_text(f"{key.id}:{key.key.get_secret_value()}\n")
    seal = open_seal(EncryptionSettings(keys_file=mounted), tmp_path)
    assert seal.open(Seal((key,)).seal(TEXT, *PLACE), *PLACE) == TEXT
    mounted.write_text("no key at all")
    with pytest.raises(ConfigError, match="not ID:BASE64") as refused:
        open_seal(EncryptionSettings(keys_file=mounted), tmp_path)
    assert refused.value.__cause__ is None


def test_a_key_file_that_is_gone_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encryption\.json can't be read: it isn't there"):
        open_seal(EncryptionSettings(), tmp_path)
    (tmp_path / "encryption.json").write_text("{}")
    with pytest.raises(ConfigError, match="not what Parley wrote"):
        open_seal(EncryptionSettings(), tmp_path)
