"""API keys: shown once, never stored, told apart by tenant, revoked at once."""

from __future__ import annotations

import hashlib
import hmac
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.errors import ConfigError, Unauthorized
from serve_app.state.keys import KeyRing


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.json"


@pytest.fixture
def ring(file: Path) -> KeyRing:
    return KeyRing(file)


def test_a_key_opens_its_tenant(ring: KeyRing) -> None:
    keys = {tenant: ring.create(f"key of {tenant}", tenant) for tenant in ("acme", "rival")}
    for tenant, key in keys.items():
        assert ring.authenticate(key).tenant == tenant


def test_a_key_holds_256_random_bits(ring: KeyRing) -> None:
    first, second = ring.create("a", "acme"), ring.create("b", "acme")
    assert first.startswith("pk-")
    assert len(bytes.fromhex(first.split("-")[2])) == 32
    assert first.split("-")[2] != second.split("-")[2]


def test_only_a_hash_is_stored_and_only_for_the_owner(ring: KeyRing, file: Path) -> None:
    key = ring.create("laptop", "acme")
    assert key not in file.read_text()
    assert key.split("-")[2] not in file.read_text()
    assert hashlib.sha256(key.encode()).hexdigest() in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (listed,) = ring.list()
    assert (listed.name, listed.tenant) == ("laptop", "acme")
    assert listed.sha256 not in repr(listed)


@pytest.mark.parametrize("change", ["tail", "id", "mark", "case", "longer"])
def test_a_key_that_differs_in_anything_is_refused(ring: KeyRing, change: str) -> None:
    key = ring.create("laptop", "acme")
    mark, key_id, secret = key.split("-")
    wrong = {
        "tail": key[:-1] + ("0" if key[-1] != "0" else "1"),
        "id": f"{mark}-00000000-{secret}",
        "mark": f"sk-{key_id}-{secret}",
        "case": key.upper(),
        "longer": key + "0",
    }[change]
    with pytest.raises(Unauthorized):
        ring.authenticate(wrong)


@pytest.mark.parametrize(
    "nonsense", ["", "pk", "pk-", "pk--", "-", "\ud800", "pk-é-ü", "x" * 100_000]
)
def test_nonsense_is_refused(ring: KeyRing, nonsense: str) -> None:
    ring.create("laptop", "acme")
    with pytest.raises(Unauthorized, match="parley key create"):
        ring.authenticate(nonsense)


def test_known_and_unknown_keys_are_compared_in_constant_time(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ring.create("laptop", "acme")
    compared: list[int] = []
    real = hmac.compare_digest

    def note(left: str, right: str) -> bool:
        compared.append(len(left) + len(right))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", note)
    ring.authenticate(key)
    for wrong in (key[:-1], "pk-00000000-00", "x"):
        with pytest.raises(Unauthorized):
            ring.authenticate(wrong)
    assert compared == [128] * 4


@pytest.mark.parametrize("by", ["name", "id", "start"])
def test_a_revoked_key_is_refused_by_a_ring_that_serves(ring: KeyRing, file: Path, by: str) -> None:
    serving = KeyRing(file)
    key, other = ring.create("laptop", "acme"), ring.create("phone", "acme")
    assert serving.authenticate(key).name == "laptop"
    key_id = key.split("-")[1]
    revoked = ring.revoke({"name": "laptop", "id": key_id, "start": f"pk-{key_id}"}[by])
    assert revoked.name == "laptop"
    with pytest.raises(Unauthorized):
        serving.authenticate(key)
    assert serving.authenticate(other).name == "phone"


def test_a_new_key_works_without_a_restart(ring: KeyRing, file: Path) -> None:
    serving = KeyRing(file)
    assert not serving.demands_key
    key = ring.create("laptop", "acme")
    assert serving.demands_key
    assert serving.authenticate(key).tenant == "acme"


def test_losing_the_last_key_does_not_open_the_door(ring: KeyRing, file: Path) -> None:
    key = ring.create("laptop", "acme")
    ring.revoke("laptop")
    assert ring.demands_key
    ring.create("phone", "acme")
    file.unlink()
    assert ring.demands_key
    with pytest.raises(Unauthorized):
        ring.authenticate(key)


def test_two_keys_cannot_share_a_name(ring: KeyRing) -> None:
    ring.create("laptop", "acme")
    with pytest.raises(ConfigError, match="'laptop' already"):
        ring.create("laptop", "rival")
    with pytest.raises(ConfigError, match="needs a name"):
        ring.create(" ", "acme")


def test_revoking_what_is_not_there_says_so(ring: KeyRing) -> None:
    with pytest.raises(ConfigError, match="parley key list"):
        ring.revoke("laptop")


@pytest.mark.parametrize("tenant", ["", "a:b", "a}b", "{a", "a b", "-a", "a" * 65, "é"])
def test_a_tenant_that_could_reach_into_others_keys_is_refused(ring: KeyRing, tenant: str) -> None:
    with pytest.raises(ConfigError, match="can't name a tenant"):
        ring.create("laptop", tenant)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"v":2,"keys":[]}', '{"keys":[{"id":1}]}'])
def test_a_broken_file_is_refused_by_name_and_not_overwritten(
    ring: KeyRing, file: Path, content: str
) -> None:
    ring.create("laptop", "acme")
    file.write_text(content)
    for use in (
        lambda: KeyRing(file),
        lambda: ring.authenticate("pk-x-y"),
        lambda: ring.create("phone", "acme"),
    ):
        with pytest.raises(ConfigError, match=r"keys\.json"):
            use()
    assert file.read_text() == content


def test_keys_made_at_the_same_time_are_all_kept(file: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom serve_app.state.keys import KeyRing\n"
        "ring = KeyRing(Path(sys.argv[1]))\n"
        "for number in range(20): ring.create(f'{sys.argv[2]}-{number}', 'acme')"
    )
    makers = [
        subprocess.Popen([sys.executable, "-c", code, str(file), name]) for name in ("a", "b", "c")
    ]
    assert [maker.wait(timeout=60) for maker in makers] == [0, 0, 0]
    assert len(KeyRing(file).list()) == 60
