"""What the documents tell operators to type is what kubectl takes, about things that there are."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache

import pytest
from cluster_rules import workloads
from foreign_names import ray_reads
from kustomize import K8S, SERVICES, build, kubectl

DOCS = K8S.parent / "docs"
DOCUMENTS = sorted(DOCS.rglob("*.md"))
NOBODY = "http://127.0.0.1:9"
# What it says where no API server answers, or a file of the reader's isn't here.
UNDERSTOOD = re.compile(
    r"refused|timeout|timed out|no such file|failed to load|no objects passed|context", re.I
)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield (place, words) of every kubectl command, without what it is piped into."""
    for document in DOCUMENTS:
        fenced = False
        text = document.read_text("utf-8").replace("\\\n", " ")
        for number, line in enumerate(text.splitlines(), start=1):
            fenced ^= line.startswith("```")
            typed = re.findall(r"`(kubectl [^`]+ [^`]+)`", line)
            if fenced or line.startswith("    "):
                typed = re.findall(r"(?:^\s*|\| )(kubectl .*)", line)
            for one in typed:
                yield (
                    f"{document.name}:{number}",
                    shlex.split(re.split(r"\s+[|&]|\s+#", one)[0]),
                )


def complaint(words: list[str]) -> str | None:
    """Return what kubectl has against a command, if it doesn't even try to find a cluster for it."""
    done = subprocess.run(
        [str(kubectl()), "--server", NOBODY, "--request-timeout", "1s", *words[1:]],
        cwd=K8S.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": os.devnull},
        timeout=60,
        check=False,
    )
    fine = done.returncode == 0 or UNDERSTOOD.search(done.stderr)
    return None if fine else done.stderr.strip().splitlines()[0]


def test_kubectl_takes_every_command_that_a_document_shows() -> None:
    found = list(commands())
    assert len(found) > 30
    assert {place: said for place, words in found if (said := complaint(words))} == {}


@pytest.mark.parametrize(
    "typed",
    [
        "kubectl -n parley get pods --selectr a=b",
        "kubectl -n parley gett pods",
        "kubectl rollout undoo x",
    ],
)
def test_a_command_that_kubectl_does_not_take_is_noticed(typed: str) -> None:
    assert complaint(shlex.split(typed)) is not None


@cache
def there() -> dict[str, set[str]]:
    """Return what the overlays have: containers, labels of pods, and objects by kind."""
    found: dict[str, set[str]] = {"containers": set(), "labels": set()}
    for folder in SERVICES:
        manifests = build(folder)
        for workload in workloads(manifests):
            found["containers"] |= {one["name"] for one in workload.pod["containers"]}
            found["labels"] |= {f"{key}={value}" for key, value in workload.labels.items()}
        for one in manifests:
            found.setdefault(one["kind"].lower(), set()).add(one["metadata"]["name"])
    return found


def test_commands_are_about_pods_that_there_are() -> None:
    named: dict[str, set[str]] = {"containers": set(), "labels": set(), "pods": set()}
    for _, words in commands():
        ours = words[: words.index("--")] if "--" in words else words  # not what runs in the pod
        for option, value in itertools.pairwise(ours):
            if option == "-c":
                named["containers"].add(value)
            if option == "-l":
                named["labels"].add(value)
        named["pods"] |= {word for word in words if re.fullmatch(r"parley-[\w-]+-\d", word)}
    assert len(named["containers"]) > 3
    assert named["containers"] <= there()["containers"]
    # Revisions are recorded by `parley ops`, with a label of their own.
    assert named["labels"] - {"app.kubernetes.io/component=revision"} <= there()["labels"]
    assert {name.rpartition("-")[0] for name in named["pods"]} <= there()["statefulset"]


def test_ray_reads_every_variable_that_operators_are_told_to_set() -> None:
    named = set(re.findall(r"\bRAY_[A-Z_]+", (DOCS / "operating.md").read_text("utf-8")))
    assert len(named) > 5
    assert {name for name in named if not ray_reads(name)} == set()
    assert not ray_reads("RAY_SERVE_DIRECT_INGRESS_DRAINING")


def test_network_policies_that_runbooks_name_exist() -> None:
    policies = there()["networkpolicy"]
    named = {
        name
        for file in (DOCS / "runbooks").glob("*.md")
        for line in file.read_text("utf-8").splitlines()
        if "NetworkPolic" in line
        for name in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", line)
    }
    assert len(named) > 2
    assert named <= policies
