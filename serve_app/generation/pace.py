"""How much of a step may go to prompts before those who decode notice."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["Pace"]

# How much of the past the fit keeps with every step.
_MEMORY = 0.98
# Even where prompts are slow they must get on.
_LEAST_TOKENS = 16
# Brings what is fitted to sizes around 1: a step by itself, who decodes in it, prompt tokens in it.
_SCALES = np.array([1.0, 16.0, 64.0])
# So little that it only decides what no step has told yet: that such a thing costs nothing.
_RIDGE = 1e-3


class Pace:
    """Keeps a step with prompts in it within a multiple of what streams have lately waited for a token.

    A stream's next token waits for the whole step, so a chunk of fixed size that nobody notices among
    32 streams would stop a single one for many of its steps. What a step takes is fitted to those that
    were: so much for itself, so much for each who decodes, so much for each prompt token. Steps
    without prompts may not come for long, and who decodes in them changes. Where prompts wait that have a
    slot each, the measure is the step that all of them will decode in.

    Args:
        most_slowdown: how many times as long as usual a step may take for the sake of prompts.
    """

    def __init__(self, most_slowdown: float) -> None:
        self._most_slowdown = most_slowdown
        self._squares = np.zeros((3, 3))
        self._seconds = np.zeros(3)
        # Seconds of a step by itself, of each who decodes, and of each prompt token.
        self._costs = (0.0, 0.0, 0.0)
        # What steps would have taken without their prompts, how many waited for each, and how many
        # tokens they got, added up.
        self._waited_s = 0.0
        self._waits = 0.0
        self._tokens = 0.0

    def observe(
        self,
        seconds: float,
        *,
        decoding: int,
        prompt_tokens: int,
        drafted: int = 0,
        tokens: int | None = None,
    ) -> None:
        """Take note of a step.

        Args:
            seconds: what it took.
            decoding: sequences that decoded in it.
            prompt_tokens: tokens of prompts in it.
            drafted: tokens guessed in it, each of which costs what a sequence that decodes does.
            tokens: what those who decoded in it got; None means one each.
        """
        step = np.array([1.0, decoding + drafted, prompt_tokens]) / _SCALES
        self._squares = _MEMORY * self._squares + np.outer(step, step)
        self._seconds = _MEMORY * self._seconds + seconds * step
        self._costs = self._fit()
        itself, each, _ = self._costs
        self._waited_s = _MEMORY * self._waited_s + decoding * (itself + each * decoding)
        self._waits = _MEMORY * self._waits + decoding
        self._tokens = _MEMORY * self._tokens + (decoding if tokens is None else tokens)

    def prompt_tokens(self, *, decoding: int, coming: int = 0) -> float:
        """Return how many tokens of prompts the next step may hold; infinity before anything is known.

        Args:
            decoding: sequences that are going to decode in it.
            coming: sequences that will, once their prompts are computed.
        """
        itself, each, token = self._costs
        if not token or not self._waits or not self._tokens:
            return math.inf
        # Few who decode have short steps, in which the prompts of many would never get on.
        usual = max(self._waited_s / self._waits, itself + each * (decoding + coming))
        # Whose guesses come true waits for less than a step.
        usual *= min(1.0, self._waits / self._tokens)
        # A prompt that comes alone is spread over twice as many steps, which are the more even for it.
        slowdown = self._most_slowdown if coming > 1 else (1.0 + self._most_slowdown) / 2
        room = slowdown * usual - (itself + each * decoding)
        return max(_LEAST_TOKENS, room / token)

    def worthwhile(self, *, decoding: int, prompt_tokens: int) -> float:
        """Return how likely one more row must be to bring a token for a step to be the faster for it.

        Args:
            decoding: sequences that are going to decode in the step.
            prompt_tokens: tokens of prompts that are going to be in it.
        """
        itself, each, token = self._costs
        seconds = itself + each * decoding + token * prompt_tokens
        return each * decoding / seconds if seconds else 0.0

    def work_s(self, *, decoding: int, prompt_tokens: int, slots: int) -> float:
        """Return the seconds that some tokens take in steps whose slots are all taken.

        A step for few streams takes nearly as long as one for many, so how long an engine has been busy
        says little of what it could do besides. This does: it is the same however the streams are
        spread over replicas.

        Args:
            decoding: tokens that were decoded.
            prompt_tokens: tokens of prompts that were computed.
            slots: the engine's slots.
        """
        itself, each, token = self._costs
        return decoding * (itself / slots + each) + prompt_tokens * token

    def _fit(self) -> tuple[float, float, float]:
        """Return the costs that the steps so far come nearest to."""
        fitted = np.linalg.solve(self._squares + _RIDGE * np.eye(3), self._seconds) / _SCALES
        itself, each, token = np.maximum(fitted, 0.0).tolist()
        return itself, each, token
