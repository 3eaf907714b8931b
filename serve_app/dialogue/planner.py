"""Which messages the prompt holds: the oldest turns leave where it would not fit the context.

What the system says before anybody else never leaves, and neither does the newest turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import ContextLengthExceeded
from serve_app.messages.tokenization import ChatEncoding, Message
from serve_app.settings import DialogueSettings

__all__ = ["Budget", "PromptPlan", "beyond_window", "fit", "leading", "plan", "split_turns"]


# A stride longer than this share of a small context would cost more history than it saves work.
_LARGEST_STRIDE = 8


@dataclass(frozen=True, slots=True)
class Budget:
    """How many tokens there are to spend.

    Attributes:
        context: most tokens of prompt and reply together.
        reply: room to keep for the reply when `max_tokens` is None.
        max_tokens: most new tokens asked for, or None.
        stride: turns leave in strides of about this many tokens. The prompt then begins the same
            for several turns, and a cached beginning is not prefilled again; 0 lets as few turns
            leave as possible, which moves the beginning with each.
        truncate: let turns leave; False refuses what doesn't fit.
    """

    context: int
    reply: int
    max_tokens: int | None = None
    stride: int = 0
    truncate: bool = True

    @classmethod
    def of(
        cls,
        settings: DialogueSettings,
        *,
        context: int,
        max_tokens: int | None,
        truncate: bool,
        reply: int | None = None,
    ) -> Budget:
        """Return the budget of a turn.

        Args:
            settings: room for the reply, and the stride.
            context: most tokens of prompt and reply together.
            max_tokens: most new tokens asked for, or None.
            truncate: let turns leave.
            reply: room to keep for the reply instead of the settings'.
        """
        return cls(
            context=context,
            reply=reply or settings.reply_tokens,
            max_tokens=max_tokens,
            stride=min(settings.truncate_stride, context // _LARGEST_STRIDE),
            truncate=truncate,
        )

    @property
    def room(self) -> int:
        """Tokens kept for the reply, as far as turns can leave for it.

        Never more than half of the context: a generous `max_tokens` must not cost the history.
        """
        return min(self.max_tokens or self.reply, self.context // 2)


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """What to prompt with.

    Attributes:
        messages: those that stay, in order.
        turns_left_out: how many turns have left; 0 means that the encoding given can be used.
        max_tokens: most new tokens, cut to what the context leaves beside the encoding given.
    """

    messages: tuple[Message, ...]
    turns_left_out: int
    max_tokens: int


def leading(messages: Sequence[Message]) -> int:
    """Return how many messages the system begins with: the persona, which never leaves."""
    places = (place for place, message in enumerate(messages) if message.role != "system")
    return next(places, len(messages))


def plan(
    messages: Sequence[Message], encoding: ChatEncoding, budget: Budget, *, pinned: int
) -> PromptPlan:
    """Decide what stays in the prompt.

    Costs of messages are close but not always exact, since templates may join them. A caller
    therefore encodes again what is left of a plan from which turns have left, and plans once more.

    Args:
        messages: the whole conversation.
        encoding: of exactly these messages.
        budget: what there is to spend.
        pinned: how many messages at the front never leave, see `leading`. Of what a plan has left,
            it is the same number as before: another turn may begin with a system message too.

    Raises:
        ContextLengthExceeded: what must stay doesn't fit, or something doesn't and nothing may
            leave.
    """
    prompt = len(encoding.tokens)
    left = budget.context - prompt
    if not budget.truncate and left < (budget.max_tokens or 1):
        raise _too_long(prompt, budget)
    turns = split_turns(messages, pinned)[:-1] if budget.truncate else []
    missing = budget.room - left
    if missing <= 0 or not turns:
        if left < 1:
            raise _too_long(prompt, budget)
        return PromptPlan(tuple(messages), 0, min(budget.max_tokens or left, left))

    if budget.stride:
        missing = -(-missing // budget.stride) * budget.stride
    leaving = _oldest(turns, encoding.message_tokens, missing)
    return _without(messages, leaving, max_tokens=budget.room)


def fit(messages: Sequence[Message], budget: Budget, *, pinned: int) -> PromptPlan:
    """Let the turns leave that can't stay whatever they say, so that nobody encodes them.

    A message takes at least one token: no more messages than the context has tokens can stay.
    """
    turns = split_turns(messages, pinned)[:-1] if budget.truncate else []
    leaving = _oldest(turns, [1] * len(messages), len(messages) - budget.context)
    return _without(messages, leaving, max_tokens=budget.room)


def beyond_window(turns: int, most: int) -> int:
    """Return how many of the oldest turns have no place in a window of so many.

    They leave in strides of a quarter of the window, so that a prompt begins the same for several turns.
    """
    stride = max(1, most // 4)
    excess = max(0, turns - most)
    return min(-(-excess // stride) * stride, max(0, turns - 1))


def _oldest(
    turns: Sequence[Sequence[int]], costs: Sequence[int], tokens: int
) -> list[Sequence[int]]:
    """Return the oldest turns that together cost at least `tokens`, or else all."""
    taken: list[Sequence[int]] = []
    for turn in turns:
        if tokens <= 0:
            break
        tokens -= sum(costs[index] for index in turn)
        taken.append(turn)
    return taken


def split_turns(messages: Sequence[Message], pinned: int) -> list[list[int]]:
    """Return the indices of each turn's messages: what users say, and the replies up to the next.

    A greeting by the assistant belongs to the first turn. What the system says later than at the
    front belongs to the turn of what follows it, and at the very end to the last one.
    """
    turns: list[list[int]] = []
    ahead: list[int] = []
    asked = answered = False
    for index, message in enumerate(messages[pinned:], pinned):
        ahead.append(index)
        if message.role == "system":
            continue
        asks = message.role == "user"
        if not turns or (asks and asked and answered):
            turns.append([])
            asked = answered = False
        turns[-1] += ahead
        ahead = []
        asked = asked or asks
        answered = asked and not asks
    if turns:
        turns[-1] += ahead
    return turns


def _without(
    messages: Sequence[Message], leaving: Sequence[Sequence[int]], *, max_tokens: int
) -> PromptPlan:
    gone = {index for turn in leaving for index in turn}
    kept = tuple(message for index, message in enumerate(messages) if index not in gone)
    return PromptPlan(kept, len(leaving), max_tokens)


def _too_long(prompt: int, budget: Budget) -> ContextLengthExceeded:
    asked = budget.max_tokens or 1
    what = "the system prompt and the newest turn take" if budget.truncate else "the messages take"
    msg = (
        f"The context holds {budget.context} tokens: {what} {prompt}, and {asked} more "
        f"{'were' if asked > 1 else 'was'} asked for. Send less text, or ask for fewer tokens."
    )
    return ContextLengthExceeded(msg, param="messages")
