"""The step: admit, compute prompts and what comes next for everybody, sample, send one frame each.

Everything here happens in one thread; `engine` puts the thread and the locks around it.
"""

from __future__ import annotations

import itertools
import logging
import time

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import GeneratorLost, ParleyError
from serve_app.generation.backends.base import Backend, Piece, SamplingBackend
from serve_app.generation.config import EngineConfig
from serve_app.generation.drafts import Drafter
from serve_app.generation.outbox import Deliver, Outbox
from serve_app.generation.pace import Pace
from serve_app.generation.prefix_cache import PrefixCache
from serve_app.generation.sampling import Sampled, sample
from serve_app.generation.scheduler import Scheduler
from serve_app.generation.sequence import Sequence
from serve_app.generation.slots import Slots
from serve_app.generation.steps_in_flight import StepsInFlight
from serve_app.messages.generation import FinishReason
from serve_app.telemetry.origin import origin_of, within

__all__ = ["EngineCore"]

logger = logging.getLogger(__name__)

# How much of the past the measured throughput keeps with every step.
_MEMORY = 0.95

_BROKEN = (
    "The model computed logits that are not numbers; if it stays so, check its files with "
    "`parley model inspect NAME --verify`, or serve it in fp32."
)
_OVERFLOWED = (
    "The request's penalties and biases made its logits infinite; send values nearer to those that "
    "do nothing."
)


