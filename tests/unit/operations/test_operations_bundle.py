"""A support bundle: what is in it, and what mustn't be."""

from __future__ import annotations

import base64
import json
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_api_server import TOKEN, ApiServer
from fake_kuberay import PODS
from typer.testing import Result

import serve_app
from serve_app.errors import OperationError
from serve_app.operations.masked_objects import ObjectMasks
from serve_app.telemetry.masking import Masks

Ops = Callable[..., Result]

KNOWN = "correct-horse-battery"
PLANTED = {
    "a value of a Secret": KNOWN,
    "the same in Base64": base64.b64encode(KNOWN.encode()).decode(),
    "a password in Redis' URL": "s3cr3t-of-redis",
    "a bearer token": "abcdef0123456789.xyz",
    "an API key": "pk-0011aabb-ccddeeff00112233",
    "a password in a variable": "hunter2hunter2",
    "a password in JSON": "json-pass-9931",
    "a key of encryption": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "a key in a variable": "no-key-by-its-looks",
    "a password with signs in it": "p@ss/w0rd",
    "a private key": "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "an address of mail": "grace.hopper@navy.example.org",
    "a telephone number": "+49 30 901820-11",
    "a number of a card": "4111 1111 1111 1111",
    "a number of an account": "DE89 3704 0044 0532 0130 00",
    "a public address": "8.8.4.4",
}
LOG = f"""\
using {KNOWN} and {PLANTED["the same in Base64"]}
connecting to rediss://parley:s3cr3t-of-redis@parley-redis:6379/0
GET /v1 Authorization: Bearer abcdef0123456789.xyz key pk-0011aabb-ccddeeff00112233
RAY_REDIS_PASSWORD=hunter2hunter2
{{"user": "x", "password": "json-pass-9931", "max_tokens": 128}}
-----BEGIN PRIVATE KEY-----
{PLANTED["a private key"]}
-----END PRIVATE KEY-----
token {PLANTED["a JSON web token"]}
mail from grace.hopper@navy.example.org, call +49 30 901820-11
card 4111 1111 1111 1111, account DE89 3704 0044 0532 0130 00
using PARLEY_ENCRYPTION_KEYS=old:{PLANTED["a key of encryption"]} and redis://:p@ss/w0rd@redis:6379/0
client 8.8.4.4 came by pod 10.244.1.7 at 2026-11-26T12:00:00.123456Z, Ray 2.60.0, step 1795694400000000000
"""


@pytest.fixture
def planted(server: ApiServer) -> None:
    """Secrets wherever one could come to lie."""
    encoded = base64.b64encode(KNOWN.encode()).decode()
    server.store.add(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": "parley-ray-token",
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": json.dumps(
                        {"data": encoded}
                    )
                },
            },
            "data": {"auth_token": encoded},
        }
    )
    pod = server.store.get(PODS, "parley", "parley-x1-cpu-a")
    container = pod["spec"]["containers"][0]
    container["env"].append({"name": "DB_PASSWORD", "value": PLANTED["a password in a variable"]})
    container["env"].append(
        {"name": "PARLEY_ENCRYPTION_KEYS", "value": PLANTED["a key in a variable"]}
    )
    container["args"] = ["--redis", "rediss://ray:s3cr3t-of-redis@parley-redis:6379"]
    server.store.replace(PODS, "parley-x1-cpu-a", pod)
    server.store.add(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "name": "parley-x1-cpu-a"},
            "message": f"failed with {KNOWN}",
        }
    )
    server.outputs["parley-x1-cpu-a", "ray-worker", False] = LOG
    folder = server.disks["parley-x1-gpu-a"] / "session_latest" / "logs" / "serve"
    (folder / "replica_parley_Generator_x.log").write_text(LOG)


def members(file: Path) -> dict[str, str]:
    with tarfile.open(file) as archive:
        found = {}
        for one in archive.getmembers():
            content = archive.extractfile(one)
            assert content is not None
            found[one.name.split("/", 1)[1]] = content.read().decode()
        return found


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("secrets_readable", [True, False])
def test_no_planted_secret_is_in_a_bundle(
    ops: Ops, server: ApiServer, tmp_path: Path, *, secrets_readable: bool
) -> None:
    if secrets_readable:
        server.users[TOKEN].append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]})
    file = tmp_path / "support.tar.gz"
    done = ops("bundle", "--output", str(file))
    assert done.exit_code == 0, done.output
    assert file.stat().st_mode & 0o777 == 0o600
    found = members(file)
    everything = "".join(found.values())
    # A value that looks like any word can be known only from the Secret itself.
    by_looks = {what: value for what, value in PLANTED.items() if KNOWN not in value}
    by_looks.pop("the same in Base64")
    for what, value in (PLANTED if secrets_readable else by_looks).items():
        assert value not in everything, what
    assert ("secrets" not in found["missing.txt"]) == secrets_readable
    if secrets_readable:
        (secret,) = json.loads(found["objects/secrets.json"])
        assert secret["data"] == {"auth_token": "***"}


