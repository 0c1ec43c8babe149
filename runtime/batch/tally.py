"""What a run has done so far: counted from the rows' own results, for the progress line, the summary and the report."""

from collections import Counter
from collections.abc import Iterable

from actors.messages import Attempt, Failure, Result
from actors.router.notes import RouterNote

__all__ = ["Tally"]


class Tally:
    """Counts of this run of the program (not of earlier runs of the same job)."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.coalesced = 0
        self.prompt_tokens = 0
        """Of all calls that told their usage, also of those whose reply was refused."""
        self.completion_tokens = 0
        self.cost_usd_micros = 0
        self.saved_tokens = 0
        """Tokens that equal rows did not cost because they shared a call."""
        self.served: Counter[str] = Counter()
        """Rows by the tier that answered, shared ones not counted."""
        self.tier_tokens: Counter[str] = Counter()
        self.attempts: Counter[tuple[str, str]] = Counter()
        """Attempts by (tier, kind)."""
        self.tier_cost_usd_micros: Counter[str] = Counter()
        self.fell_back: Counter[str] = Counter()
        """Rows answered by another tier than the one they should have had, by that one's name."""
        self.asked_again = 0
        """Rows that needed more than one attempt."""
        self.hedged = 0
        """Second copies that were sent because the first was late, of rows that have an answer."""
        self.hedges_won = 0
        """Those that answered first."""
        self.codes: Counter[str] = Counter()
        """Failed rows by error code."""
        self.redone = 0
        """Rows that were sent again because an actor died with them."""
        self.unmetered = 0
        """Answers that came without usage."""
        self.unmetered_tokens = 0
        """What was booked for them: their reservations."""
        self.overrun_tokens: Counter[str] = Counter()
        """Usage above its reservations, by tier."""
        self.margins_milli: Counter[str] = Counter()
        """The widest margin that an attempt has brought about, by tier, in thousandths."""
        self.notes: dict[str, RouterNote] = {}
        """The last note of each router."""
        self.opened: Counter[str] = Counter()
        """How often breakers have opened, by tier."""
        self._opened: Counter[tuple[str, str]] = Counter()
        self._opened_seen: dict[tuple[str, str, int], int] = {}

    @property
    def done(self) -> int:
        return self.succeeded + self.failed

    def result(self, result: Result, first: str) -> None:
        """Count a row that led its own call; `first` is the tier that it should have had."""
        self.succeeded += 1
        before = result.attempts[:-1]
        self._spent(before)
        self._tokens(result.tier, result.usage.prompt_tokens, result.usage.completion_tokens)
        self.cost_usd_micros += result.cost.usd_micros
        self.served[result.tier] += 1
        self.tier_cost_usd_micros[result.tier] += result.cost.usd_micros - sum(
            attempt.booked.usd_micros for attempt in before
        )
        if result.tier != first:
            self.fell_back[first] += 1
        self._attempts(result.attempts)
        if len(result.attempts) > 1:
            hedged = sum(attempt.hedged for attempt in result.attempts)
            self.hedged += hedged
            self.hedges_won += result.attempts[-1].hedged
            self.asked_again += len(result.attempts) > 1 + hedged

    def shared(self, tokens: int) -> None:
        """Count a row that had another row's answer."""
        self.succeeded += 1
        self.coalesced += 1
        self.saved_tokens += tokens

    def failure(self, code: str, failure: Failure | None) -> None:
        self.failed += 1
        self.codes[code] += 1
        if failure is not None:
            self.spent_in_vain(failure)

    def spent_in_vain(self, failure: Failure) -> None:
        """Count what a request cost that has no answer: one that failed, or one that a budget put off half-way."""
        self.cost_usd_micros += failure.cost.usd_micros
        self._spent(failure.attempts)
        self._attempts(failure.attempts)

    def _spent(self, attempts: Iterable[Attempt]) -> None:
        """Count what calls cost that gave no row its answer: replies that a schema refused, above all."""
        for attempt in attempts:
            self._tokens(attempt.tier, attempt.prompt_tokens, attempt.completion_tokens)
            self.tier_cost_usd_micros[attempt.tier] += attempt.booked.usd_micros

    def _tokens(self, tier: str, prompt: int, completion: int) -> None:
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.tier_tokens[tier] += prompt + completion

    def _attempts(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            self.attempts[attempt.tier, attempt.kind] += 1
            if attempt.unmetered_tokens:
                self.unmetered += 1
                self.unmetered_tokens += attempt.unmetered_tokens
            if attempt.overrun_tokens or attempt.margin_milli:
                self.overrun_tokens[attempt.tier] += attempt.overrun_tokens
                self.margins_milli[attempt.tier] = max(self.margins_milli[attempt.tier], attempt.margin_milli)

    def note(self, router: str, note: RouterNote) -> None:
        """Take in a router's note. An actor that restarted counts from zero again; what it opened before stays counted.

        Several routers see the same breakers, so of what they saw open the one that saw most counts.
        """
        self.notes[router] = note
        for tier in note.tiers:
            for index, health in enumerate(tier.actors):
                place = (router, tier.name, index)
                seen = self._opened_seen.get(place, 0)
                if health.opened != seen:
                    self._opened_seen[place] = health.opened
                    self._opened[router, tier.name] += health.opened - seen if health.opened > seen else health.opened
            self.opened[tier.name] = max(self.opened[tier.name], self._opened[router, tier.name])