class EngineCore:
    """Drives a backend step by step.

    Args:
        backend: computes logits, and chooses tokens if it is a `SamplingBackend`; its memory is
            allocated here.
        config: limits.
        deliver: takes the frames, once a step, by subscriber.

    Attributes:
        scheduler: queue and running sequences.
        slots: who is in which slot.
        prefixes: index of the prefix cache.
        generated: tokens sampled.
        prefilled: prompt tokens computed, the last one of each prompt left out.
        prefix_hits: prompt tokens copied from the prefix cache.
        drafted: tokens computed that were guesses.
        draft_hits: guesses among them that were right.
        steps: steps taken.
        step_s: seconds of the last one.
        work_s: seconds that what was computed would have taken with every slot taken.
        failures: steps in a row that failed, of those that computed logits.
        failure: the last of these failures.
    """

    def __init__(self, backend: Backend, config: EngineConfig, deliver: Deliver) -> None:
        blocks = config.prefix_cache_bytes // (backend.token_bytes * config.prefix_block)
        backend.allocate(
            slots=config.slots,
            max_len=config.max_len,
            blocks=blocks,
            block_tokens=config.prefix_block,
        )
        self.slots = Slots(config.slots, backend.move, backend.vacate)
        self.scheduler = Scheduler(
            self.slots,
            max_cached_tokens=config.max_cached_tokens,
            prefill_chunk=config.prefill_chunk,
        )
        self.prefixes = PrefixCache(blocks=blocks, block_tokens=config.prefix_block)
        self.generated = 0
        self.prefilled = 0
        self.prefix_hits = 0
        self.drafted = 0
        self.draft_hits = 0
        self.steps = 0
        self.step_s = 0.0
        self.work_s = 0.0
        self.failures = 0
        self.failure: Exception | None = None
        self._backend = backend
        self._ahead = StepsInFlight(backend) if isinstance(backend, SamplingBackend) else None
        self._max_cached_tokens = config.max_cached_tokens
        self._pace = Pace(config.prompt_slowdown)
        self._drafter = Drafter(most=config.draft_tokens, most_rows=backend.draft_rows)
        self._outbox = Outbox()
        self._deliver = deliver
        self._ended: list[Sequence] = []
        # Rows of logits that this step computed, with and without numbers in them.
        self._sound_rows = 0
        self._broken_rows = 0
        self._recent_tokens = 0.0
        self._recent_s = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Prompt and output tokens computed per second of recent steps; 0 before the first."""
        return self._recent_tokens / self._recent_s if self._recent_s else 0.0

    def add(self, sequence: Sequence) -> None:
        """Put a sequence into the queue."""
        self.scheduler.add(sequence)

    def step(self) -> None:
        """Run one step.

        A failure of the backend ends the running sequences, not the engine; logits that are not
        numbers end their own sequence, and are such a failure only if the step computed no others.

        Raises:
            GeneratorLost: the backend can't go on.
        """
        started, prefilled, drafted = time.monotonic(), self.prefilled, self.drafted
        generated = self.generated
        decoding = 0
        self._sound_rows = self._broken_rows = 0
        try:
            decoding = self._run() if self._ahead is None else self._run_ahead(self._ahead)
        except GeneratorLost:
            raise
        except Exception as error:
            logger.exception("a step failed; its streams end with an error")
            self._count_failure(error)
            self._fail_running(error)
        else:
            if self._sound_rows:
                self.failures = 0
            elif self._broken_rows:
                self._count_failure(ParleyError(_BROKEN, code="engine_error"))
        self.steps += 1
        self.step_s = time.monotonic() - started
        if self._sound_rows:
            self._pace.observe(
                self.step_s,
                decoding=decoding,
                prompt_tokens=self.prefilled - prefilled,
                drafted=self.drafted - drafted,
                tokens=self.generated - generated,
            )
            self.work_s += self._pace.work_s(
                decoding=decoding,
                prompt_tokens=self.prefilled - prefilled,
                slots=self.slots.count,
            )
        self._recent_tokens *= _MEMORY
        self._recent_tokens += self.generated - generated + self.prefilled - prefilled
        self._recent_s = self._recent_s * _MEMORY + self.step_s

    def end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        code: str | None = None,
        message: str | None = None,
    ) -> None:
        """End a sequence, wherever it is; its slot is free from now on."""
        if sequence.running and reason is not FinishReason.ERROR:
            self._keep_prefix(sequence)
        self.scheduler.remove(sequence)
        if reason is FinishReason.ERROR:
            with within(origin_of(sequence.request)):
                logger.error("%s ended with %s", sequence.request.request_id, code)
        now = time.monotonic()
        self._outbox.finished(
            sequence.request, sequence.finished(reason, now, code=code, message=message)
        )
        self._ended.append(sequence)

    def hand_back(self) -> None:
        """End every sequence here, in the queue too, so that another generator may go on with it.

        For a backend that is lost, which may be a sequence's doing: that is said with each.
        """
        self._forget_prefixes()
        for sequence in [*self.scheduler.running(), *self.scheduler.waiting]:
            self.end(sequence, FinishReason.HANDED_BACK, code=GeneratorLost.code)

    def flush(self) -> list[Sequence]:
        """Deliver what has come together since the last time; return the sequences that ended."""
        self._outbox.deliver(self._deliver)
        ended, self._ended = self._ended, []
        return ended

    def _run(self) -> int:
        """Compute what the plan says of prompts, and what comes next for everybody whose prompt is done.

        Returns:
            How many decoded.
        """
        plan = self._plan()
        sequences = self.scheduler.decoding()
        if not plan and not sequences:
            return 0
        pieces = self._pieces(plan)
        tokens = np.array([sequence.newest for sequence in sequences], np.int64)
        lengths = np.array([sequence.computed for sequence in sequences], np.int32)
        prompt_tokens = sum(size for _, size in plan)
        drafts = self._draft(sequences, prompt_tokens)
        guesses = [
            Piece(sequence.slot, sequence.length, np.array(guess)) for sequence, guess in drafts
        ]
        logits = self._backend.step(pieces, tokens, lengths, guesses)
        self._keep_prompts(plan)
        if sequences:
            self._say(sequences, drafts, logits)
        return len(sequences)

    def _run_ahead(self, ahead: StepsInFlight) -> int:
        """Begin what `_run` would do, then take in the tokens of the step before.

        Returns:
            How many decode.
        """
        plan = self._plan()
        sequences = self.scheduler.decoding()
        if all(ahead.fills(sequence) for sequence in sequences):
            sequences = []  # what is in flight ends them all
        if plan or sequences:
            ahead.begin(self._pieces(plan), sequences)
            self._keep_prompts(plan)
        else:
            ahead.settle()
        while ahead.due:
            self._take(*ahead.end())
        return len(sequences)

    def _pieces(self, plan: list[tuple[Sequence, int]]) -> list[Piece]:
        """Return the tokens that a plan names, which count as computed from now on."""
        pieces = []
        for sequence, size in plan:
            start, end = sequence.computed, sequence.computed + size
            pieces.append(Piece(sequence.slot, start, sequence.tokens[start:end]))
            sequence.computed = end
        return pieces

    def _keep_prompts(self, plan: list[tuple[Sequence, int]]) -> None:
        """Count the prompts' tokens of a plan, and keep those that are done."""
        self.prefilled += sum(size for _, size in plan)
        for sequence, _ in plan:
            if sequence is not self.scheduler.prefilling:
                self._keep_prefix(sequence)

    def _draft(
        self, sequences: list[Sequence], prompt_tokens: int
    ) -> list[tuple[Sequence, list[int]]]:
        """Guess what follows the newest tokens, as far as that is worth the rows it takes."""
        # While prompts wait, their tokens are worth more: none of those is ever wrong.
        if (
            self.scheduler.coming_count
            or self._drafter.idle
            or not any(sequence.lookup.matched for sequence in sequences)
        ):
            return []
        counts = self._drafter.counts(
            # The last token that a sequence may have is sampled, and never computed.
            [(each.lookup.matched, each.reserved - each.length - 1) for each in sequences],
            least_chance=self._pace.worthwhile(
                decoding=len(sequences), prompt_tokens=prompt_tokens
            ),
        )
        self.drafted += sum(counts)
        return [
            (sequence, sequence.lookup.guess(sequence.tokens, count).tolist())
            for sequence, count in zip(sequences, counts, strict=True)
            if count
        ]

    def _say(
        self,
        sequences: list[Sequence],
        drafts: list[tuple[Sequence, list[int]]],
        logits: NDArray[np.float32],
    ) -> None:
        """Sample behind the newest tokens, and behind guesses for as long as they are what was sampled.

        So a token is chosen from the same logits by the same draw as if nothing had been guessed.
        """
        self._accept(sequences, logits[: len(sequences)])
        following = []
        row = len(sequences)
        for sequence, guess in drafts:
            following.append((sequence, guess, row))
            row += len(guess)
        for ahead in itertools.count():
            following = [
                (sequence, guess, row)
                for sequence, guess, row in following
                if ahead < len(guess) and sequence.running and sequence.newest == guess[ahead]
            ]
            if not following:
                return
            self.draft_hits += len(following)
            self._accept(
                [sequence for sequence, _, _ in following],
                logits[[row + ahead for _, _, row in following]],
            )

    def _plan(self) -> list[tuple[Sequence, int]]:
        """Say how many tokens of whose prompts to compute now, in the order of admission.

        A prompt's last token is no part of this: it is computed as all that decode, in this very step
        if everything before it is.
        """
        plan: list[tuple[Sequence, int]] = []
        decoding = self.scheduler.decoding_count
        coming = self.scheduler.coming_count
        budget = self.scheduler.budget(self._pace.prompt_tokens(decoding=decoding, coming=coming))
        while budget > 0:
            sequence = self.scheduler.prefilling or self._admit(budget)
            if sequence is None:
                break
            if size := self.scheduler.chunk(sequence, budget):
                plan.append((sequence, size))
                budget -= size
            if size < sequence.uncomputed - 1:
                break
            self.scheduler.prefilled()
        self._limit_prefixes()
        return plan

    def _accept(self, sequences: list[Sequence], logits: NDArray[np.float32]) -> None:
        """Sample a token of each, behind the newest one, which is computed now; see `_take`."""
        sampled = sample(logits, [sequence.sampler for sequence in sequences])
        for sequence in sequences:
            sequence.computed += 1
        self._take(sequences, sampled)

    def _take(self, sequences: list[Sequence], sampled: Sampled) -> None:
        """Append a token to each, and end the sequences that are done, or got none."""
        now = time.monotonic()
        self._sound_rows += len(sequences) - len(sampled.broken)
        self._broken_rows += len(sampled.broken)
        self.generated += len(sequences) - len(sampled.broken) - len(sampled.overflowed)
        if sampled.broken:
            logger.error("a step computed %d rows that are not numbers", len(sampled.broken))
            self._forget_prefixes()  # what these rows came from may be in it
        tokens = sampled.tokens.tolist()
        for row, (sequence, token, logprobs) in enumerate(
            zip(sequences, tokens, sampled.logprobs, strict=True)
        ):
            if row in sampled.broken or row in sampled.overflowed:
                message = _BROKEN if row in sampled.broken else _OVERFLOWED
                self.end(sequence, FinishReason.ERROR, code="engine_error", message=message)
                continue
            if token in sequence.sampler.stop_token_ids:
                self.end(sequence, FinishReason.STOP)
                continue
            if sequence.unbegun:
                self._outbox.begun(sequence.request, sequence.begun(now))
            sequence.append(token, now)
            self._outbox.token(sequence.request, token, logprobs)
            if sequence.full:
                self.end(sequence, FinishReason.LENGTH)
            elif not self._drafter.idle:
                self._drafter.follow(sequence.lookup, sequence.tokens)

    def _admit(self, budget: int) -> Sequence | None:
        """Give the next sequence a slot and what the prefix cache has of its prompt."""
        while self.scheduler.can_admit():
            head = self.scheduler.waiting[0]
            if head.full:  # it came from elsewhere with all of its output
                self.end(head, FinishReason.LENGTH)
                continue
            blocks = self.prefixes.match(head.tokens)
            cached = len(blocks) * self.prefixes.block_tokens
            now = time.monotonic()
            sequence = self.scheduler.admit(cached=cached, budget=budget, now=now)
            if blocks:
                self._backend.load(blocks, sequence.slot)
                self.prefix_hits += cached
            return sequence
        return None

    def _limit_prefixes(self) -> None:
        """Have earlier prefixes give way to running sequences where the backend has no memory for both."""
        most = self._backend.make_room(self.slots.lengths(), self._max_cached_tokens)
        for block in self.prefixes.limit(most):
            self._backend.drop(block)

    def _forget_prefixes(self) -> None:
        for block in self.prefixes.clear():
            self._backend.drop(block)

    def _keep_prefix(self, sequence: Sequence) -> None:
        """Copy what is new in a slot into the prefix cache, if there is one."""
        for start, block in self.prefixes.store(sequence.tokens[: sequence.computed]):
            self._backend.save(sequence.slot, start, block)

    def _count_failure(self, error: Exception) -> None:
        self.failures += 1
        self.failure = error

    def _fail_running(self, error: Exception) -> None:
        message = (
            error.message
            if isinstance(error, ParleyError)
            else "The engine failed while computing this reply; try again."
        )
        # A block may have been promised to the cache and not written.
        self._forget_prefixes()
        for sequence in self.scheduler.running():
            self.end(sequence, FinishReason.ERROR, code="engine_error", message=message)
