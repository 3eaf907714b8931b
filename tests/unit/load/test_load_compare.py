from __future__ import annotations

import sys
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from load import compare
from load.comparison_plot import save_plot
from load.http_client import RequestFailed
from load.llama_server import LlamaCpp, llama_server
from load.measurements import Level, Reply, TokenCounts
from serve_app.errors import ConfigError

# Takes the options of llama-server, and is healthy at its second look.
STAND_IN = f"""#!{sys.executable}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    looks = 0

    def do_GET(self):
        Handler.looks += 1
        self.send_response(200 if Handler.looks > 1 else 503)
        self.end_headers()

port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
REFUSES = f"""#!{sys.executable}
raise SystemExit("these weights are broken")
"""


def program(folder: Path, text: str) -> Path:
    path = folder / "llama-server"
    path.write_text(text)
    path.chmod(0o755)
    return path


def level(concurrency: int, tokens: int) -> Level:
    reply = Reply(sent_at=0.0, tokens=TokenCounts(prompt=9, completion=tokens))
    for moment in range(1, tokens + 1):
        reply.arrived(moment / 100)
    return Level.of([reply], concurrency=concurrency, conversations=1, wall_s=1.0, cpu_s=0.1)


def test_a_ratio_is_taken_round_by_round() -> None:
    ratio = compare.Ratio.of([20.0, 10.0, 90.0], [10.0, 10.0, 30.0])
    assert (ratio.median, ratio.least, ratio.most) == (2.0, 1.0, 3.0)
    assert str(ratio) == "2.00 (1.00–3.00)"


def test_the_table_divides_ours_by_theirs_for_each_concurrency() -> None:
    servers = {
        "Parley": [[level(1, 40), level(8, 60)], [level(1, 20), level(8, 60)]],
        "llama-server": [[level(1, 20), level(8, 20)], [level(1, 20), level(8, 20)]],
    }
    table = compare._table("chats", (1, 8), servers)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows[:3] == [
        ("output tok/s, Parley", "30.0", "60.0"),
        ("output tok/s, llama-server", "20.0", "20.0"),
        ("  ratio", "1.50 (1.00–2.00)", "3.00 (3.00–3.00)"),
    ]
    assert ("errors, Parley", "0", "0") in rows


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    measured = {"chats": {"Parley": [[level(1, 40)]], "llama-server": [[level(1, 20)]]}}
    save_plot(tmp_path / "plot.png", measured, (1,))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [(["--workload", "songs"], "songs"), (["--program", "nowhere/llama-server"], "--build")],
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fault: str
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    monkeypatch.setattr(compare, "own_cluster", None)
    result = CliRunner().invoke(compare.app, [*arguments, "--report", str(tmp_path / "report")])
    assert isinstance(result.exception, ConfigError)
    assert fault in str(result.exception)
    assert not (tmp_path / "report").exists()


def test_weights_are_converted_once_by_the_program_beside_the_server(tmp_path: Path) -> None:
    peer = LlamaCpp(tmp_path / "kept", program(tmp_path, STAND_IN))
    converter = tmp_path / "llama-quantize"
    converter.write_text('#!/bin/sh\necho "$4" >> "$(dirname "$0")/calls"\ncp "$2" "$3"\n')
    converter.chmod(0o755)
    paths = {peer.weights("Q8_0"), peer.weights("Q8_0")}
    assert [path.name for path in paths] == ["SmolLM2-135M-Instruct.Q4_1.Q8_0.gguf"]
    assert paths.pop().read_bytes()[:4] == b"GGUF"
    assert (tmp_path / "calls").read_text() == "Q8_0\n"


def test_the_server_is_waited_for_and_ended(tmp_path: Path) -> None:
    started = program(tmp_path, STAND_IN)
    weights = tmp_path / "weights.gguf"
    with llama_server(started, weights, streams=2, context=64, threads=1) as url:
        assert httpx.get(url.replace("/v1", "/health"), trust_env=False).is_success
        (process,) = (one for one in psutil.Process().children() if str(weights) in one.cmdline())
    assert not process.is_running()


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    started = program(tmp_path, REFUSES)
    with (
        pytest.raises(RequestFailed, match="these weights are broken"),
        llama_server(started, tmp_path / "weights.gguf", streams=1, context=64, threads=1),
    ):
        pass


def test_a_server_that_crashes_is_said_how_to_be_measured(tmp_path: Path) -> None:
    started = program(
        tmp_path, f"#!{sys.executable}\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    with (
        pytest.raises(RequestFailed, match=r"SIGSEGV.*--llama-options=--no-repack"),
        llama_server(started, tmp_path / "weights.gguf", streams=1, context=64, threads=1),
    ):
        pass


def test_the_servers_own_options_are_handed_on(tmp_path: Path) -> None:
    started, weights = program(tmp_path, STAND_IN), tmp_path / "weights.gguf"
    further = ["--no-repack"]
    with llama_server(started, weights, streams=1, context=64, threads=1, further=further):
        (process,) = (one for one in psutil.Process().children() if str(weights) in one.cmdline())
        assert process.cmdline()[-1] == "--no-repack"
