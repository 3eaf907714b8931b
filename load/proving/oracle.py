"""What the simulated model must reply: it depends on every token of the prompt, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from load.in_process.service import Tokens
from serve_app.generation.backends.base import Piece
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.ingress.assembly import StreamAssembly
from serve_app.messages.tokenization import Message

__all__ = ["Oracle", "talkative"]

# Of the vocabulary's beginning: digits, letters and signs, and among them the token that ends a turn.
_WIDTH = 96
_SPECIAL = (0, 1, *range(3, 17))


def talkative(context_length: int, step_s: float = 0.0) -> SimulatedBackend:
    """Return a backend whose replies are short texts that now and then end by themselves.

    Args:
        context_length: most tokens of one sequence.
        step_s: seconds that a step takes.
    """
    return SimulatedBackend(
        vocab_size=49152,
        logits_width=_WIDTH,
        context_length=context_length,
        step_s=step_s,
        avoid=_SPECIAL,
    )


class Oracle:
    """Computes replies alone, one after the other, by the same backend.

    Args:
        tokens: the model's.
        system: what every prompt begins with.
    """

    def __init__(self, tokens: Tokens, system: str) -> None:
        self._tokens = tokens
        self._system = system
        context = tokens.info.context_length
        self._backend = talkative(context)
        self._backend.allocate(slots=1, max_len=context, blocks=0, block_tokens=16)
        self.reply = lru_cache(4096)(self._reply)

    def _reply(self, line: tuple[tuple[str, str], ...], most: int) -> str:
        """Return the greedy reply to a line of (role, content), of at most so many tokens."""
        messages = (Message("system", self._system), *(Message(*one) for one in line))
        prompt = self._tokens.tokenizer.encode_chat(messages).tokens
        return self._decoded(prompt, most)

    def _decoded(self, prompt: Sequence[int], most: int) -> str:
        assembly = StreamAssembly(self._tokens.table)
        pieces = []
        front = np.array(prompt[:-1], np.int64)
        self._backend.step([Piece(0, 0, front)], np.array([], np.int64), np.array([], np.int32))
        token, length = prompt[-1], len(prompt) - 1
        for _ in range(most):
            logits = self._backend.step(
                [], np.array([token], np.int64), np.array([length], np.int32)
            )
            token, length = int(logits[0].argmax()), length + 1
            if token in self._tokens.info.eos_token_ids:
                break
            pieces.append(assembly.feed(token))
        pieces.append(assembly.finish())
        return "".join(piece.text for piece in pieces if piece is not None)
