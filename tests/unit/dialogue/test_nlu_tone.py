"""Language, sentiment and emotion of turns."""

from __future__ import annotations

import pytest

from serve_app.dialogue.nlu.emotion import EmotionDetector
from serve_app.dialogue.nlu.language import LanguageDetector
from serve_app.dialogue.nlu.language_codes import LANGUAGE_CODES
from serve_app.dialogue.nlu.sentiment import SentimentAnalyzer
from serve_app.dialogue.nlu.understanding import EMOTIONS, SENTIMENTS, Label, Span
from serve_app.errors import ConfigError

NO_EMOTION = Label("neutral", 1.0, Span(0, 0))


@pytest.fixture(scope="module")
def languages() -> LanguageDetector:
    return LanguageDetector(["en", "de", "zh"])


@pytest.fixture(scope="module")
def sentiments() -> SentimentAnalyzer:
    return SentimentAnalyzer()


@pytest.mark.parametrize(
    ("text", "language"),
    [("Where is my order?", "en"), ("Wo ist meine Bestellung?", "de"), ("我的订单在哪里？", "zh")],
)
def test_the_language_of_a_sentence_is_told(
    languages: LanguageDetector, text: str, language: str
) -> None:
    found = languages.detect(text)
    assert found.value == language
    assert found.confidence > 0.5


def test_the_expected_language_decides_where_a_turn_says_nothing(
    languages: LanguageDetector,
) -> None:
    assert {languages.detect("12", code).value for code in ("en", "de")} == {"en", "de"}
    assert {languages.detect("super", code).value for code in ("en", "de")} == {"en", "de"}


def test_a_whole_sentence_in_another_language_is_believed(languages: LanguageDetector) -> None:
    assert languages.detect("Ich möchte gern etwas bestellen", "en").value == "de"


def test_detectors_of_different_languages_do_not_disturb_each_other() -> None:
    german = LanguageDetector(["de"])
    assert LanguageDetector(["en", "fr"]).detect("Where is my order?").value == "en"
    assert german.detect("Where is my order?").value == "de"


def test_a_language_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="xx"):
        LanguageDetector(["en", "xx"])


def test_every_language_that_a_persona_may_name_can_be_told() -> None:
    LanguageDetector(sorted(LANGUAGE_CODES))
    assert {"en", "de", "zh"} <= LANGUAGE_CODES


@pytest.mark.parametrize(
    ("text", "language", "sentiment"),
    [
        ("I love it", "en", "positive"),
        ("I don't love it", "en", "negative"),
        ("I'd like to see the menu", "en", "neutral"),
        ("Das ist gut", "de", "positive"),
        ("Das ist nicht gut", "de", "negative"),
        ("我喜欢", "zh", "positive"),
        ("我不喜欢", "zh", "negative"),
    ],
)
def test_negation_turns_a_sentiment_round(
    sentiments: SentimentAnalyzer, text: str, language: str, sentiment: str
) -> None:
    found = sentiments.analyze(text, language, NO_EMOTION)
    assert found.value == sentiment
    assert found.value in SENTIMENTS
    assert (found.score < -0.05, found.score > 0.05) == (
        sentiment == "negative",
        sentiment == "positive",
    )


def test_an_emotion_counts_where_no_word_has_a_sentiment(sentiments: SentimentAnalyzer) -> None:
    text = "I can't sleep"
    emotion = EmotionDetector().detect(text)
    assert sentiments.analyze(text, "en", NO_EMOTION).value == "neutral"
    found = sentiments.analyze(text, "en", emotion)
    assert (found.value, found.span) == ("negative", emotion.span)
    assert sentiments.analyze("I love it", "en", emotion).value == "positive"


def test_where_there_is_no_lexicon_nothing_is_claimed(sentiments: SentimentAnalyzer) -> None:
    found = sentiments.analyze("C'est horrible", "fr", NO_EMOTION)
    assert (found.value, found.confidence) == ("neutral", 0.0)


@pytest.mark.parametrize(
    ("text", "emotion", "cue"),
    [
        ("I am furious about this", "anger", "furious"),
        ("I'm not happy", "sadness", "happy"),
        ("I'm not afraid", "neutral", "I'm not afraid"),
        ("Ich mache mir Sorgen", "fear", "Sorgen"),
        ("好开心啊", "joy", "开心"),
        ("Wow", "surprise", "Wow"),
        ("The shop is on the left", "neutral", "The shop is on the left"),
    ],
)
def test_an_emotion_rests_on_its_words(text: str, emotion: str, cue: str) -> None:
    found = EmotionDetector().detect(text)
    assert found.value == emotion
    assert found.value in EMOTIONS
    assert text[found.span.start : found.span.end] == cue


def test_more_words_for_an_emotion_make_it_more_certain() -> None:
    detector = EmotionDetector()
    one, two = detector.detect("I'm annoyed"), detector.detect("I'm annoyed, this is ridiculous")
    assert two.confidence > one.confidence
