"""How often an understanding is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.dialogue.nlu.understanding import Entity

__all__ = ["Score", "score_entities", "score_labels"]


@dataclass(frozen=True, slots=True)
class Score:
    """What came of some labelled sentences.

    Attributes:
        sentences: how many.
        accuracy: share of sentences in which all was right.
        macro_f1: F1 of each label, averaged over the labels that are expected somewhere.
    """

    sentences: int
    accuracy: float
    macro_f1: float


def score_labels(expected: Sequence[str], found: Sequence[str]) -> Score:
    """Score one label a sentence."""
    right = sum(a == b for a, b in zip(expected, found, strict=True))
    labels = set(expected)
    f1 = []
    for label in labels:
        hits = sum(a == b == label for a, b in zip(expected, found, strict=True))
        f1.append(_f1(hits, expected.count(label), found.count(label)))
    return Score(len(expected), right / len(expected), sum(f1) / len(f1))


def score_entities(
    expected: Sequence[Sequence[Entity]], found: Sequence[Sequence[Entity]]
) -> Score:
    """Score entities: one is right if its kind, value and place are; kinds are the labels."""
    wanted = [{_key(each) for each in entities} for entities in expected]
    given = [{_key(each) for each in entities} for entities in found]
    right = sum(a == b for a, b in zip(wanted, given, strict=True))
    kinds = {kind for entities in wanted for kind, *_ in entities}
    f1 = []
    for kind in kinds:
        hits = total = answers = 0
        for a, b in zip(wanted, given, strict=True):
            hits += sum(key[0] == kind for key in a & b)
            total += sum(key[0] == kind for key in a)
            answers += sum(key[0] == kind for key in b)
        f1.append(_f1(hits, total, answers))
    return Score(len(wanted), right / len(wanted), sum(f1) / len(f1))


def _key(entity: Entity) -> tuple[str, str, int, int]:
    return entity.kind, entity.value, entity.span.start, entity.span.end


def _f1(hits: int, expected: int, found: int) -> float:
    return 2 * hits / (expected + found) if expected + found else 0.0
