"""Intents: fitted, kept as numbers, and none where nothing is likely."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from serve_app.dialogue.nlu.background import background_without
from serve_app.dialogue.nlu.entities import EntityFinder
from serve_app.dialogue.nlu.features import features_of
from serve_app.dialogue.nlu.intent_model import OUT_OF_SCOPE, cross_validate, fit
from serve_app.dialogue.nlu.intent_store import IntentStore
from serve_app.dialogue.nlu.language import LanguageDetector
from serve_app.dialogue.nlu.make_word_vectors import word_vectors_of
from serve_app.dialogue.nlu.understander import MOST_CHARACTERS, Understander
from serve_app.dialogue.nlu.word_vectors import shipped_vectors
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint

EXAMPLES = {
    "order": ["I want a pizza", "one pizza please", "can I order something", "a margherita to go"],
    "hours": ["when do you open", "are you open today", "when do you close", "opening hours"],
    OUT_OF_SCOPE: ["who won the match", "tell me a joke", "it rains outside", "my cat is asleep"],
}


def best(text: str) -> tuple[str, float]:
    return fit(EXAMPLES).probabilities(text)[0]


def test_every_example_is_learned_and_probabilities_sum_to_one() -> None:
    model = fit(EXAMPLES)
    for name, sentences in EXAMPLES.items():
        for sentence in sentences:
            ranked = model.probabilities(sentence)
            assert ranked[0][0] == name
            assert sum(share for _, share in ranked) == pytest.approx(1, abs=1e-5)
            assert [share for _, share in ranked] == sorted((s for _, s in ranked), reverse=True)


def test_other_words_for_the_same_are_understood() -> None:
    assert best("we would like two pizzas")[0] == "order"
    assert best("what time does the shop close?")[0] == "hours"


def test_other_scripts_are_learned_by_characters() -> None:
    model = fit({"order": ["我要一个披萨", "来一份披萨"], "hours": ["几点开门", "今天营业吗"]})
    assert model.probabilities("想要披萨")[0][0] == "order"
    assert model.probabilities("明天几点营业")[0][0] == "hours"


def test_the_background_leaves_out_what_a_persona_has_as_an_example() -> None:
    every = background_without([])
    assert len(every) > 50
    assert "Okay" in every
    assert background_without(["okay!", "a pizza"]) == [each for each in every if each != "Okay"]


def test_a_turn_without_intent_is_taken_for_rarer_than_one_with() -> None:
    even = {"order": EXAMPLES["order"], OUT_OF_SCOPE: EXAMPLES[OUT_OF_SCOPE]}
    named = {"order": EXAMPLES["order"], "other": EXAMPLES[OUT_OF_SCOPE]}
    unknown = "zzz"
    none = dict(fit(even).probabilities(unknown))[OUT_OF_SCOPE]
    other = dict(fit(named).probabilities(unknown))["other"]
    assert none / (1 - none) == pytest.approx(0.1 * other / (1 - other), rel=1e-3)


def test_an_empty_turn_and_one_of_signs_have_features_too() -> None:
    for text in ("", "…", "\ud800", "12345"):
        assert np.isfinite(features_of(text).meaning).all()
        assert 0 < best(text)[1] < 0.95


def test_the_same_examples_give_the_same_model() -> None:
    one, other = fit(EXAMPLES), fit(EXAMPLES)
    assert one.labels == other.labels
    np.testing.assert_allclose(one.gram_weights, other.gram_weights, atol=1e-5)


def test_cross_validation_asks_each_sentence_once() -> None:
    found = cross_validate(EXAMPLES, folds=2)
    assert sorted(found.sentences) == sorted(s for texts in EXAMPLES.values() for s in texts)


def test_a_model_is_kept_and_read_again(tmp_path: Path) -> None:
    store = IntentStore(tmp_path / "models")
    fitted = store.model("pizza", EXAMPLES)
    file = store.file("pizza", EXAMPLES)
    written = file.stat().st_mtime_ns
    read = IntentStore(tmp_path / "models").model("pizza", EXAMPLES)
    assert file.stat().st_mtime_ns == written
    assert read.probabilities("a pizza") == fitted.probabilities("a pizza")
    with np.load(file, allow_pickle=False) as arrays:
        assert {arrays[name].dtype.kind for name in arrays} <= {"i", "f", "u"}


def test_other_examples_are_another_model_and_the_old_one_goes(tmp_path: Path) -> None:
    store = IntentStore(tmp_path)
    store.model("pizza", EXAMPLES)
    changed = {**EXAMPLES, "hours": [*EXAMPLES["hours"], "is it open"]}
    store.model("pizza", changed)
    assert list(tmp_path.iterdir()) == [store.file("pizza", changed)]


@pytest.mark.parametrize("damage", [b"", b"PK", b"\x80\x04K\x01."])
def test_a_damaged_model_is_written_anew(tmp_path: Path, damage: bytes) -> None:
    store = IntentStore(tmp_path)
    before = dict(store.model("pizza", EXAMPLES).probabilities("a pizza"))
    store.file("pizza", EXAMPLES).write_bytes(damage)
    after = dict(store.model("pizza", EXAMPLES).probabilities("a pizza"))
    assert after == pytest.approx(before)
    assert store.file("pizza", EXAMPLES).stat().st_size > 1000


def understander(threshold: float) -> Understander:
    return Understander(
        LanguageDetector(["en", "de"]), EntityFinder("US"), fit(EXAMPLES), threshold=threshold
    )


def test_under_the_threshold_there_is_no_intent_but_the_ranking_stays() -> None:
    text, today = "a pizza please", date(2026, 3, 11)
    sure = understander(0.3).understand(text, today=today).intent
    unsure = understander(1.0).understand(text, today=today).intent
    assert sure.name == "order"
    assert unsure.name is None
    assert unsure.ranking == sure.ranking
    assert OUT_OF_SCOPE not in dict(sure.ranking)


def test_what_is_out_of_scope_is_no_intent() -> None:
    found = understander(0.3).understand("tell me a good joke", today=date(2026, 3, 11))
    assert found.intent.name is None


def test_a_long_turn_is_looked_at_in_its_beginning() -> None:
    found = understander(0.3).understand("a pizza " * 10_000, today=date(2026, 3, 11))
    assert len(found.text) == MOST_CHARACTERS
    assert found.language.span.end == MOST_CHARACTERS


def test_the_vectors_that_ship_are_those_of_the_bundled_model() -> None:
    made, shipped = word_vectors_of(GgufCheckpoint(bundled_model())), shipped_vectors()
    assert made.places == shipped.places
    words = ("order", "parcel", "refund", "teacher", "monday", "angry", "poem", "fraction")
    for one in words:
        for other in words:
            ours, theirs = (float(table.mean(one) @ table.mean(other)) for table in (shipped, made))
            assert ours == pytest.approx(theirs, abs=0.05)
