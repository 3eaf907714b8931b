"""Plans the prompt of a turn that a persona answers with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.dialogue.conduct import Conduct
from serve_app.dialogue.memory.recall import recalled
from serve_app.dialogue.planner import Budget, beyond_window, fit, leading, plan, split_turns
from serve_app.dialogue.prompt import Draft, Remembered, spend
from serve_app.dialogue.tokenizer_port import TokenCounts, TokenizerPort
from serve_app.errors import ContextLengthExceeded, InvalidRequest
from serve_app.messages.dialogue import PlanTurn
from serve_app.messages.tokenization import ChatEncoding, Message
from serve_app.settings import DialogueSettings
from serve_app.state.turns import BegunTurn

__all__ = ["PersonaPlanner", "PersonaPrompt"]

# What templates and headings put around texts that are counted one by one.
_AROUND = 64


@dataclass(frozen=True, slots=True)
class PersonaPrompt:
    """What the model is asked.

    Attributes:
        tokens: the prompt.
        max_tokens: most new tokens.
        turns_left_out: how many turns have left.
        messages_left_out: how many messages these had, system messages at the front not counted.
        front: how many messages the system began with.
        remembered: what the prompt holds beside the window.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    turns_left_out: int
    messages_left_out: int
    front: int
    remembered: Remembered


@dataclass(frozen=True, slots=True)
class _Fitted:
    draft: Draft
    encoding: ChatEncoding
    max_tokens: int
    left: int


class PersonaPlanner:
    """Spends the tokens of personas' prompts; see `prompt` for the order.

    Args:
        tokenizer: encodes and counts.
        settings: budgets.
        context_length: most tokens of a prompt and its reply.
    """

    def __init__(
        self, tokenizer: TokenizerPort, settings: DialogueSettings, *, context_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._counts = TokenCounts(tokenizer)
        self._settings = settings
        self._context_length = context_length
        self._strict = False

    async def plan(self, conduct: Conduct, turn: PlanTurn, begun: BegunTurn) -> PersonaPrompt:
        """Return the prompt of a turn.

        Raises:
            ContextLengthExceeded: what must be in the prompt doesn't fit.
            InvalidRequest: the model's chat template doesn't take these messages.
        """
        persona = conduct.persona
        said = (*(Message(item.role, item.content) for item in begun.history), *turn.messages)
        first = leading(said)
        own = (message.content for message in said[:first])
        front = (persona.system_prompt.strip(), *own, turn.instructions or "")
        budget = Budget.of(
            self._settings,
            context=self._context_length,
            max_tokens=turn.max_tokens,
            truncate=turn.truncate,
            reply=persona.limits.max_reply_tokens,
        )
        body = said[first:]
        turns = split_turns(body, 0)
        gone = beyond_window(len(turns), persona.memory.window_turns) if turn.truncate else 0
        start = turns[gone][0] if gone else 0
        draft = Draft(
            "\n\n".join(part for part in front if part),
            body[start:],
            note=conduct.note,
        )
        if self._strict:
            draft = draft.made_strict()
        newest = [message.content for message in turn.messages]
        draft = await self._remembering(
            draft, _known(conduct, begun, self._settings), newest, budget
        )
        fitted = await self._fitted_at_all(draft, budget)
        left = gone + fitted.left
        if left and self._settings.recalled_turns:
            quotes = recalled(
                [[body[index] for index in each] for each in turns[:left]],
                conduct.understanding.text if conduct.understanding else "",
                most=self._settings.recalled_turns,
            )
            draft = await self._remembering(
                fitted.draft, replace(fitted.draft.remembered, recalled=quotes), newest, budget
            )
            if draft.remembered.recalled:
                fitted = await self._fitted_at_all(draft, budget)
                left += fitted.left
        most = persona.limits.max_reply_tokens
        limited = turn.max_tokens is None and most is not None
        return PersonaPrompt(
            tokens=fitted.encoding.tokens,
            max_tokens=min(fitted.max_tokens, most or 0) if limited else fitted.max_tokens,
            turns_left_out=left,
            messages_left_out=turns[left][0] if left else 0,
            front=first,
            remembered=fitted.draft.remembered,
        )

    async def _remembering(
        self, draft: Draft, wanted: Remembered, newest: Sequence[str], budget: Budget
    ) -> Draft:
        """Put into a draft what there is room for of what could be remembered."""
        parts = wanted.parts
        if not parts:
            return draft
        must = (draft.front, draft.note, *newest)
        counts = await self._counts.of((*must, *parts))
        taken = sum(counts[: len(must)]) + _AROUND
        share = int(self._settings.memory_share * self._context_length)
        room = min(share, self._context_length - budget.room - taken)
        return replace(draft, remembered=wanted.only(spend(parts, counts[len(must) :], room)))

    async def _fitted_at_all(self, draft: Draft, budget: Budget) -> _Fitted:
        """Let turns leave until the rest fits; where it never does, remember nothing."""
        try:
            return await self._fitted(draft, budget)
        except ContextLengthExceeded:
            if not draft.remembered.parts:
                raise
            return await self._fitted(replace(draft, remembered=Remembered()), budget)

    async def _fitted(self, draft: Draft, budget: Budget) -> _Fitted:
        messages = draft.messages()
        planned = fit(messages, budget, pinned=1)
        left = 0
        while True:
            left += planned.turns_left_out
            gone = len(messages) - len(planned.messages)
            draft, messages = replace(draft, body=draft.body[gone:]), planned.messages
            try:
                encoding = await self._tokenizer.encode_chat(messages)
            except InvalidRequest:
                if draft.strict or not draft.needs_leniency:
                    raise
                fitted = await self._fitted(draft.made_strict(), budget)
                self._strict = True
                return replace(fitted, left=left + fitted.left)
            planned = plan(messages, encoding, budget, pinned=1)
            if planned.turns_left_out == 0:
                return _Fitted(draft, encoding, planned.max_tokens, left)


def _known(conduct: Conduct, begun: BegunTurn, settings: DialogueSettings) -> Remembered:
    """Return what may be remembered, as far as settings and persona allow; the newest fact first."""
    memory, shaping = conduct.persona.memory, conduct.persona.shaping
    profile = settings.profiles and memory.profile and shaping.preferences
    facts = tuple(fact.text for fact in reversed(begun.facts)) if profile else ()
    summary = begun.summary if settings.summaries and memory.summary else None
    return Remembered(facts=facts, summary=summary)
