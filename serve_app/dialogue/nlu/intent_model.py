"""Intents as a multinomial logistic regression over a sentence's features, fitted in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from serve_app.dialogue.nlu.features import Features, features_of

__all__ = ["OUT_OF_SCOPE", "CrossValidation", "IntentModel", "cross_validate", "fit"]

OUT_OF_SCOPE: Final = ""
"""Name of the class of sentences that are no intent."""

_SHARES = (0.25, 0.25, 0.5)  # of words, characters and meaning in a sentence's length of 1
_PENALTY = 3e-5
# How much rarer than an intent a turn without one is taken for. Its sentences are of all kinds, so that
# a model of few examples would see it everywhere.
_OUT_OF_SCOPE_PRIOR = 0.1
_ITERATIONS = 300

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class IntentModel:
    """A fitted classifier.

    Attributes:
        labels: names of the classes, perhaps with `OUT_OF_SCOPE` among them.
        buckets: hashes of the n-grams that it knows, ascending; int64 `[grams]`.
        gram_weights: `[grams, classes]`.
        meaning_weights: `[dimensions, classes]`.
        bias: `[classes]`.
    """

    labels: tuple[str, ...]
    buckets: npt.NDArray[np.int64]
    gram_weights: Floats
    meaning_weights: Floats
    bias: Floats

    def probabilities(self, text: str) -> tuple[tuple[str, float], ...]:
        """Return each class with its probability, likeliest first."""
        features = features_of(text)
        columns, values = _grams(features, self.buckets)
        logits = (
            values @ self.gram_weights[columns]
            + _meaning(features) @ self.meaning_weights
            + self.bias
        )
        odds = np.exp(logits - logits.max())
        shares = (odds / odds.sum()).tolist()
        return tuple(
            sorted(zip(self.labels, shares, strict=True), key=lambda each: (-each[1], each[0]))
        )


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What models make of sentences that they weren't fitted on.

    Attributes:
        sentences: the sentences.
        expected: class of each.
        ranked: the classes of each with their probabilities, likeliest first.
    """

    sentences: tuple[str, ...]
    expected: tuple[str, ...]
    ranked: tuple[tuple[tuple[str, float], ...], ...]


def fit(examples: Mapping[str, Sequence[str]]) -> IntentModel:
    """Fit a model.

    Every class counts the same, however many sentences it has, but for `OUT_OF_SCOPE`, which counts
    less. The same examples in the same order give the same model, up to rounding.

    Args:
        examples: sentences by class; at least two classes, each with at least one.
    """
    seen = [features_of(text) for texts in examples.values() for text in texts]
    classes = np.repeat(np.arange(len(examples)), [len(texts) for texts in examples.values()])
    buckets = np.unique([bucket for each in seen for bucket in (*each.words, *each.characters)])
    rows = np.zeros((len(seen), len(buckets)), np.float32)
    for row, features in zip(rows, seen, strict=True):
        columns, values = _grams(features, buckets)
        np.add.at(row, columns, values)
    meanings = np.stack([_meaning(features) for features in seen])
    dual = _minimise(rows @ rows.T + meanings @ meanings.T + 1, classes, len(examples))
    bias = dual.sum(0)
    bias[[name == OUT_OF_SCOPE for name in examples]] += np.log(_OUT_OF_SCOPE_PRIOR)
    return IntentModel(tuple(examples), buckets, rows.T @ dual, meanings.T @ dual, bias)


def cross_validate(examples: Mapping[str, Sequence[str]], *, folds: int = 5) -> CrossValidation:
    """Classify every sentence by a model that was fitted without it and others, in turn.

    Args:
        examples: as for `fit`, with at least two sentences each.
        folds: how many models are fitted.
    """
    found = []
    for fold in range(folds):
        kept = {
            name: [text for place, text in enumerate(texts) if place % folds != fold]
            for name, texts in examples.items()
        }
        model = fit(kept)
        found += [
            (text, name, model.probabilities(text))
            for name, texts in examples.items()
            for text in texts[fold::folds]
        ]
    sentences, expected, ranked = zip(*found, strict=True)
    return CrossValidation(sentences, expected, ranked)


def _grams(
    features: Features, buckets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the columns of a sentence's known n-grams and their values.

    Unknown ones count in the length: a sentence of mostly unknown words must not look certain for the
    few that are known.
    """
    columns, values = [], []
    for part, share in zip((features.words, features.characters), _SHARES, strict=False):
        hashes = np.fromiter(part.keys(), np.int64, len(part))
        weights = 1 + np.log(np.fromiter(part.values(), np.float32, len(part)))
        length = max(float(np.linalg.norm(weights)), 1.0)
        places = np.searchsorted(buckets, hashes)
        places[places == len(buckets)] = 0
        known = buckets[places] == hashes
        columns.append(places[known])
        values.append((weights[known] * (np.sqrt(share) / length)).astype(np.float32))
    return np.concatenate(columns), np.concatenate(values)


def _meaning(features: Features) -> Floats:
    return features.meaning * np.float32(np.sqrt(_SHARES[2]))


def _minimise(kernel: Floats, classes: npt.NDArray[np.int64], count: int) -> Floats:
    """Return the dual weights that minimise mean cross-entropy and an L2 penalty.

    The weights are `rows.T @ dual`, so gradient descent needs the products of rows only, which are few.
    Source: Nesterov's accelerated gradient with a constant step, 1983.

    Args:
        kernel: products of all pairs of rows; `[rows, rows]`.
        classes: class of each row; `[rows]`.
        count: how many classes there are.
    """
    wanted = np.eye(count, dtype=np.float32)[classes]
    importance = (1 / np.bincount(classes, minlength=count))[classes][:, None] / count
    curvature = 0.5 * np.linalg.norm(kernel * np.sqrt(importance * importance.T), 2)
    step = 1 / (curvature + _PENALTY)
    dual = np.zeros_like(wanted)
    ahead, momentum = dual, 1.0
    for _ in range(_ITERATIONS):
        logits = kernel @ ahead
        odds = np.exp(logits - logits.max(1, keepdims=True))
        slope = importance * (odds / odds.sum(1, keepdims=True) - wanted) + _PENALTY * ahead
        following = (ahead - step * slope).astype(np.float32)
        grown = float((1 + np.sqrt(1 + 4 * momentum**2)) / 2)
        ahead = following + np.float32((momentum - 1) / grown) * (following - dual)
        dual, momentum = following, grown
    return dual
