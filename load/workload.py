"""The conversations that are held: the same ones through HTTP and with the bare engine."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from load.measurements import TokenCounts
from serve_app.messages.tokenization import Message

__all__ = ["Conversation", "Workload", "story_words"]

# Chapter 1 of Alice's Adventures in Wonderland: plain English, in the public domain.
_STORY = Path(__file__).parent.parent / "tests" / "data" / "alice_chapter_1.txt"
# English words come to about 1.26 tokens each in the vocabularies of today's models. What a prompt
# really had is counted by whoever answers it.
_TOKENS_PER_WORD = 1.26
_PERSONA = (
    "You are a patient assistant who talks with readers about a story. Answer in plain sentences, "
    "and stay with what the story says. This is how the story begins:"
)
_QUESTIONS = (
    "Please explain what happens here, and why:",
    "Who is speaking in this passage, and what do they want?",
    "Tell me in your own words what you make of this:",
    "What do you think comes after this passage?",
    "I don't understand this part. Can you help me with it?",
    "Which words in this passage would you choose differently?",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """Multi-turn chats that share a system prompt; the same seed gives the same words.

    Token counts are approximate, because they are made of whole words before anybody tokenizes.

    Attributes:
        turns: questions in one conversation.
        system_tokens: tokens of the system prompt, which all conversations share; 0 for none.
        prompt_tokens: tokens of each question.
        output_tokens: most tokens of each reply, and the very number where EOS is ignored.
        ignore_eos: replies go on through the model's end of turn. Not every server knows this;
            where it is off, it isn't sent.
        temperature: of sampling; 0 is greedy.
        seed: chooses the questions. A server that has seen a seed may have its prompts cached.
    """

    turns: int = 3
    system_tokens: int = 110
    prompt_tokens: int = 40
    output_tokens: int = 64
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int = 0

    def conversation(self, number: int, *, turns: int | None = None) -> Conversation:
        """Return one conversation, yet to be held.

        Args:
            number: tells it from the others; they differ from the first question on.
            turns: questions in it, if not as many as in the others.
        """
        chooser = random.Random(f"{self.seed}/{number}")
        count = self.turns if turns is None else turns
        questions = tuple(self._question(chooser) for _ in range(count))
        opening = (Message("system", self.system_prompt),) if self.system_tokens else ()
        return Conversation(number, questions, list(opening))

    @property
    def system_prompt(self) -> str:
        """What stands in front of every conversation."""
        words = _PERSONA.split()
        words += _passage(0, max(_words(self.system_tokens) - len(words), 0))
        return " ".join(words[: _words(self.system_tokens)])

    def _question(self, chooser: random.Random) -> str:
        opener = chooser.choice(_QUESTIONS).split()
        start = chooser.randrange(len(story_words()))
        length = max(_words(self.prompt_tokens) - len(opener), 1)
        return " ".join([*opener, *_passage(start, length)])


@dataclass(slots=True)
class Conversation:
    """One conversation as its client holds it: the history is sent whole with every question.

    Attributes:
        number: its number in the workload.
        questions: all of them.
        messages: what has been said, the system prompt first.
        asked: questions that are part of `messages`.
        cost: what the last reply cost, if whoever gave it said so.
    """

    number: int
    questions: tuple[str, ...]
    messages: list[Message] = field(default_factory=list)
    asked: int = 0
    cost: TokenCounts | None = None

    @property
    def over(self) -> bool:
        """Whether every question has been asked."""
        return self.asked == len(self.questions)

    def ask(self) -> tuple[Message, ...]:
        """Put the next question, and return all that is to be sent."""
        self.messages.append(Message("user", self.questions[self.asked]))
        self.asked += 1
        return tuple(self.messages)

    def hear(self, reply: str, cost: TokenCounts | None) -> TokenCounts | None:
        """Take in the answer to the last question.

        Returns:
            Its cost, with what the turn before it had left behind.
        """
        self.messages.append(Message("assistant", reply))
        earlier, self.cost = self.cost, cost
        return None if cost is None else cost.after(earlier)


def _words(tokens: int) -> int:
    return max(round(tokens / _TOKENS_PER_WORD), 1)


def _passage(start: int, length: int) -> list[str]:
    """Return words of the story; what is longer than the story goes round it."""
    story = story_words()
    return [story[(start + place) % len(story)] for place in range(length)]


@cache
def story_words() -> tuple[str, ...]:
    """Return the words of a story in plain English, in order."""
    return tuple(_STORY.read_text(encoding="utf-8").split())