@pytest.mark.usefixtures("planted")
def test_a_bundle_holds_what_is_needed_to_help(ops: Ops, tmp_path: Path) -> None:
    file = tmp_path / "support.tar.gz"
    written = json.loads(ops("bundle", "--output", str(file), "--json").stdout)
    found = members(file)
    assert sorted(found) == written["members"]
    assert json.loads(found["versions.json"])["parley"] == serve_app.__version__
    assert json.loads(found["versions.json"])["api_server"]["gitVersion"] == "v1.37.0"
    (service,) = json.loads(found["objects/rayservices.ray.io.json"])
    assert service["status"]["activeServiceStatus"]["rayClusterName"] == "parley-x1"
    assert "***" not in service["spec"]["serveConfigV2"]
    assert json.loads(found["status.json"])["service"] == "parley"
    assert "objects/nodes/node-1.json" in found
    for log in ("logs/parley-x1-cpu-a/ray-worker.log", "logs/parley-x1-gpu-a/serve.log"):
        # What helps is left: addresses inside the cluster, times, versions, numbers.
        kept = ("10.244.1.7", "2026-11-26T12:00:00.123456Z", "2.60.0", "1795694400000000000")
        assert all(word in found[log] for word in kept)
        assert '"max_tokens": 128' in found[log]
    assert "replica_parley_Generator_x.log" in found["logs/parley-x1-gpu-a/serve.log"]


def test_a_bundle_never_overwrites_a_file(ops: Ops, tmp_path: Path) -> None:
    file = tmp_path / "there.tar.gz"
    file.write_text("mine")
    failed = ops("bundle", "--output", str(file))
    assert isinstance(failed.exception, OperationError)
    assert failed.exception.code == "file_exists"
    assert file.read_text() == "mine"


def test_references_to_secrets_stay_readable() -> None:
    pod = {
        "kind": "Pod",
        "spec": {
            "volumes": [{"secret": {"secretName": "parley-redis-tls"}}],
            "env": [
                {
                    "name": "PARLEY_REDIS_URL",
                    "valueFrom": {"secretKeyRef": {"name": "parley-redis-url", "key": "url"}},
                },
                {"name": "PARLEY_HOME", "value": "/var/lib/parley"},
                {"name": "REDIS_URL", "value": "redis-with-no-password"},
            ],
        },
    }
    masked = ObjectMasks().object(pod)
    assert masked["spec"]["volumes"] == pod["spec"]["volumes"]
    assert masked["spec"]["env"][:2] == pod["spec"]["env"][:2]
    assert masked["spec"]["env"][2]["value"] == "***"


@pytest.mark.parametrize(
    "text",
    [
        "Ray 2.60.0 listens on 10.0.0.1:6379",
        "2026-11-26 12:00:00,123 INFO 4711 -- took 0.123456789012 s",
        "max_tokens=128 tokens: 12 and output_tokens 512",
        "replica parley#Generator#abc123de is healthy",
        "1234567890123 bytes",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Masks().text(text) == text


def test_masking_takes_a_time_that_grows_with_the_text() -> None:
    """Nothing in a log may make it look at each place again and again."""
    masks = Masks(["swordfish-and-more"])
    for odd in ("a.b-", "password", "a@b.", "1 2-", "x://", "x://a:", "0049 ", "eyJ", "token="):
        began = time.perf_counter()
        masks.text(odd * (50_000 // len(odd)))
        assert time.perf_counter() - began < 2.0, odd


def test_known_values_go_even_within_words_and_short_ones_do_not() -> None:
    masks = Masks(["swordfish-and-more", "abc"])
    assert masks.text("xswordfish-and-morex abc") == "x***x abc"
    assert not re.search("swordfish", masks.text("swordfish-and-more"))
