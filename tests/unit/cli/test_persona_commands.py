"""`parley persona …`: listed, checked with lines, tried without a cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Parley = Callable[..., subprocess.CompletedProcess[str]]

DOCUMENT = Path(__file__).parents[3] / "docs" / "dialogue.md"


@pytest.fixture
def pizza(tmp_path: Path) -> Path:
    """The pizza shop of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    file = tmp_path / "pizza.yaml"
    file.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    return file


def test_the_personas_that_ship_are_listed(parley: Parley) -> None:
    listed = parley("persona", "list")
    assert listed.returncode == 0, listed.stderr
    for name in ("companion", "customer_service", "tutor", "writer"):
        assert name in listed.stdout
    rows = json.loads(parley("persona", "list", "--json").stdout)
    assert [row["name"] for row in rows] == ["companion", "customer_service", "tutor", "writer"]
    assert rows[1]["slots"] == ["order_number"]


def test_a_folder_of_ones_own_is_listed_and_broken_files_are_told(
    parley: Parley, pizza: Path
) -> None:
    broken = pizza.parent / "broken.yaml"
    broken.write_text("name: broken\n")
    listed = parley("persona", "list", PARLEY_DIALOGUE_PERSONAS=str(pizza.parent))
    assert listed.returncode == 1
    assert "pizza" in listed.stdout
    assert f"{broken}:1: title: Field required." in listed.stderr
    missing = parley("persona", "check", "nobody", PARLEY_DIALOGUE_PERSONAS=str(pizza.parent))
    assert missing.returncode == 1
    assert "No persona is named `nobody`" in missing.stderr


def test_check_fits_and_measures_and_keeps_the_model(
    parley: Parley, pizza: Path, tmp_path: Path
) -> None:
    checked = parley("persona", "check", str(pizza))
    assert checked.returncode == 0, checked.stderr
    assert f"{pizza} is fine: 4 intents, 3 slots, 6 rules." in checked.stdout
    assert "examples, each unseen" in checked.stdout
    assert "held out" not in checked.stdout
    (model,) = (tmp_path / "home" / "personas").iterdir()
    assert f"The model is in {model}." in checked.stdout
    assert "held out" in parley("persona", "check", "tutor").stdout


def test_check_names_file_line_and_key(parley: Parley, pizza: Path) -> None:
    pizza.write_text(pizza.read_text().replace("system_prompt:", "sytem_prompt:"))
    checked = parley("persona", "check", str(pizza))
    assert checked.returncode == 1
    line = 1 + pizza.read_text().splitlines().index("sytem_prompt: |")
    assert f"{pizza}:{line}: sytem_prompt: unknown key" in checked.stderr
    assert "did you mean `system_prompt`?" in checked.stderr


def test_try_shows_what_is_understood_and_decided_and_why(parley: Parley, pizza: Path) -> None:
    said = "I'd like to order a large margherita\n\nto go\nbye\n"
    tried = parley("persona", "try", str(pizza), said=said)
    assert tried.returncode == 0, tried.stderr
    for part in (
        "› I'd like to order a large margherita",
        "intent     order",
        "entity     choice 'large' = large (0.95) for size",
        "action     ask, by rule ask_what_is_missing.",
        "says       Do you pick it up, or shall we deliver?",
        "action     goodbye, by rule says_goodbye.",
    ):
        assert part in tried.stdout


def test_try_prints_json_for_other_programs(parley: Parley) -> None:
    tried = parley(
        "persona", "try", "customer_service", "--json", said="I want to talk to a human\n"
    )
    (row,) = map(json.loads, tried.stdout.splitlines())
    assert row["decision"]["action"] == "hand_over"
    assert row["understanding"]["intent"]["name"] == "human"
    assert row["state"]["turns"] == 1
