from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_checkpoints import Make

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN = """
import sys
from pathlib import Path
from serve_app.errors import ModelError
from serve_app.models.sources import open_checkpoint

stages = []
try:
    checkpoint = open_checkpoint(
        sys.argv[2], downloads=Path(sys.argv[1]), progress=lambda *step: stages.append(step)
    )
except ModelError as error:
    print("refused:", error.message)
    sys.exit(1)
print(checkpoint.name, checkpoint.source)
print(*sorted(path.name for path in checkpoint.files))
print(stages[-1] if stages else None)
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as a download of org/tiny asks for."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        names = sorted(file.name for file in self.folder.iterdir())
        if path.startswith("/api/models/org/tiny/revision/"):
            self._json(
                {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            )
        elif path.startswith("/api/models/org/tiny/tree/"):
            self._json(
                [
                    {
                        "type": "file",
                        "path": n,
                        "size": (self.folder / n).stat().st_size,
                        "oid": _etag(n),
                    }
                    for n in names
                ]
            )
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            name = path.rsplit("/", 1)[1]
            self.asked.append(name)
            self._send((self.folder / name).read_bytes(), etag=_etag(name))
        else:
            self._send(b"{}", status=404, code="RepoNotFound")

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode())

    def _send(
        self, body: bytes, *, status: int = 200, etag: str | None = None, code: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _etag(name: str) -> str:
    return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tiny_folder: Make) -> Iterator[tuple[str, type[Hub]]]:
    folder = tiny_folder("llama")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    handler = type("TinyHub", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def open_in_child(endpoint: str, downloads: Path, source: str) -> subprocess.CompletedProcess[str]:
    # The hub's address is read when huggingface_hub is imported.
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", OPEN, str(downloads), source],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def test_hub_model_is_downloaded_without_code_or_pickles_and_kept(
    hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    endpoint, handler = hub
    done = open_in_child(endpoint, tmp_path / "downloads", "org/tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    opened, files, last = done.stdout.splitlines()
    assert opened == f"tiny org/tiny@{COMMIT}"
    assert "model.safetensors" in files.split()
    total = sum((handler.folder / name).stat().st_size for name in set(handler.asked))
    assert last == str(("downloading", total, total))
    assert set(handler.asked) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    # Without a hub, what was downloaded still serves.
    again = open_in_child("http://127.0.0.1:9", tmp_path / "downloads", "org/tiny")
    assert again.stdout.splitlines()[0] == opened


def test_unknown_hub_model_is_refused(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    done = open_in_child(hub[0], tmp_path / "downloads", "org/other")
    assert done.returncode == 1
    assert done.stdout.startswith("refused: There is no model org/other")


def test_unreachable_hub_says_what_to_do(tmp_path: Path) -> None:
    done = open_in_child("http://127.0.0.1:9", tmp_path / "downloads", "org/tiny")
    assert done.returncode == 1
    assert done.stdout.startswith("refused: org/tiny can't be downloaded (")
    assert "give its path" in done.stdout
