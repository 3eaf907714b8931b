"""What the documents name exists: settings, variables, metrics, commands, options, files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

import serve_app
from serve_app.cli import app
from serve_app.cluster.deploy_file import load_deployment
from serve_app.settings import OTHER_VARIABLES, Settings
from serve_app.telemetry import metrics

REPOSITORY = Path(serve_app.__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
OPERATING = (REPOSITORY / "docs" / "operating.md").read_text(encoding="utf-8")

FILES = {
    "redis.conf",
    "dialogue.json",
    "encryption.json",
    "model.safetensors",
    "model.lock",
    "tokenizer.json",
}
VARIABLES = OTHER_VARIABLES | {"PARLEY_SECTION_KEY"}  # which stands for any setting
LINES = {
    f"{document.name}:{number}": line
    for document in DOCUMENTS
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1)
}


def matches(pattern: str) -> list[tuple[str, str]]:
    """Return (place, first group) of everything that matches."""
    found = re.compile(pattern)
    return [(place, text) for place, line in LINES.items() for text in found.findall(line)]


def settings() -> set[str]:
    keys = set()
    for name, field in Settings.model_fields.items():
        assert field.annotation is not None
        keys |= {f"{name}.{key}" for key in field.annotation.model_fields}
    return keys


def test_every_setting_that_a_document_names_exists() -> None:
    sections = "|".join(Settings.model_fields)
    named = [
        (place, key) for place, key in matches(rf"`((?:{sections})\.[a-z_]+)`") if key not in FILES
    ]
    assert len(named) > 20
    assert [(place, key) for place, key in named if key not in settings()] == []


def test_every_variable_that_a_document_names_exists() -> None:
    known = VARIABLES | {f"PARLEY_{key.replace('.', '_').upper()}" for key in settings()}
    named = matches(r"\b(PARLEY_[A-Z_]+)\b")
    assert {"PARLEY_HOME", "PARLEY_REDIS_URL"} <= {name for _, name in named}
    assert [(place, name) for place, name in named if name not in known] == []


def test_every_limit_has_the_default_that_the_table_says() -> None:
    text = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| `([a-z]+)\.([a-z_]+)` \| ([\d.]+)(?: (MiB|s))? \|", text, re.M)
    assert len(rows) > 8
    for section, key, number, unit in rows:
        factor = 2**20 if unit == "MiB" else 1
        default = getattr(Settings.model_fields[section].get_default(), key)
        assert (section, key, default) == (section, key, float(number) * factor)


def test_the_table_of_metrics_is_the_list_of_metrics() -> None:
    documented = set(re.findall(r"^\| `(parley_\w+)` \|", OPERATING, re.MULTILINE))
    existing = set()
    for metric in (getattr(metrics, name) for name in metrics.__all__):
        if not hasattr(metric, "describe"):
            continue  # what labels and buckets there are
        (family,) = metric.describe()
        existing.add(family.name + ("_total" if family.type == "counter" else ""))
    assert documented == existing


def test_every_metric_that_a_document_names_is_in_the_table() -> None:
    documented = set(re.findall(r"^\| `(parley_\w+)` \|", OPERATING, re.MULTILINE))
    named = matches(r"\b(parley_[a-z0-9_]+)\b")
    assert [(place, name) for place, name in named if name not in documented] == []


def invocations() -> Iterator[tuple[str, list[str]]]:
    """Yield (place, words) of every `parley …` in a code span or at the start of a command line."""
    for place, line in LINES.items():
        for span in re.findall(r"`((?:\.venv/bin/)?parley [^`]+)`", line):
            yield place, span.split()
        command = re.match(r"(?:\$ |    )?(?:[A-Z_]+=\S+ )*((?:\.venv/bin/)?parley .*)", line)
        if command:
            yield place, re.split(r"\s+#|\s*\|", command[1])[0].split()


def fault(words: list[str]) -> str | None:
    """Return what is wrong with an invocation, or None."""
    command = typer.main.get_command(app)
    options = {"--help", "--version"}
    for word in words[1:]:
        if word.startswith("-"):
            if word.rstrip(".,;") not in options:
                return f"{command.name} has no option {word}"
        elif isinstance(command, TyperGroup) and re.fullmatch("[a-z]+", word):
            if word not in command.commands:
                return f"{command.name} has no command {word}"
            command = command.commands[word]
            options = {"--help", *(name for given in command.params for name in given.opts)}
    return None


def test_every_command_and_option_that_a_document_names_exists() -> None:
    found = list(invocations())
    assert len(found) > 40
    assert [(place, reason) for place, words in found if (reason := fault(words))] == []


def test_a_command_or_option_that_does_not_exist_is_noticed() -> None:
    assert fault(["parley", "model", "list", "--json"]) is None
    assert fault(["parley", "model", "burn", "NAME"]) is not None
    assert fault(["parley", "up", "--gpu"]) is not None


def test_every_link_leads_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            name, _, anchor = target.partition("#")
            file = document.parent / name if name else document
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append((document.name, target))
    assert broken == []


def anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_of_the_repository_that_a_document_names_exists() -> None:
    named = matches(r"`((?:serve_app|deploy|load|tests|docs)/[\w./-]*)`")
    assert len(named) > 20
    assert [(place, name) for place, name in named if not (REPOSITORY / name).exists()] == []


def test_the_deploy_file_that_everybody_starts_from_is_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    deployment = load_deployment(REPOSITORY / "deploy" / "local.yaml")
    assert deployment.url == "http://127.0.0.1:8000"
    (application,) = deployment.config["applications"]
    assert Settings.load(application["args"]).generator.slots == deployment.settings.generator.slots
